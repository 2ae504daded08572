"""Leap, Reptile, and ordinary training without meta-learning.

Leap moves the initialization so that gradient paths from it become shorter. The arithmetic is in
`leap_tf.geometry`.

Sources: Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019,
algorithm 1. Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    Tensors,
    accumulator_dtype,
    extend_path,
    path_meta_gradient,
    start_path,
)
from leap_tf.learners.base import (
    Learner,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
    TrainingPlan,
    TrainingSetup,
)


class Leap(Learner):
    """The Leap meta-learner for any model and optimizer.

    K gradient steps give K − 1 segments, since no loss is observed after the last step (as in the
    original code). The metrics of a task are `path_length` and `path_energy`, eq. 7.

    Choosing the meta learning rate: with the length, the meta-gradient is a sum over segments whose
    terms hardly depend on the inner learning rate. So it grows with K, tasks with many steps
    dominate, and a larger K needs a smaller rate in proportion. `per_segment` divides by K − 1: one
    rate, K − 1 times that of the sum, then suits any K. docs/design.md has first values.

    Args:
        distance, include_loss, stabilizer, metric, per_segment: see
            `leap_tf.geometry.PathGeometry`.

    Raises:
        ValueError: `distance` or `metric` is unknown.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.1)
        >>> trainer = leap_tf.MetaTrainer(
        ...     leap_tf.mlp(), "mse", inner, meta, learner=leap_tf.Leap(), steps_per_task=5
        ... )
        >>> history = trainer.fit(leap_tf.Sinusoids(), meta_steps=1, verbose=False)
        >>> history.history["path_length"][0] > 0
        True
    """

    def __init__(
        self,
        distance: str = "length",
        include_loss: bool = True,
        stabilizer: bool = True,
        metric: str = "euclidean",
        *,
        per_segment: bool = False,
    ):
        self.geometry = PathGeometry(
            distance, include_loss, stabilizer, metric, per_segment=per_segment
        )

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self.geometry)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        return dataclasses.replace(super().plan(setup), minimum_steps=2)  # 1 point: no segment

    def begin_task(self, initialization: Tensors) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self.geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        metrics = {"path_length": state.length, "path_energy": state.energy}
        return TaskUpdate(path_meta_gradient(state, self.geometry), metrics)


class Reptile(StatelessLearner):
    """Moves the initialization towards the parameters at the end of training.

    The meta-gradient of a task is θ⁰ − θᴷ. With SGD of rate ε as the meta-optimizer, the
    initialization becomes θ⁰ + ε (mean θᴷ − θ⁰).

    θᴷ is the point after the last step, as in the paper. The original Leap code uses θᴷ⁻¹ instead:
    θ⁰ − θᴷ⁻¹ is the meta-gradient of Leap with distance="energy" and include_loss=False.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(1.0)
        >>> learner = leap_tf.Reptile()
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(), "mse", inner, meta, learner=learner)
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        displacement = [
            tf.cast(start, accumulator_dtype(start.dtype))
            - tf.cast(last, accumulator_dtype(last.dtype))
            for start, last in zip(end.initialization, end.parameters)
        ]
        return TaskUpdate(displacement, metrics={})


class NoMetaLearning(StatelessLearner):
    """Leaves the initialization unchanged.

    With a random initialization this is the baseline without pretraining of Flennerhag et al.
    (2019): every task starts from the same random weights.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(1.0)
        >>> learner = leap_tf.NoMetaLearning()
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(), "mse", inner, meta, learner=learner)
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([tf.zeros_like(tensor) for tensor in end.initialization], metrics={})
