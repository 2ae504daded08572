"""When training on a task ends before its steps are used up.

After a step, held-out examples are judged with the running statistics, a batch of them at a time
and in turns. A rule remembers what it must of their errors, and says when it is enough. What it
remembers travels through the task loop, so it is tensors of fixed shapes.

Held-out examples are a task's `validation_batches()` where it has them, and its `test_batches()`
where it does not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf


class StopRule(Protocol):
    """Decides from held-out errors whether to go on.

    Attributes:
        batch_size: examples in a held-out batch.
        every: gradient steps from one held-out batch to the next.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def every(self) -> int: ...

    def start(self) -> Sequence[tf.Tensor]:
        """Returns what is remembered before the first held-out batch."""

    def observe(self, memory: Sequence[tf.Tensor], error: tf.Tensor) -> Sequence[tf.Tensor]:
        """Returns what is remembered after another batch with this mean error."""

    def is_over(self, memory: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns whether training ends here, a boolean tensor."""


@dataclasses.dataclass(frozen=True)
class StopWhenMastered:
    """Ends training once the held-out error has been low for long enough.

    The paper's rule on Omniglot (appendix F): an error below 2 % on 30 batches in a row.

    Args:
        error: the mean error of a held-out batch must be below this.
        batches: how many batches in a row.
        batch_size: examples in such a batch.
        every: gradient steps from one to the next.

    Raises:
        ValueError: a number makes no sense.
    """

    error: float = 0.02
    batches: int = 30
    batch_size: int = 20
    every: int = 1

    def __post_init__(self):
        _require_positive(self, "error", "batches", "batch_size", "every")

    def start(self) -> list[tf.Tensor]:
        return [tf.constant(0)]

    def observe(self, memory: Sequence[tf.Tensor], error: tf.Tensor) -> list[tf.Tensor]:
        return [tf.where(error < self.error, memory[0] + 1, 0)]

    def is_over(self, memory: Sequence[tf.Tensor]) -> tf.Tensor:
        return memory[0] >= self.batches


@dataclasses.dataclass(frozen=True)
class StopWhenStalled:
    """Ends training once the held-out error has not improved for long enough.

    The paper's rule on Multi-CV (appendix G): no improvement over 10 consecutive gradient steps.

    Args:
        patience: held-out batches without a new lowest error.
        batch_size: examples in such a batch. Errors of small batches are noisy, and a lucky one
            early on ends the training.
        every: gradient steps from one to the next.

    Raises:
        ValueError: a number makes no sense.
    """

    patience: int = 10
    batch_size: int = 100
    every: int = 1

    def __post_init__(self):
        _require_positive(self, "patience", "batch_size", "every")

    def start(self) -> list[tf.Tensor]:
        return [tf.constant(float("inf")), tf.constant(0)]

    def observe(self, memory: Sequence[tf.Tensor], error: tf.Tensor) -> list[tf.Tensor]:
        best, stalled = memory
        return [tf.minimum(best, error), tf.where(error < best, 0, stalled + 1)]

    def is_over(self, memory: Sequence[tf.Tensor]) -> tf.Tensor:
        return memory[1] >= self.patience


def _require_positive(rule, *names):
    wrong = [name for name in names if not getattr(rule, name) > 0]
    if wrong:
        raise ValueError(f"{rule} makes no sense: {' and '.join(wrong)} must be above 0.")
