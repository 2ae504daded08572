"""How a held-out task is adapted to, whatever learned the initialization: trained and measured.

Every method is judged by the same loop. What is the method's own is its `direction` (ANIL keeps
its body still, Meta-SGD has its rates); all others take the plain gradient. The loop shows these
learners all parameters, heads that start fresh included, so lengths can be compared.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, extend_path, start_path
from leap_tf.learners.learner import Learner, TaskEnd, TaskUpdate


class AlongDirection(Learner):
    """Trains along another learner's direction, and measures nothing.

    Args:
        learner: whose direction is taken; it is built already.
        meta_indices: which of the parameters that learner knows.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        self._learner = learner
        self._meta_indices = list(meta_indices)

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        return ()

    def direction(
        self, gradients: Sequence[tf.Tensor], own: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        directions: list[tf.Tensor | None] = list(gradients)
        learned = self._learner.direction([gradients[i] for i in self._meta_indices], own)
        for index, direction in zip(self._meta_indices, learned, strict=True):
            directions[index] = direction
        return directions

    def observe(self, state: Any, point: PathPoint) -> Any:
        return state

    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([], metrics={})


class Adaptation(AlongDirection):
    """Trains along another learner's direction, and reports `path_length` and `path_energy`.

    Both are those of eq. 7 over all parameters, with the loss as a coordinate, for every learner.

    Args:
        learner, meta_indices: as for `AlongDirection`.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        super().__init__(learner, meta_indices)
        self._geometry = PathGeometry()

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self._geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        stay = [tf.zeros_like(tensor) for tensor in end.initialization]
        return TaskUpdate(stay, {"path_length": state.length, "path_energy": state.energy})
