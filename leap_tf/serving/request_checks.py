"""Checks of requests to a SavedModel, in the graph.

Some runtimes do not check shapes against the signature, so each input is checked before it is
used. All errors are `InvalidArgumentError`s whose text begins with the name of the input.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf


class Limits(NamedTuple):
    """The largest numbers that a request may contain, which bound a server's time and memory.

    Attributes:
        steps: gradient steps.
        batch_size: examples in a training batch.
        classes: units of a reinitialized head.
    """

    steps: int = 10_000
    batch_size: int = 1_024
    classes: int = 10_000


def checked_examples(examples: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns examples after checking that they have the shape, are not empty and all finite.

    Args:
        examples: the input.
        spec: its name and shape, with any number of examples.
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
    """Returns targets after checking that there is one for each input, and that labels are valid.

    Args:
        targets: the input.
        spec: its name and shape.
        inputs: the examples that they belong to, checked.
        classes: the number of classes if targets are labels in [0, classes), else None.
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
    """Returns an integer scalar after checking that it is in [least, most]."""
    number = tf.ensure_shape(number, (), name=name)
    allowed = (number >= least) & (number <= most)
    message = f"{name}: must be at least {least} and at most {most}, and is"
    with tf.control_dependencies([_require(allowed, message, number)]):
        return tf.identity(number)


def checked_rate(rate: tf.Tensor, name: str) -> tf.Tensor:
    """Returns a scalar after checking that it is positive and finite."""
    rate = tf.ensure_shape(rate, (), name=name)
    allowed = (rate > 0) & tf.math.is_finite(rate)
    with tf.control_dependencies([_require(allowed, f"{name}: must be positive, and is", rate)]):
        return tf.identity(rate)


@contextlib.contextmanager
def requiring_convergence(losses: tf.Tensor, outputs: list[tf.Tensor]) -> Iterator[None]:
    """Makes everything computed in the block fail if training has diverged.

    Args:
        losses: [K], the loss of each step.
        outputs: the results of training.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(part)) for part in [losses, *outputs]])
    message = (
        "learning_rate: training diverged; use a smaller one, or fewer steps. The losses began as"
    )
    with tf.control_dependencies([_require(finite, message, losses)]):
        yield


def _require(condition, message, *numbers):
    return tf.debugging.Assert(condition, [message, *numbers], summarize=10)
