"""Layers that belong to a task: new values for them, drawn from their own initializers.

A head that is meta-learned for nobody starts anew on every task. Keras keeps no initializer
beside a built variable, so a layer is built again from its configuration and the values of
the copy are taken. Initializers without a seed of their own draw one from Python's global
generator, which is seeded for the moment of building and put back afterwards.
"""

import random
import threading
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

# Python's global generator is shared by all threads.
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


def fresh_values(
    model: keras.Model,
    layer_names: Sequence[str],
    seed: int,
    units: Mapping[str, int] | None = None,
) -> dict[int, tf.Tensor]:
    """Draws new values for every weight of the named layers.

    Args:
        model: the built model that holds the layers; it is not changed.
        layer_names: names of layers to draw anew.
        seed: the same seed gives the same values, on any thread.
        units: for Dense layers that shall have another number of units, that number.

    Returns:
        From `id(variable)` of each weight to its new value.

    Raises:
        ValueError: there is no such layer, or it cannot have another number of units.
    """
    values = {}
    for index, layer in enumerate(_find_layers(model, layer_names)):
        with _GLOBAL_GENERATOR:
            saved = random.getstate()
            random.seed(f"{seed}/{index}")
            try:
                copy = type(layer).from_config(_resized(layer, (units or {}).get(layer.name)))
                copy.build_from_config(layer.get_build_config())
            finally:
                random.setstate(saved)
        for original, drawn in zip(layer.weights, copy.weights, strict=True):
            values[id(original)] = tf.convert_to_tensor(drawn.value)
    return values


def _resized(layer, units):
    settings = layer.get_config()
    if units is None or settings.get("units") == units:
        return settings
    if not isinstance(layer, keras.layers.Dense):
        raise ValueError(
            f"Tasks need {units} outputs of the layer {layer.name!r}, and only a Dense layer can "
            f"have another number on every task; it is a {type(layer).__name__}."
        )
    return {**settings, "units": units}


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
