"""A Keras model with the weights that a server has adapted."""

from collections.abc import Mapping

import keras
import numpy as np


def adapted_model(model: keras.Model, weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns a copy of a model with what the signature `adapt_weights` returned.

    The weights go by the variables' paths. A Dense layer that came back with another number of
    units gets that number.

    Args:
        model: the exported Keras model, as `keras.saving.load_model` reads it; not changed.
        weights: outputs of `adapt_weights`. What is no weight, such as "losses", is passed over.

    Raises:
        ValueError: a weight of the model is missing, or has another shape.
    """
    missing = {variable.path for variable in model.weights} - set(weights)
    if missing:
        raise ValueError(f"There are no weights for {sorted(missing)}; are they of this model?")

    def clone(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Dense):
            settings["units"] = int(np.shape(weights[layer.kernel.path])[-1])
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for old, new in zip(model.weights, copy.weights, strict=True):
        new.assign(weights[old.path])
    return copy
