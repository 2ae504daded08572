"""Batch normalization for short tasks: right momentum, and TensorFlow's fused kernel.

Keras computes moments and normalization from elementary operations, which on a CPU takes a
good part of a small ConvNet's step. The fused kernel gives the same output, and a running
variance that is unbiased, as in PyTorch and so in the original code.

The four-block ConvNet of few-shot learning (Vinyals et al. 2016), as the paper uses it.

A multi-layer perceptron, as small problems use it.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="leap_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` on a fused kernel, for float32 images [b, h, w, c].

    Anything else (other ranks, masks, mixed precision, evaluation) takes Keras's own way.

    Args:
        momentum: weight of the past in the running statistics. Keras's default 0.99 would
            leave 37 % of the initial statistics after a task of 100 steps; 0.9 leaves none.
        epsilon: added to the variance.
        **kwargs: as for `keras.layers.BatchNormalization`.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and self._can_fuse(inputs, mask)):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            epsilon=self.epsilon,
            is_training=True,
        )
        for running, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            running.assign(self.momentum * running + (1.0 - self.momentum) * batch)
        return outputs

    def _can_fuse(self, inputs, mask):
        return (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype == "float32"
            and self.center
            and self.scale
            and not self.synchronized
            and not self.renorm
        )


def conv_net(
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 20,
    filters: int = 64,
    blocks: int = 4,
) -> keras.Model:
    """Builds blocks of conv 3×3, batch norm, 2×2 max-pool and ReLU, and a linear layer "head".

    Two things are done otherwise than in the paper and the original code, and change no output
    and no gradient. Max-pool comes before ReLU (appendix D: after), since the two commute and
    ReLU then has a quarter of the work. Convolutions have no bias, since the batch norm behind
    them subtracts it again: it never has a gradient, and takes time. So 112,980
    parameters count here for the original's 113,236.

    Args:
        image_shape: height, width and channels of the images.
        classes: units of the linear layer, whose outputs are logits.
        filters: filters of each convolution.
        blocks: how many blocks. Each halves height and width.

    Returns:
        A built Keras model from [batch, height, width, channels] to [batch, classes].
    """
    images = keras.Input(image_shape)
    features = images
    for block in range(1, blocks + 1):
        features = keras.layers.Conv2D(
            filters, 3, padding="same", use_bias=False, name=f"conv{block}"
        )(features)
        features = BatchNormalization(name=f"norm{block}")(features)
        features = keras.layers.MaxPool2D(2, name=f"pool{block}")(features)
        features = keras.layers.ReLU(name=f"relu{block}")(features)
    features = keras.layers.Flatten(name="flatten")(features)
    return keras.Model(images, keras.layers.Dense(classes, name="head")(features), name="conv_net")


def mlp(
    inputs: int = 1, outputs: int = 1, hidden: Sequence[int] = (40, 40), activation: str = "relu"
) -> keras.Model:
    """Builds a multi-layer perceptron with a linear output layer named "head".

    Args:
        inputs: features of an example.
        outputs: units of the output layer.
        hidden: units of each hidden layer. The default is that of Finn et al. 2017.
        activation: of the hidden layers.

    Returns:
        A built Keras model from [batch, inputs] to [batch, outputs].
    """
    layers = [keras.layers.Dense(units, activation=activation) for units in hidden]
    return keras.Sequential(
        [keras.layers.Input((inputs,)), *layers, keras.layers.Dense(outputs, name="head")],
        name="mlp",
    )
