"""Keras initializers as functions of a seed and of shapes that may be tensors.

Layers that belong to a task: new values for them, drawn from their own initializers.

A head that is meta-learned for nobody starts anew on every task. Keras keeps no initializer
beside a built variable, so each layer is built once more from its configuration and what it asks
for is written down. From then on a draw is a function of a seed: the same on every thread, in a
graph and in a SavedModel, where the number of units may be a tensor.
"""

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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
        shape: dimensions; tensors among them only as `check_resizable` allows.
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


def check_resizable(initializer: Callable, name: str) -> None:
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


# Keras draws seeds from Python's global generator when a layer is built, and all threads share it.
_GLOBAL_GENERATOR = threading.Lock()


def layer_variables(model: keras.Model, layer_names: Sequence[str]) -> list[keras.Variable]:
    """Returns the weights of the named layers, in model order.

    Layers are found in the model and in the models nested in it.

    Raises:
        ValueError: the model has no layer of such a name.
    """
    return [variable for layer in _find_layers(model, layer_names) for variable in layer.weights]


def output_layer(model: keras.Model) -> keras.Layer | None:
    """Returns the layer whose output is the model's, None if there is no one such layer."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return None
    layer = outputs[0]._keras_history.operation
    return output_layer(layer) if isinstance(layer, keras.Model) else layer


def meta_learned_indices(model: keras.Model, layer_names: Sequence[str]) -> list[int]:
    """Returns which of the model's trainable variables are outside the named layers.

    Raises:
        ValueError: as `layer_variables`.
    """
    fresh = {id(variable) for variable in layer_variables(model, layer_names)}
    return [
        index
        for index, variable in enumerate(model.trainable_variables)
        if id(variable) not in fresh
    ]


class _Weight(NamedTuple):
    """What a layer asked for when it was built."""

    variable: keras.Variable
    layer: str
    shape: tuple[int, ...]
    initializer: Callable


class FreshLayers:
    """New values for the weights of some layers, from a seed.

    Args:
        model: the built model that holds the layers; it is not changed.
        layer_names: names of layers to draw anew.

    Raises:
        ValueError: there is no such layer, or one makes weights in a way of its own.
    """

    def __init__(self, model: keras.Model, layer_names: Sequence[str]):
        self._weights = [
            weight for layer in _find_layers(model, layer_names) for weight in _recorded(layer)
        ]
        self._dense = {
            layer.name
            for layer in _find_layers(model, layer_names)
            if isinstance(layer, keras.layers.Dense)
        }

    def draw(
        self, seed: int | tf.Tensor, units: Mapping[str, int | tf.Tensor] | None = None
    ) -> dict[int, tf.Tensor]:
        """Draws new values for every weight.

        Args:
            seed: the same seed gives the same values, in a graph or not.
            units: for Dense layers that shall have another number of units, that number.

        Returns:
            From `id(variable)` of each weight to its new value.

        Raises:
            ValueError: a layer cannot have another number of units.
        """
        values = {}
        for index, weight in enumerate(self._weights):
            shape: Sequence[int | tf.Tensor] = weight.shape
            wanted = (units or {}).get(weight.layer)
            if wanted is not None and (tf.is_tensor(wanted) or wanted != weight.shape[-1]):
                self._refuse_resizing(weight, wanted)
                shape = [*weight.shape[:-1], wanted]
            of_weight = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.cast(seed, tf.int64), 0]), index
            )
            values[id(weight.variable)] = tf.ensure_shape(
                stateless_draw(weight.initializer, shape, weight.variable.dtype, of_weight),
                [None if tf.is_tensor(size) else size for size in shape],
            )
        return values

    def _refuse_resizing(self, weight, units):
        if weight.layer not in self._dense:
            raise ValueError(
                f"Tasks need {units} outputs of the layer {weight.layer!r}, and only a Dense layer "
                "can have another number on every task."
            )
        if tf.is_tensor(units):
            check_resizable(weight.initializer, weight.variable.path)


def fresh_values(
    model: keras.Model,
    layer_names: Sequence[str],
    seed: int,
    units: Mapping[str, int] | None = None,
) -> dict[int, tf.Tensor]:
    """Draws new values for every weight of the named layers, once. See `FreshLayers`."""
    return FreshLayers(model, layer_names).draw(seed, units)


def _recorded(layer: keras.Layer) -> list[_Weight]:
    """What the layer's weights were asked for, from building it once more."""
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        # These build their layers as they are made, too early to look.
        return [weight for part in layer.layers for weight in _recorded(part)]
    asked: dict[int, Callable] = {}
    with _GLOBAL_GENERATOR:
        before = random.getstate()
        copy = type(layer).from_config(layer.get_config())
        for part in copy._flatten_layers():
            part.add_weight = _recording(part.add_weight, asked)
        copy.build_from_config(layer.get_build_config())
        random.setstate(before)
    if any(id(weight) not in asked for weight in copy.weights):
        raise ValueError(
            f"The layer {layer.name!r} makes weights otherwise than by its add_weight, so they "
            "cannot be drawn anew for every task."
        )
    return [
        _Weight(original, layer.name, tuple(weight.shape), asked[id(weight)])
        for original, weight in zip(layer.weights, copy.weights, strict=True)
    ]


def _recording(add_weight, asked):
    def add(*args, **kwargs):
        weight = add_weight(*args, **kwargs)
        default = "glorot_uniform" if "float" in weight.dtype else "zeros"
        asked[id(weight)] = keras.initializers.get(kwargs.get("initializer") or default)
        return weight

    return add


def _find_layers(model, layer_names):
    wanted = set(layer_names)
    found = [layer for layer in _walk(model) if layer.name in wanted]
    missing = wanted - {layer.name for layer in found}
    if missing:
        available = [layer.name for layer in _walk(model)]
        raise ValueError(
            f"The model has no layer named {sorted(missing)}; it has {available}. Name the "
            "layers that start fresh on every task."
        )
    return found


def _walk(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _walk(layer)
