"""Encoders and heads as ordinary Keras models."""

from leap_tf.models.batch_normalization import BatchNormalization
from leap_tf.models.conv_net import conv_net
from leap_tf.models.mlp import mlp

__all__ = ["BatchNormalization", "conv_net", "mlp"]
