"""Encoders and heads as ordinary Keras models."""

from leap_tf.models.batch_normalization import BatchNormalization
from leap_tf.models.chain import head_name
from leap_tf.models.conv_net import conv_net
from leap_tf.models.hard_attention import HardAttentionModel
from leap_tf.models.mlp import mlp
from leap_tf.models.multi_headed import HeadBank, OfKnownClasses, multi_headed
from leap_tf.models.progressive import progressive_columns

__all__ = [
    "BatchNormalization",
    "HardAttentionModel",
    "HeadBank",
    "OfKnownClasses",
    "conv_net",
    "head_name",
    "mlp",
    "multi_headed",
    "progressive_columns",
]
