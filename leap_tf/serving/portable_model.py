"""A model that Keras reads without this library."""

import keras

from leap_tf.models import BatchNormalization


def portable_model(model: keras.Model) -> keras.Model:
    """Returns a copy in which this library's layers are Keras's own, with the same weights.

    `leap_tf.models.BatchNormalization` differs from Keras's in training only, by a faster kernel
    and an unbiased running variance.

    Args:
        model: a built functional or sequential model, which is not changed.
    """
    if not any(isinstance(layer, BatchNormalization) for layer in model._flatten_layers()):
        return model
    copy = keras.models.clone_model(model, clone_function=_as_keras_layer, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _as_keras_layer(layer):
    cls = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else type(layer)
    return cls.from_config(layer.get_config())
