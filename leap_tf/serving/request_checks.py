"""What a request must be like, checked in the graph, with errors that name the input.

A SavedModel is called by servers and clients that know nothing of it. A signature alone lets
wrong shapes through in some runtimes, so each input is checked before anything is computed with
it. All errors are `InvalidArgumentError`s whose text begins with the input's name.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf


class Limits(NamedTuple):
    """The largest numbers a request may have. A server's time and memory depend on them.

    Attributes:
        steps: gradient steps.
        batch_size: examples in a training batch.
        classes: rows of a fresh head.
    """

    steps: int = 10_000
    batch_size: int = 1_024
    classes: int = 10_000


def checked_examples(examples: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns examples of the right shape, at least one, all numbers finite.

    Args:
        examples: the input.
        spec: its name and shape, the number of examples unknown.
    """
    examples = tf.ensure_shape(examples, spec.shape, name=spec.name)
    count = tf.shape(examples)[0]
    conditions = [_require(count > 0, f"{spec.name}: there must be at least one example")]
    if spec.dtype.is_floating:
        finite = tf.reduce_all(tf.math.is_finite(examples))
        conditions.append(_require(finite, f"{spec.name}: all numbers must be finite"))
    with tf.control_dependencies(conditions):
        return tf.identity(examples)


def checked_targets(
    targets: tf.Tensor, spec: tf.TensorSpec, inputs: tf.Tensor, classes: tf.Tensor | None
) -> tf.Tensor:
    """Returns targets as many as inputs; of class numbers, all in [0, classes).

    Args:
        targets: the input.
        spec: its name and shape.
        inputs: what they are the targets of, checked.
        classes: how many there are, if targets are class numbers.
    """
    targets = checked_examples(targets, spec)
    counts = tf.shape(targets)[0], tf.shape(inputs)[0]
    conditions = [
        _require(
            tf.equal(*counts), f"{spec.name}: there must be one for each example, not", *counts
        )
    ]
    if classes is not None:
        lowest, highest = tf.reduce_min(targets), tf.reduce_max(targets)
        conditions.append(
            _require(
                (lowest >= 0) & (highest < classes),
                f"{spec.name}: labels must lie in [0, number of classes), and the lowest, the "
                "highest and the number are",
                *(lowest, highest, classes),
            )
        )
    with tf.control_dependencies(conditions):
        return tf.identity(targets)


def checked_number(number: tf.Tensor, name: str, least: int, most: int) -> tf.Tensor:
    """Returns an integer scalar within bounds, both included."""
    number = tf.ensure_shape(number, (), name=name)
    allowed = (number >= least) & (number <= most)
    message = f"{name}: must be at least {least} and at most {most}, and is"
    with tf.control_dependencies([_require(allowed, message, number)]):
        return tf.identity(number)


def checked_rate(rate: tf.Tensor, name: str) -> tf.Tensor:
    """Returns a positive, finite scalar."""
    rate = tf.ensure_shape(rate, (), name=name)
    allowed = (rate > 0) & tf.math.is_finite(rate)
    with tf.control_dependencies([_require(allowed, f"{name}: must be positive, and is", rate)]):
        return tf.identity(rate)


@contextlib.contextmanager
def requiring_convergence(losses: tf.Tensor, outputs: list[tf.Tensor]) -> Iterator[None]:
    """Computes what is in the block only if training has not diverged: no answer, not a wrong one.

    Args:
        losses: [K], of each step.
        outputs: what training led to.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(part)) for part in [losses, *outputs]])
    message = (
        "learning_rate: training diverged; give a smaller one, or fewer steps. The losses began as"
    )
    with tf.control_dependencies([_require(finite, message, losses)]):
        yield


def _require(condition, message, *numbers):
    return tf.debugging.Assert(condition, [message, *numbers], summarize=10)
