"""Records the gradient path and the running statistics of the tasks of `LeapOptimizer`."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import all_finite, running_statistics
from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    accumulator_dtype,
    displacement_of,
    extend_path,
    path_meta_gradient,
)
from leap_tf.serialization import pack_arrays, unpack_arrays


def add_accumulators(
    add_variable: Callable[..., keras.Variable], variables: Sequence[keras.Variable], name: str
) -> list[keras.Variable]:
    """Adds an accumulator variable for each variable, with its shape and the accumulator dtype.

    `add_variable(shape, dtype, name)` is the optimizer's, and `name` the prefix of the names.
    """
    return [
        add_variable(
            shape=variable.shape,
            dtype=accumulator_dtype(tf.as_dtype(variable.dtype)).name,
            name=f"{name}_{index}",
        )
        for index, variable in enumerate(variables)
    ]


class PathRecorder:
    """Records the gradient path of one task at a time, inside traced train functions.

    `add_variable(shape, dtype, name)` is the optimizer's, which tracks the variable. The path is of
    those `variables`, the model's trainable ones, that are at `meta_indices`.
    """

    def __init__(
        self,
        add_variable: Callable[..., keras.Variable],
        variables: Sequence[keras.Variable],
        meta_indices: Sequence[int],
        geometry: PathGeometry,
    ):
        self.variables = list(variables)
        self.meta_variables = [self.variables[index] for index in meta_indices]
        self._meta_indices = list(meta_indices)
        self._geometry = geometry
        wide = any(variable.dtype == "float64" for variable in self.meta_variables)
        scalar_dtype = "float64" if wide else "float32"
        self._path = GradientPath(
            last=PathPoint(
                position=add_accumulators(add_variable, self.meta_variables, "last_position"),
                loss=add_variable(shape=(), dtype=scalar_dtype, name="last_loss"),
                gradient=add_accumulators(add_variable, self.meta_variables, "last_gradient"),
            ),
            points=add_variable(shape=(), dtype="int32", name="points"),
            meta_gradient=add_accumulators(add_variable, self.meta_variables, "meta_gradient"),
            length=add_variable(shape=(), dtype=scalar_dtype, name="path_length"),
            energy=add_variable(shape=(), dtype=scalar_dtype, name="path_energy"),
        )
        self._recording = add_variable(shape=(), dtype="bool", name="recording")
        self._steps = add_variable(shape=(), dtype="int32", name="steps")
        self._diverged = add_variable(shape=(), dtype="bool", name="diverged")

    def start(self) -> None:
        """Clears the path and begins to record."""
        self._assign(tf.nest.map_structure(tf.zeros_like, self.path()))
        self._steps.assign(0)
        self._diverged.assign(False)
        self._recording.assign(True)

    def stop(self) -> None:
        """Ends recording and keeps the path."""
        self._recording.assign(False)

    def observe(
        self,
        loss: tf.Tensor,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
        optimizer: keras.optimizers.Optimizer,
    ) -> None:
        """Records a train step before it changes the variables. Runs inside train functions.

        A step that dynamic loss scaling will skip adds no point. The loss is the unscaled one, a
        scalar. If it is not finite, the task is marked as diverged, even if the step is skipped.
        The gradients are of the loss that the inner `optimizer` scaled, one per trainable variable
        and of its shape; None for a variable on which the loss does not depend.
        """
        makes_step: tf.Tensor | bool = True
        scale = optimizer.loss_scale_factor or 1.0
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            makes_step = all_finite(gradient for gradient in gradients if gradient is not None)
            scale = optimizer.dynamic_scale.value
        recording = tf.convert_to_tensor(self._recording.value)
        broken = tf.logical_not(tf.reduce_all(tf.math.is_finite(loss)))
        self._steps.assign_add(tf.cast(recording, tf.int32))
        self._diverged.assign(
            tf.logical_or(self._diverged.value, tf.logical_and(recording, broken))
        )
        unscaled = [
            tf.zeros(variable.shape, variable.dtype)
            if gradient is None
            else tf.convert_to_tensor(gradient) / tf.cast(scale, gradient.dtype)
            for gradient, variable in zip(gradients, self.variables)
        ]
        tf.cond(
            tf.logical_and(recording, makes_step),
            lambda: self._extend(loss, [unscaled[index] for index in self._meta_indices]),
            lambda: None,
        )

    def path(self) -> GradientPath:
        """Returns the path as tensors."""
        return tf.nest.map_structure(
            lambda variable: tf.convert_to_tensor(variable.value), self._path
        )

    def meta_gradient(self, initialization: Sequence[keras.Variable]) -> list[tf.Tensor] | None:
        """Returns the meta-gradient of the path.

        `initialization` is θ⁰, one variable for each of `meta_variables`. The result is None if a
        loss, the path or a variable after the last step is not finite.

        Raises:
            ValueError: the steps since `start` made fewer than two points.
        """
        path = self.path()
        ends = [variable.value for variable in self.variables]
        finite = all_finite([path.last.loss, path.length, *path.meta_gradient, *ends])
        if self._diverged.numpy() or not finite:
            return None
        steps, points = int(self._steps.numpy()), int(path.points)
        if not steps:
            raise ValueError(
                "No training step was recorded in this task. Train the model inside the `with` "
                "block, on a data set with at least one batch."
            )
        if steps < 2:
            raise ValueError(
                "One training step is one point, and a path needs two. Train for at least two "
                "steps on a task: repeat its data set, or make smaller batches."
            )
        if points < 2:
            raise ValueError(
                f"Loss scaling skipped {steps - points} of {steps} steps of this task, and a path "
                "needs at least two that were not skipped. Lower initial_scale of the "
                "LossScaleOptimizer, or train longer on a task."
            )
        start = [tf.convert_to_tensor(theta.value) for theta in initialization]
        end = [tf.convert_to_tensor(variable.value) for variable in self.meta_variables]
        return path_meta_gradient(path, self._geometry, displacement_of(start, end))

    def _extend(self, loss, gradients):
        position = [tf.convert_to_tensor(variable.value) for variable in self.meta_variables]
        point = PathPoint(position, loss, gradients)
        self._assign(extend_path(self.path(), point, self._geometry))

    def _assign(self, path):
        for variable, value in zip(tf.nest.flatten(self._path), tf.nest.flatten(path)):
            variable.assign(value)


class StatisticsRecorder(tf.train.experimental.PythonState):
    """Records non-trainable variables: their values at the start of tasks, and summed changes.

    The layers named by `task_layers` get new values for every task. Unless running statistics are
    `learned`, all start from the first values.
    """

    def __init__(self, task_layers: Sequence[str], learned: bool):
        self._task_layers = task_layers
        self._learned = learned
        self._initial: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []

    def attach(self, model: keras.Model) -> None:
        """Records the model's current values as the initial ones, in the first call only."""
        if not self._initial:
            self._initial = [variable.numpy() for variable in model.non_trainable_variables]
            self._changes = [np.zeros_like(value) for value in self._initial]

    def restore(self, model: keras.Model) -> None:
        """Assigns the initial values to the model, except to the seeds of random layers."""
        for variable, value in zip(model.non_trainable_variables, self._initial):
            if not variable.path.endswith("seed_generator_state"):
                variable.assign(value)

    def add(self, model: keras.Model) -> None:
        """Adds the changes of the learned statistics during the finished task to the sum."""
        learned = running_statistics(model, self._task_layers) if self._learned else []
        ids = {id(variable) for variable in learned}
        for index, variable in enumerate(model.non_trainable_variables):
            if id(variable) in ids:
                self._changes[index] += variable.numpy() - self._initial[index]

    def move(self, tasks: int) -> None:
        """Moves learned statistics by the mean change of the tasks, and clears the sum."""
        self._initial = [
            initial + change / np.asarray(tasks, change.dtype) if change.any() else initial
            for initial, change in zip(self._initial, self._changes)
        ]
        self._changes = [np.zeros_like(value) for value in self._initial]

    def serialize(self) -> bytes:
        return pack_arrays([*self._initial, *self._changes]) if self._initial else b""

    def deserialize(self, string_value: bytes) -> None:
        arrays = unpack_arrays(string_value) if string_value else []
        self._initial = arrays[: len(arrays) // 2]
        self._changes = arrays[len(arrays) // 2 :]
