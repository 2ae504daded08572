"""Leap: move the initialization so that gradient paths from it get shorter.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019, algorithm 1.
The arithmetic is in `leap_tf.geometry`; here it meets the task loop.

Which meta learning rate? With the length, the meta-gradient is a sum over segments whose parts
hardly depend on the inner learning rate, so it grows with the number of steps K. A rate that suits
K steps must be lowered in proportion for more, and where tasks differ in length the long ones
rule. `per_segment` takes the mean over the segments: the rate then holds for any K, and is (K − 1)
times the other. docs/design.md has the sizes, and where to start.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    extend_path,
    mean_over_segments,
    start_path,
)
from leap_tf.learners.base import Learner, TaskEnd, TaskUpdate, TrainingPlan, TrainingSetup


class Leap(Learner):
    """The Leap meta-learner for any model and optimizer.

    K gradient steps give K − 1 segments, as in the original code: no loss is observed at the
    end point. Its metrics are `path_length` and `path_energy` of the task.

    Args:
        distance: "length" (p = 1) or "energy" (p = 2).
        include_loss: whether the loss is a coordinate of the path.
        stabilizer: whether a rising loss counts as a falling one.
        metric: "euclidean" or "fisher", see `PathGeometry`.
        per_segment: whether a task's meta-gradient is divided by its number of segments. The
            paper's is not.

    Raises:
        ValueError: `distance` or `metric` is unknown.
    """

    def __init__(
        self,
        distance: str = "length",
        include_loss: bool = True,
        stabilizer: bool = True,
        metric: str = "euclidean",
        per_segment: bool = False,
    ):
        self.geometry = PathGeometry(distance, include_loss, stabilizer, metric)
        self.per_segment = per_segment

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        return dataclasses.replace(super().plan(setup), minimum_steps=2)  # one point, no segment

    def get_config(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.geometry), "per_segment": self.per_segment}

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self.geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        meta_gradient = mean_over_segments(state) if self.per_segment else state.meta_gradient
        return TaskUpdate(meta_gradient, {"path_length": state.length, "path_energy": state.energy})
