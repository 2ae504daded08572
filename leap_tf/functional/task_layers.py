"""Layers that are reinitialized for every task, such as heads.

Keras does not keep the initializer of a built variable. `TaskLayers` therefore builds each layer
once more from its configuration and records the initializers. New values are then a function of a
seed: the same on every thread, in a graph and in a SavedModel, where the number of units may be a
tensor.
"""

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

# Initializers whose distribution does not depend on the shape.
_SHAPE_INDEPENDENT = (
    keras.initializers.Constant,
    keras.initializers.Ones,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Zeros,
)
# Standard deviation of a standard normal that is truncated at ±2.
_TRUNCATED_NORMAL_DEVIATION = 0.87962566103423978
# Building a layer draws seeds from Python's global generator, which all threads share.
_GLOBAL_GENERATOR = threading.Lock()


class _Weight(NamedTuple):
    """A weight of a layer, and the shape and initializer that it was built with."""

    variable: keras.Variable
    layer: str
    shape: tuple[int, ...]
    initializer: Callable


class TaskLayers:
    """Draws new initial values for the weights of some layers.

    Args:
        model: the built model that contains the layers; it is not changed.
        layer_names: names of the layers.

    Raises:
        ValueError: the model has no layer of a name, or a layer makes weights without its method
            `add_weight`.
    """

    def __init__(self, model: keras.Model, layer_names: Sequence[str]):
        layers = _find_layers(model, layer_names)
        self._weights = [weight for layer in layers for weight in _recorded_weights(layer)]
        self._dense = {layer.name for layer in layers if isinstance(layer, keras.layers.Dense)}

    def draw(
        self, seed: int | tf.Tensor, units: Mapping[str, int | tf.Tensor] | None = None
    ) -> dict[int, tf.Tensor]:
        """Draws initial values for every weight.

        Args:
            seed: decides the values.
            units: another number of units for some Dense layers, by name.

        Returns:
            The values, by `id(variable)` of the weight.

        Raises:
            ValueError: a layer cannot have another number of units.
        """
        values = {}
        for index, weight in enumerate(self._weights):
            shape: Sequence[int | tf.Tensor] = weight.shape
            wanted = (units or {}).get(weight.layer)
            if wanted is not None and (tf.is_tensor(wanted) or wanted != weight.shape[-1]):
                self._check_resizable(weight, wanted)
                shape = [*weight.shape[:-1], wanted]
            weight_seed = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.cast(seed, tf.int64), 0]), index
            )
            values[id(weight.variable)] = tf.ensure_shape(
                draw_initial_value(weight.initializer, shape, weight.variable.dtype, weight_seed),
                [None if tf.is_tensor(size) else size for size in shape],
            )
        return values

    def _check_resizable(self, weight, units):
        if weight.layer not in self._dense:
            raise ValueError(
                f"Tasks need {units} outputs of the layer {weight.layer!r}, and only a Dense layer "
                "can have another number of outputs on every task."
            )
        if tf.is_tensor(units):
            check_resizable(weight.initializer, weight.variable.path)


def layer_variables(model: keras.Model, layer_names: Sequence[str]) -> list[keras.Variable]:
    """Returns the weights of the named layers of a model and its nested models, in model order.

    Raises:
        ValueError: the model has no layer of a name.
    """
    return [variable for layer in _find_layers(model, layer_names) for variable in layer.weights]


def meta_learned_indices(model: keras.Model, task_layers: Sequence[str]) -> list[int]:
    """Returns the indices of the model's trainable variables outside its task layers.

    Raises:
        ValueError: the model has no layer of a name.
    """
    excluded = {id(variable) for variable in layer_variables(model, task_layers)}
    return [
        index
        for index, variable in enumerate(model.trainable_variables)
        if id(variable) not in excluded
    ]


