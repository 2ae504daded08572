"""Encoders and heads as ordinary Keras models."""

from leap_tf.models.batch_normalization import BatchNormalization
from leap_tf.models.conv_net import conv_net
from leap_tf.models.mlp import mlp
from leap_tf.models.multi_headed import HeadBank, multi_headed

__all__ = ["BatchNormalization", "HeadBank", "conv_net", "mlp", "multi_headed"]
