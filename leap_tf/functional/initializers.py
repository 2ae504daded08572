"""Keras initializers as functions of a seed and of shapes that may be tensors."""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

# Those that look at nothing of the shape but its size.
_OF_ANY_SHAPE = (
    keras.initializers.Constant,
    keras.initializers.Ones,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Zeros,
)
# Standard deviation of a standard normal that is cut off at ±2.
_OF_TRUNCATED_NORMAL = 0.87962566103423978


class _GivenSeed(keras.random.SeedGenerator):
    """A seed that is a tensor, in the form that Keras asks for; it has no variable."""

    def __init__(self, seed: tf.Tensor):
        self._seed = seed

    def next(self, ordered=True):
        return self._seed


def stateless_draw(
    initializer: Callable, shape: Sequence[int | tf.Tensor], dtype: str, seed: tf.Tensor
) -> tf.Tensor:
    """Returns what an initializer draws for a seed.

    Args:
        initializer: a Keras initializer, or a function of shape and dtype. One with a seed of its
            own keeps it.
        shape: dimensions; tensors among them only as `refuse_unknown_shapes` allows.
        dtype: of the values.
        seed: [2] integers.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return tf.convert_to_tensor(initializer(shape, dtype=dtype))
    settings = initializer.get_config()
    if "seed" in settings and settings["seed"] is None:
        initializer = type(initializer)(**(settings | {"seed": _GivenSeed(seed)}))
    if _scales_with_fans(initializer) and len(shape) == 2:
        return _scaled_draw(initializer, shape, dtype)
    return tf.convert_to_tensor(initializer(shape, dtype=dtype))


def refuse_unknown_shapes(initializer: Callable, name: str) -> None:
    """Raises ValueError if an initializer cannot draw a shape that is a tensor."""
    if not (_scales_with_fans(initializer) or isinstance(initializer, _OF_ANY_SHAPE)):
        raise ValueError(
            f"{name} has the initializer {initializer!r}, which has to know the number of units "
            "beforehand. Take GlorotUniform or the like."
        )


def _scales_with_fans(initializer):
    return isinstance(initializer, keras.initializers.VarianceScaling) and not (
        initializer.input_axes or initializer.output_axes
    )


def _scaled_draw(initializer, shape, dtype):
    """A draw of unit variance, scaled by the fans: in Keras these must be known numbers."""
    inputs, outputs = (tf.cast(size, tf.float32) for size in shape)
    fan = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2.0}
    deviation = tf.sqrt(initializer.scale / tf.maximum(fan[initializer.mode], 1.0))
    if initializer.distribution == "uniform":
        unit = keras.random.uniform(
            shape, -math.sqrt(3.0), math.sqrt(3.0), dtype=dtype, seed=initializer.seed
        )
    elif initializer.distribution == "untruncated_normal":
        unit = keras.random.normal(shape, dtype=dtype, seed=initializer.seed)
    else:
        unit = keras.random.truncated_normal(
            shape, stddev=1.0 / _OF_TRUNCATED_NORMAL, dtype=dtype, seed=initializer.seed
        )
    return unit * tf.cast(deviation, dtype)
