"""A gradient path that lives in Keras variables, so that `model.fit` can extend it."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from leap_tf.geometry import GradientPath, PathPoint, accumulator_dtype


class RecordedPath:
    """The variables behind one `GradientPath`.

    Args:
        add_variable: the owner's `add_variable(shape, dtype, name)`, which also tracks it.
        variables: the model variables whose path is recorded.
    """

    def __init__(
        self, add_variable: Callable[..., keras.Variable], variables: Sequence[keras.Variable]
    ):
        def like_each(name):
            return [
                add_variable(shape=variable.shape, dtype=dtype, name=f"{name}_{index}")
                for index, (variable, dtype) in enumerate(zip(variables, dtypes))
            ]

        dtypes = [accumulator_dtype(tf.as_dtype(variable.dtype)).name for variable in variables]
        scalar_dtype = "float64" if "float64" in dtypes else "float32"
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

    def value(self) -> GradientPath:
        """Returns the path as tensors."""
        return tf.nest.map_structure(
            lambda variable: tf.convert_to_tensor(variable.value), self._path
        )

    def assign(self, path: GradientPath) -> None:
        """Replaces the path."""
        for variable, value in zip(tf.nest.flatten(self._path), tf.nest.flatten(path)):
            variable.assign(value)

    def clear(self) -> None:
        """Goes back to the empty path."""
        self.assign(tf.nest.map_structure(tf.zeros_like, self.value()))
