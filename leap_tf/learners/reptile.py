"""Reptile: move the initialization towards where training ended.

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018. The end point is
θᴷ as in the paper; the original Leap code reads it before the last step, and over the same
points Leap with the energy and without the loss gives the same meta-gradient.

Ordinary training: the learner that learns nothing across tasks.

On a fresh initialization it is the "no pretraining" of the paper: every task starts from the
same random weights, is trained, and then judged.
"""

import tensorflow as tf

from leap_tf.geometry import accumulator_dtype
from leap_tf.learners.base import StatelessLearner, TaskEnd, TaskUpdate


class Reptile(StatelessLearner):
    """Meta-gradient θ⁰ − θᴷ, so that SGD with rate ε gives θ⁰ + ε (mean θᴷ − θ⁰)."""

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(displacement(end), metrics={})


def displacement(end: TaskEnd) -> list[tf.Tensor]:
    """Returns θ⁰ − θᴷ, in the precision of meta-gradients."""
    return [
        tf.cast(start, accumulator_dtype(start.dtype))
        - tf.cast(last, accumulator_dtype(last.dtype))
        for start, last in zip(end.initialization, end.parameters)
    ]


class NoMetaLearning(StatelessLearner):
    """Trains on the task and leaves the initialization where it is."""

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([tf.zeros_like(tensor) for tensor in end.initialization], metrics={})
