"""Task layers: layers that get new values for every task, such as heads.

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

from leap_tf.functional.checks import UnsupportedModelError

# Initializers whose distribution does not depend on the shape.
_SHAPE_INDEPENDENT = (
    *(keras.initializers.Constant, keras.initializers.Ones, keras.initializers.Zeros),
    *(keras.initializers.RandomNormal, keras.initializers.RandomUniform),
    keras.initializers.TruncatedNormal,
)
# Standard deviation of a standard normal that is truncated at ±2.
_TRUNCATED_NORMAL_DEVIATION = 0.87962566103423978
# Building a layer draws seeds from Python's global generator, which all threads share.
_GLOBAL_GENERATOR = threading.Lock()


class _Weight(NamedTuple):
    variable: keras.Variable
    layer: str
    shape: tuple[int, ...]
    initializer: Callable


class TaskLayers:
    """Draws new initial values for the weights of some layers.

    Raises:
        ValueError: the built model has no layer of one of the names, or a layer creates weights
            without `add_weight`.
    """

    def __init__(self, model: keras.Model, layer_names: Sequence[str]):
        layers = _find_layers(model, layer_names)
        self._weights = [weight for layer in layers for weight in _recorded_weights(layer)]
        self._dense = {layer.name for layer in layers if isinstance(layer, keras.layers.Dense)}

    def draw(
        self, seed: int | tf.Tensor, units: Mapping[str, int | tf.Tensor] | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns initial values for every weight, by `id(variable)`.

        Args:
            seed: decides the values.
            units: overrides the number of units of Dense layers, by name.

        Raises:
            ValueError: a layer cannot have another number of units.
        """
        values = {}
        for index, weight in enumerate(self._weights):
            shape: Sequence[int | tf.Tensor] = weight.shape
            wanted = (units or {}).get(weight.layer)
            if wanted is not None and (tf.is_tensor(wanted) or wanted != weight.shape[-1]):
                if weight.layer not in self._dense:
                    raise ValueError(
                        f"Tasks need {wanted} outputs of the layer {weight.layer!r}, and only "
                        "Dense layers can be resized."
                    )
                if tf.is_tensor(wanted):
                    check_resizable(weight.initializer, weight.variable.path)
                shape = [*weight.shape[:-1], wanted]
            weight_seed = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.cast(seed, tf.int64), 0]), index
            )
            values[id(weight.variable)] = tf.ensure_shape(
                _draw(weight.initializer, shape, weight.variable.dtype, weight_seed),
                [None if tf.is_tensor(size) else size for size in shape],
            )
        return values


def layer_variables(model: keras.Model, layer_names: Sequence[str]) -> list[keras.Variable]:
    """Returns the weights of the named layers of a model and its nested models, in model order."""
    return [variable for layer in _find_layers(model, layer_names) for variable in layer.weights]


def meta_learned_indices(model: keras.Model, task_layers: Sequence[str]) -> list[int]:
    """Returns the indices of the model's trainable variables outside its task layers."""
    excluded = {id(variable) for variable in layer_variables(model, task_layers)}
    variables = enumerate(model.trainable_variables)
    return [index for index, variable in variables if id(variable) not in excluded]


def check_policy(policy: str) -> None:
    """Raises ValueError if there is no such policy for running statistics."""
    if policy not in ("learned", "fresh"):
        raise ValueError(f"running_statistics must be 'learned' or 'fresh'. Received: {policy!r}.")


def running_statistics(model: keras.Model, task_layers: Sequence[str]) -> list[keras.Variable]:
    """Returns the variables that training updates without a gradient, such as moving means.

    These are the non-trainable floating-point variables outside `task_layers` and outside layers
    that are frozen by `trainable = False`.
    """
    fixed = {id(variable) for variable in layer_variables(model, task_layers)}
    for layer in model._flatten_layers():
        if not layer.trainable:
            fixed |= {id(variable) for variable in layer.variables}
    variables = [each for each in model.non_trainable_variables if id(each) not in fixed]
    return [each for each in variables if keras.backend.is_float_dtype(each.dtype)]


