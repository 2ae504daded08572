"""Whether every number in a chain of layers belongs to one unit: what hard attention rests on.

Attention to a unit is attention to the last dimension of a block's output. So nothing in the block
may mix units, and every weight must be some unit's.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from leap_tf.models.chain import Chain

# Layers whose output at a unit comes from that unit alone. What `axis` or activation they have is
# looked at besides.
_BY_UNIT = (
    keras.layers.Activation,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.Flatten,
    keras.layers.GaussianNoise,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def require_units(chain: Chain) -> None:
    """Checks that layers act on each unit by itself, and that every weight is of one unit.

    Raises:
        ValueError: a layer mixes units or may do so, has weights of something else, or has units
            in another dimension than the last.
    """
    for first, *rest in chain.blocks:
        if not _is_elementwise(first.activation):
            raise ValueError(
                f"The activation of {first.name!r} mixes units, and hard attention cannot tell "
                "whose its outputs are. Take an element-wise one."
            )
        for layer in (first, *rest):
            if layer is not first:
                _require_acts_by_unit(layer)
            _require_weights_of(first.kernel.shape[-1], first, layer)
    for layer in chain.shaping:
        _require_acts_by_unit(layer)
        if layer.trainable_variables:
            raise ValueError(
                f"{layer.name!r} has weights and follows a change of shape, so they are of no unit "
                "that there can be attention to. Place it before."
            )


def _require_weights_of(units, first, layer):
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            f"{layer.name!r} has channels_first, and units must be the last dimension."
        )
    for variable in layer.trainable_variables:
        if variable.shape[-1] != units:
            raise ValueError(
                f"Hard attention is to the {units} units of {first.name!r}, and {variable.path} of "
                f"shape {tuple(variable.shape)} belongs to none of them."
            )


def _require_acts_by_unit(layer):
    known = isinstance(layer, _BY_UNIT)
    if isinstance(layer, keras.layers.Activation):
        known = _is_elementwise(layer.activation)
    if isinstance(layer, keras.layers.BatchNormalization):
        known = layer.axis in (-1, len(layer.output.shape) - 1)
    if not known:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} is not known to act on each unit by itself, so "
            "hard attention cannot tell whose its outputs are. What may follow a layer with units: "
            f"{', '.join(each.__name__ for each in _BY_UNIT)}; activations element-wise, "
            "normalization of the last axis."
        )


def _is_elementwise(activation: Callable[[tf.Tensor], tf.Tensor]) -> bool:
    """Whether the other outputs stay when one input changes; those of softmax do not."""
    inputs = tf.constant([[-0.3, 0.7, 1.1, -2.0], [2.5, 0.7, 1.1, -2.0]])
    outputs = tf.convert_to_tensor(activation(inputs))
    same_shape = outputs.shape == inputs.shape
    return same_shape and bool(tf.reduce_all(outputs[0, 1:] == outputs[1, 1:]))
