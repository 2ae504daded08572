"""Leap: move the initialization so that gradient paths from it get shorter.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019, algorithm 1.
The arithmetic is in `leap_tf.geometry`; here it meets the task loop.
"""

from collections.abc import Sequence

import tensorflow as tf

from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, extend_path, start_path
from leap_tf.learners.learner import Learner, TaskUpdate


class Leap(Learner):
    """The Leap meta-learner for any model and optimizer.

    K gradient steps give K − 1 segments, as in the original code: no loss is observed at the
    end point. Its metrics are `path_length` and `path_energy` of the task.

    Args:
        distance: "length" (p = 1) or "energy" (p = 2).
        include_loss: whether the loss is a coordinate of the path.
        stabilizer: whether a rising loss counts as a falling one.

    Raises:
        ValueError: `distance` is unknown.
    """

    minimum_steps = 2  # one point makes no segment

    def __init__(
        self, distance: str = "length", include_loss: bool = True, stabilizer: bool = True
    ):
        self.geometry = PathGeometry(distance, include_loss, stabilizer)

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self.geometry)

    def end_task(
        self,
        state: GradientPath,
        initialization: Sequence[tf.Tensor],
        parameters: Sequence[tf.Tensor],
    ) -> TaskUpdate:
        return TaskUpdate(
            meta_gradient=state.meta_gradient,
            metrics={"path_length": state.length, "path_energy": state.energy},
        )
