"""Rules that end training on a task before its steps are used up.

After a step, the loop evaluates one batch of examples with the running statistics. The rule sees
the mean error of that batch and decides whether training ends. Its state travels through the inner
loop, so it consists of tensors of fixed shapes.

The attribute `on` of a rule selects the examples:

    "validation"  the task's `validation_batches()`, or its `test_batches()` if it has none
    "training"    the task's `train_batches(seed)`, shuffled with another seed
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from leap_tf.functional import task_batches
from leap_tf.tasks import Task


class StopRule(Protocol):
    """Decides from the errors of evaluated batches whether training goes on.

    Attributes:
        batch_size: examples in an evaluated batch.
        every: gradient steps from one evaluated batch to the next.
        on: which examples are evaluated, "validation" or "training".
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def every(self) -> int: ...

    @property
    def on(self) -> str: ...

    def start(self) -> Sequence[tf.Tensor]:
        """Returns the state before the first evaluated batch."""

    def observe(self, state: Sequence[tf.Tensor], error: tf.Tensor) -> Sequence[tf.Tensor]:
        """Returns the state after another batch with this mean error."""

    def is_over(self, state: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns whether training ends here, a boolean tensor."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name."""


@dataclasses.dataclass(frozen=True)
class StopAtError:
    """Ends training once the error has been low on enough batches in a row.

    The paper's rule on Omniglot (appendix F) is an error below 2 % on 30 batches in a row. Use it
    with `on="training"`, as the paper's configurations do: the error on held-out drawings never
    gets that low, and the original code looked at training images by mistake until December 2019.

    Args:
        error: the mean error of an evaluated batch must be below this.
        batches: how many batches in a row.
        batch_size: examples in such a batch.
        every: gradient steps from one to the next.
        on: which examples are evaluated, "validation" or "training".

    Raises:
        ValueError: a number is not positive, or `on` is unknown.
    """

    error: float = 0.02
    batches: int = 30
    batch_size: int = 20
    every: int = 1
    on: str = "validation"

    def __post_init__(self):
        _check_rule(self, "error", "batches", "batch_size", "every")

    def start(self) -> list[tf.Tensor]:
        return [tf.constant(0)]

    def observe(self, state: Sequence[tf.Tensor], error: tf.Tensor) -> list[tf.Tensor]:
        return [tf.where(error < self.error, state[0] + 1, 0)]

    def is_over(self, state: Sequence[tf.Tensor]) -> tf.Tensor:
        return state[0] >= self.batches

    get_config = dataclasses.asdict


@dataclasses.dataclass(frozen=True)
class StopOnPlateau:
    """Ends training once the error has not improved on enough batches.

    The paper's rule on Multi-CV (appendix G): no improvement over 10 consecutive gradient steps.

    Args:
        patience: evaluated batches without a new lowest error.
        batch_size: examples in such a batch. With small batches, one low error by chance can end
            the training.
        every: gradient steps from one to the next.
        on: which examples are evaluated, "validation" or "training".

    Raises:
        ValueError: a number is not positive, or `on` is unknown.
    """

    patience: int = 10
    batch_size: int = 100
    every: int = 1
    on: str = "validation"

    def __post_init__(self):
        _check_rule(self, "patience", "batch_size", "every")

    def start(self) -> list[tf.Tensor]:
        return [tf.constant(float("inf")), tf.constant(0)]

    def observe(self, state: Sequence[tf.Tensor], error: tf.Tensor) -> list[tf.Tensor]:
        best, stalled = state
        return [tf.minimum(best, error), tf.where(error < best, 0, stalled + 1)]

    def is_over(self, state: Sequence[tf.Tensor]) -> tf.Tensor:
        return state[1] >= self.patience

    get_config = dataclasses.asdict


def _check_rule(rule, *names):
    wrong = [name for name in names if not getattr(rule, name) > 0]
    if wrong:
        raise ValueError(f"{rule} cannot be used: {' and '.join(wrong)} must be above 0.")
    if rule.on not in ("validation", "training"):
        raise ValueError(f"on must be 'validation' or 'training'. Received: on={rule.on!r}.")


def stop_batches(task: Task, seed: int, rule: StopRule) -> tf.data.Dataset:
    """Returns endless batches for a stop rule. The seed decides their order.

    Held-out examples are cut into batches in their order, and the batches are shuffled. In
    training, a task without `validation_batches` is stopped by its `test_batches`. Evaluation
    refuses that.
    """
    if rule.on == "training":
        another_order = int(np.random.default_rng([seed, 1]).integers(2**31))
        batches = task_batches(task, "train_batches", another_order)
        return batches.rebatch(rule.batch_size).repeat()
    held_out = "validation_batches" if hasattr(task, "validation_batches") else "test_batches"
    batches = task_batches(task, held_out).rebatch(rule.batch_size)

    @tf.function
    def shuffled():
        tf.random.set_seed(87654321)  # TensorFlow's default, for this graph; not the global seed
        return batches.shuffle(1024, seed=seed).repeat()

    return shuffled()
