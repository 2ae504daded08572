"""A gradient path that lives in Keras variables, so that `model.fit` can extend it."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    accumulator_dtype,
    extend_path,
)


class PathRecorder:
    """Follows the training of one task after the other, while it is switched on.

    Args:
        add_variable: the owner's `add_variable(shape, dtype, name)`, which also tracks it.
        variables: the model variables whose path is recorded.
        geometry: the distance that is measured.
    """

    def __init__(
        self,
        add_variable: Callable[..., keras.Variable],
        variables: Sequence[keras.Variable],
        geometry: PathGeometry,
    ):
        def like_each(name):
            return [
                add_variable(shape=variable.shape, dtype=dtype, name=f"{name}_{index}")
                for index, (variable, dtype) in enumerate(zip(variables, dtypes))
            ]

        dtypes = [accumulator_dtype(tf.as_dtype(variable.dtype)).name for variable in variables]
        scalar_dtype = "float64" if "float64" in dtypes else "float32"
        self._variables = variables
        self._geometry = geometry
        self._path = GradientPath(
            last=PathPoint(
                position=like_each("last_position"),
                loss=add_variable(shape=(), dtype=scalar_dtype, name="last_loss"),
                gradient=like_each("last_gradient"),
            ),
            points=add_variable(shape=(), dtype="int32", name="points"),
            meta_gradient=like_each("meta_gradient"),
            length=add_variable(shape=(), dtype=scalar_dtype, name="path_length"),
            energy=add_variable(shape=(), dtype=scalar_dtype, name="path_energy"),
        )
        self._recording = add_variable(shape=(), dtype="bool", name="recording")
        self._steps = add_variable(shape=(), dtype="int32", name="steps")
        self._diverged = add_variable(shape=(), dtype="bool", name="diverged")

    def start(self) -> None:
        """Forgets the last path and begins to record."""
        self._assign(tf.nest.map_structure(tf.zeros_like, self.path()))
        self._steps.assign(0)
        self._diverged.assign(False)
        self._recording.assign(True)

    def stop(self) -> None:
        """Ends recording; the path stays."""
        self._recording.assign(False)

    def see(
        self, loss: tf.Tensor, gradients: Sequence[tf.Tensor], makes_step: tf.Tensor | bool
    ) -> None:
        """Takes in one train step, before it moves the variables. Runs inside train functions.

        Args:
            loss: the unscaled loss. One that is not finite marks the task as diverged.
            gradients: its unscaled gradients, one per variable.
            makes_step: False where loss scaling will skip the step; it then leaves no point.
        """
        recording = tf.convert_to_tensor(self._recording.value)
        broken = tf.logical_not(tf.reduce_all(tf.math.is_finite(loss)))
        self._steps.assign_add(tf.cast(recording, tf.int32))
        self._diverged.assign(
            tf.logical_or(self._diverged.value, tf.logical_and(recording, broken))
        )
        tf.cond(
            tf.logical_and(recording, makes_step),
            lambda: self._extend(loss, gradients),
            lambda: None,
        )

    def path(self) -> GradientPath:
        """Returns the path as tensors."""
        return tf.nest.map_structure(
            lambda variable: tf.convert_to_tensor(variable.value), self._path
        )

    @property
    def steps(self) -> int:
        """Train steps seen since `start`, skipped ones included."""
        return int(self._steps.numpy())

    @property
    def finite(self) -> bool:
        """Whether every loss and the whole path are finite."""
        path = self.path()
        tensors = [path.last.loss, path.length, *path.meta_gradient]
        return not bool(self._diverged.numpy()) and all(
            bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in tensors
        )

    def _extend(self, loss, gradients):
        position = [tf.convert_to_tensor(variable.value) for variable in self._variables]
        point = PathPoint(position, loss, gradients)
        self._assign(extend_path(self.path(), point, self._geometry))

    def _assign(self, path):
        for variable, value in zip(tf.nest.flatten(self._path), tf.nest.flatten(path)):
            variable.assign(value)
