"""Leap, Reptile, and ordinary training without meta-learning.

Leap moves the initialization so that gradient paths from it become shorter. The arithmetic is in
`leap_tf.geometry`.

Sources: Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019,
algorithm 1. Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018.
"""

import copy
import dataclasses
from typing import Any

import keras
import tensorflow as tf

from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    Tensors,
    displacement_of,
    extend_path,
    path_meta_gradient,
    squared_norm,
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

    Choosing the meta-optimizer: with SGD inside and the length as distance, a meta-step of SGD(α),
    with the inner learning rate α, is about as long as tasks move, for any K. `scaled`
    makes this so for any inner optimizer, see `with_meta_optimizer` and docs/tuning.md.

    Args:
        distance, include_loss, stabilizer, metric, per_segment, scaled: see
            `leap_tf.geometry.PathGeometry`.

    Raises:
        ValueError: see `PathGeometry`. Later, when a trainer is made: `steps_per_task` is below 2.

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
        scaled: bool = False,
    ):
        self.geometry = PathGeometry(
            distance, include_loss, stabilizer, metric, per_segment=per_segment, scaled=scaled
        )

    def get_config(self) -> dict[str, Any]:
        if type(self).__init__ is not Leap.__init__:
            raise NotImplementedError(f"{type(self).__name__} must define get_config() too.")
        return dataclasses.asdict(self.geometry)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        return dataclasses.replace(super().plan(setup), minimum_steps=2)  # 1 point: no segment

    def begin_task(self, initialization: Tensors) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self.geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        displacement = displacement_of(end.initialization, end.parameters)
        metrics = {
            "path_length": state.length,
            "path_energy": state.energy,
            "distance_moved": tf.sqrt(squared_norm(displacement)),
        }
        return TaskUpdate(path_meta_gradient(state, self.geometry, displacement), metrics)


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
        backwards = displacement_of(end.parameters, end.initialization)
        return TaskUpdate(backwards, metrics={})


class NoMetaLearning(StatelessLearner):
    """Leaves the initialization unchanged.

    With a random initialization this is the baseline without pretraining of Flennerhag et al.
    (2019): every task starts from the same random weights and running statistics.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(1.0)
        >>> learner = leap_tf.NoMetaLearning()
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(), "mse", inner, meta, learner=learner)
    """

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        return dataclasses.replace(super().plan(setup), persistent_state=[])

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([tf.zeros_like(tensor) for tensor in end.initialization], metrics={})


def with_meta_optimizer(
    learner: Learner, meta_optimizer: keras.optimizers.Optimizer | None = None
) -> tuple[Learner, keras.optimizers.Optimizer]:
    """Returns a learner and its meta-optimizer: the given one, or one for any number of steps.

    The default is SGD(1.0). Leap's meta-gradients g are scaled for it, with `scaled=True`:

        θ⁰ ← θ⁰ − mean over tasks of ‖θᴷ − θ⁰‖ g / ‖g‖.

    Those of Reptile are as long by themselves, and joint training, HAT and Progressive Nets require
    SGD(1.0).

    Args:
        learner: the learner.
        meta_optimizer: if given, it is returned, and the learner is unchanged.

    Raises:
        TypeError: `learner` is a name or a class.
        ValueError: there is no default, since the learner's meta-gradients have another scale.
    """
    if isinstance(learner, str | type):
        raise TypeError(f"learner must be an object such as Reptile(). Received: {learner!r}.")
    if meta_optimizer is not None:
        return learner, meta_optimizer
    if isinstance(learner, Leap):
        learner = copy.copy(learner)
        learner.geometry = dataclasses.replace(learner.geometry, scaled=True)
    elif not isinstance(learner, Reptile | NoMetaLearning):
        raise ValueError(
            f"{type(learner).__name__} needs a meta_optimizer, since the scale of its "
            "meta-gradients is not that of the parameters. The authors of MAML use "
            "keras.optimizers.Adam(0.001)."
        )
    return learner, keras.optimizers.SGD(1.0)