def copy_with_values(model: keras.Model, values: Mapping[int, tf.Tensor]) -> keras.Model:
    """Returns a copy of a model with other values, in which a Dense layer may have other units.

    `values` has the value of every weight of the copy, by `id(weight)` of the model's weight. The
    last dimension of its kernel decides the units of a Dense layer.

    Raises:
        UnsupportedModelError: the model cannot be copied, or has other weights after copying.
    """

    def clone(layer):
        if hasattr(layer, "adapt"):  # preprocessing, whose weights are not all of its state
            return layer
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Dense):
            settings["units"] = int(values[id(layer.kernel)].shape[-1])
        return type(layer).from_config(settings)

    try:
        if getattr(model, "inputs", None):
            copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
        else:
            copy = type(model).from_config(model.get_config())
            copy.build_from_config(model.get_build_config())
        for old, new in zip(model.weights, copy.weights, strict=True):
            new.assign(values[id(old)])
        for layer in copy._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be copied. A subclass of keras.Model needs "
            "get_config() and build(), must create the same weights again, and has the same "
            f"number of outputs on every task. Keras says: {error}"
        ) from error
    return copy


def output_layer(model: keras.Model) -> keras.Layer | None:
    """Returns the layer whose output is the model's output, None if there is not exactly one."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return None
    layer = outputs[0]._keras_history.operation
    return output_layer(layer) if isinstance(layer, keras.Model) else layer


def _draw(initializer, shape, dtype, seed):
    """Returns the values that an initializer draws with a seed, or with its own if it has one."""
    if isinstance(initializer, keras.initializers.Initializer):
        settings = initializer.get_config()
        if "seed" in settings and settings["seed"] is None:
            initializer = type(initializer)(**(settings | {"seed": _TensorSeed(seed)}))
        if _scales_with_fans(initializer) and len(shape) == 2:
            return _draw_scaled(initializer, shape, dtype)
    return tf.convert_to_tensor(initializer(shape, dtype=dtype))


def check_resizable(initializer: Callable, name: str) -> None:
    """Raises ValueError if an initializer needs a static shape."""
    if not (_scales_with_fans(initializer) or isinstance(initializer, _SHAPE_INDEPENDENT)):
        raise ValueError(
            f"{name} has the initializer {initializer!r}, which needs a fixed number of units. "
            "Use, for example, GlorotUniform."
        )


class _TensorSeed(keras.random.SeedGenerator):
    """A seed generator that returns a tensor and has no variable."""

    def __init__(self, seed: tf.Tensor):  # the constructor of the base would create a variable
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
    how = {"dtype": dtype, "seed": initializer.seed}
    if initializer.distribution == "uniform":
        unit = keras.random.uniform(shape, -math.sqrt(3.0), math.sqrt(3.0), **how)
    elif initializer.distribution == "untruncated_normal":
        unit = keras.random.normal(shape, **how)
    else:
        unit = keras.random.truncated_normal(shape, 0.0, 1.0 / _TRUNCATED_NORMAL_DEVIATION, **how)
    return unit * tf.cast(deviation, dtype)


def _recorded_weights(layer: keras.Layer) -> list[_Weight]:
    """Builds a copy of a layer and records the initializers of its weights."""
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        # Such a copy has built weights as soon as it exists, so each layer is copied by itself.
        return [weight for part in layer.layers for weight in _recorded_weights(part)]
    initializers: dict[int, Callable] = {}

    def recording(add_weight):
        def add(*args, **kwargs):
            weight = add_weight(*args, **kwargs)
            # The defaults of keras.Layer.add_weight.
            default = "glorot_uniform" if "float" in weight.dtype else "zeros"
            given = kwargs.get("initializer") or next(iter(args[1:2]), None)
            initializers[id(weight)] = keras.initializers.get(given or default)
            return weight

        return add

    with _GLOBAL_GENERATOR:
        state = random.getstate()
        copy = type(layer).from_config(layer.get_config())
        for part in copy._flatten_layers():
            part.add_weight = recording(part.add_weight)
        copy.build_from_config(layer.get_build_config())
        random.setstate(state)
    if any(id(weight) not in initializers for weight in copy.weights):
        raise ValueError(
            f"The layer {layer.name!r} creates weights without add_weight, or layers in its "
            "build(), so they cannot get new values for every task."
        )
    return [
        _Weight(original, layer.name, tuple(weight.shape), initializers[id(weight)])
        for original, weight in zip(layer.weights, copy.weights, strict=True)
    ]


def _find_layers(model, layer_names):
    def all_layers(model):
        for layer in model.layers:
            yield layer
            if isinstance(layer, keras.Model):
                yield from all_layers(layer)

    wanted = set(layer_names)
    layers = list(all_layers(model))
    missing = wanted - {layer.name for layer in layers}
    if missing:
        raise ValueError(
            f"The model has no layer named {sorted(missing)}; it has "
            f"{[layer.name for layer in layers]}."
        )
    return [layer for layer in layers if layer.name in wanted]