def output_layer(model: keras.Model) -> keras.Layer | None:
    """Returns the layer whose output is the model's output, None if there is not exactly one."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return None
    layer = outputs[0]._keras_history.operation
    return output_layer(layer) if isinstance(layer, keras.Model) else layer


def draw_initial_value(
    initializer: Callable, shape: Sequence[int | tf.Tensor], dtype: str, seed: tf.Tensor
) -> tf.Tensor:
    """Returns the values that an initializer draws with a seed.

    Args:
        initializer: a Keras initializer, or a function of shape and dtype. An initializer that has
            a seed keeps it.
        shape: dimensions. Some may be tensors if `check_resizable` accepts the initializer.
        dtype: dtype of the values.
        seed: [2] integers.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return tf.convert_to_tensor(initializer(shape, dtype=dtype))
    settings = initializer.get_config()
    if "seed" in settings and settings["seed"] is None:
        initializer = type(initializer)(**(settings | {"seed": _TensorSeed(seed)}))
    if _scales_with_fans(initializer) and len(shape) == 2:
        return _draw_scaled(initializer, shape, dtype)
    return tf.convert_to_tensor(initializer(shape, dtype=dtype))


def check_resizable(initializer: Callable, name: str) -> None:
    """Checks that an initializer can draw a matrix or vector whose shape is a tensor.

    Raises:
        ValueError: it cannot.
    """
    if not (_scales_with_fans(initializer) or isinstance(initializer, _SHAPE_INDEPENDENT)):
        raise ValueError(
            f"{name} has the initializer {initializer!r}, which has to know the number of units "
            "beforehand. Use for example GlorotUniform."
        )


class _TensorSeed(keras.random.SeedGenerator):
    """A seed generator that returns a tensor and has no variable."""

    def __init__(self, seed: tf.Tensor):
        self._seed = seed

    def next(self, ordered=True):
        return self._seed


def _scales_with_fans(initializer):
    return isinstance(initializer, keras.initializers.VarianceScaling) and not (
        initializer.input_axes or initializer.output_axes
    )


def _draw_scaled(initializer, shape, dtype):
    """Draws with variance 1 and scales by the fans, which in Keras cannot be tensors."""
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
            shape, stddev=1.0 / _TRUNCATED_NORMAL_DEVIATION, dtype=dtype, seed=initializer.seed
        )
    return unit * tf.cast(deviation, dtype)


def _recorded_weights(layer: keras.Layer) -> list[_Weight]:
    """Builds a copy of a layer and records the initializers of its weights."""
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        # Such a copy has built weights as soon as it exists, so each layer is copied by itself.
        return [weight for part in layer.layers for weight in _recorded_weights(part)]
    initializers: dict[int, Callable] = {}
    with _GLOBAL_GENERATOR:
        state = random.getstate()
        copy = type(layer).from_config(layer.get_config())
        for part in _collect_layers(copy, {}).values():
            part.add_weight = _recording(part.add_weight, initializers)
        copy.build_from_config(layer.get_build_config())
        random.setstate(state)
    if any(id(weight) not in initializers for weight in copy.weights):
        raise ValueError(
            f"The layer {layer.name!r} makes weights otherwise than by its add_weight, so they "
            "cannot be reinitialized for every task."
        )
    return [
        _Weight(original, layer.name, tuple(weight.shape), initializers[id(weight)])
        for original, weight in zip(layer.weights, copy.weights, strict=True)
    ]


def _collect_layers(layer, found):
    """Adds a layer and its sublayers to a dict by id, and returns the dict."""
    if isinstance(layer, keras.Layer) and id(layer) not in found:
        found[id(layer)] = layer
        for value in vars(layer).values():
            for each in value if isinstance(value, list) else [value]:
                _collect_layers(each, found)
    return found


def _recording(add_weight, initializers):
    def add(*args, **kwargs):
        weight = add_weight(*args, **kwargs)
        default = "glorot_uniform" if "float" in weight.dtype else "zeros"
        initializers[id(weight)] = keras.initializers.get(kwargs.get("initializer") or default)
        return weight

    return add


def _find_layers(model, layer_names):
    wanted = set(layer_names)
    layers = list(_all_layers(model))
    missing = wanted - {layer.name for layer in layers}
    if missing:
        raise ValueError(
            f"The model has no layer named {sorted(missing)}; it has "
            f"{[layer.name for layer in layers]}. Name layers that are reinitialized for every "
            "task."
        )
    return [layer for layer in layers if layer.name in wanted]


def _all_layers(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)
