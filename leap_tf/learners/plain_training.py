"""Ordinary training: the learner that learns nothing across tasks.

Held-out tasks are adapted with it, whatever learned their initialization, so every method is
judged by the same loop; on a fresh initialization it is the "no pretraining" of the paper.
"""

from collections.abc import Sequence

import tensorflow as tf

from leap_tf.geometry import PathPoint
from leap_tf.learners.learner import Learner, TaskUpdate


class PlainTraining(Learner):
    """Trains on the task and leaves the initialization where it is."""

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> tuple[()]:
        return ()

    def observe(self, state: tuple[()], point: PathPoint) -> tuple[()]:
        return state

    def end_task(
        self,
        state: tuple[()],
        initialization: Sequence[tf.Tensor],
        parameters: Sequence[tf.Tensor],
    ) -> TaskUpdate:
        stay = [tf.zeros_like(tensor) for tensor in initialization]
        return TaskUpdate(meta_gradient=stay, metrics={})
