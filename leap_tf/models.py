"""Small models for meta-learning: a convolutional network and a multi-layer perceptron."""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf


def conv_net(
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 20,
    filters: int = 64,
    blocks: int = 4,
    *,
    strided: bool = False,
    average: bool = False,
) -> keras.Model:
    """Builds the convolutional network of few-shot learning with a linear layer "head".

    A block has a 3×3 convolution, batch normalization, 2×2 max-pooling and ReLU. Two differences
    from the original code save time and change no output and no gradient. Pooling precedes ReLU,
    since the two commute. Convolutions have no bias, since batch normalization would subtract it.
    So the default has 112,980 parameters instead of 113,236.

    Source: Vinyals et al., "Matching Networks for One Shot Learning", 2016; Flennerhag et al. 2019,
    appendix D.

    Args:
        image_shape: height, width and channels.
        classes: number of logits.
        filters: filters of each convolution.
        blocks: number of blocks. Each halves height and width.
        strided: whether convolutions of stride 2 take the place of pooling. The networks for
            Omniglot of Finn et al. 2017 and Nichol et al. 2018 have them.
        average: whether the head sees the mean of the features over all positions (Finn et al.
            2017) instead of all of them.

    Returns:
        A built Keras model from [batch, height, width, channels] to logits [batch, classes].

    Example:

        >>> import leap_tf
        >>> leap_tf.conv_net(classes=5).output_shape
        (None, 5)
    """
    images = keras.Input(image_shape)
    features = images
    options = {"strides": 2 if strided else 1, "padding": "same", "use_bias": False}
    for block in range(1, blocks + 1):
        features = keras.layers.Conv2D(filters, 3, name=f"conv{block}", **options)(features)
        features = BatchNormalization(name=f"norm{block}")(features)
        if not strided:
            features = MaxPooling2D(name=f"pool{block}")(features)
        features = keras.layers.ReLU(name=f"relu{block}")(features)
    if average:
        features = keras.layers.GlobalAveragePooling2D(name="average")(features)
    else:
        features = keras.layers.Flatten(name="flatten")(features)
    return keras.Model(images, keras.layers.Dense(classes, name="head")(features), name="conv_net")


def mlp(
    inputs: int = 1, outputs: int = 1, hidden: Sequence[int] = (40, 40), activation: str = "relu"
) -> keras.Model:
    """Builds a multi-layer perceptron with a linear layer "head".

    Args:
        inputs: number of features of an example.
        outputs: units of the output layer.
        hidden: units of each hidden layer. The default is that of Finn et al. 2017.
        activation: activation of the hidden layers.

    Returns:
        A built Keras model from [batch, inputs] to [batch, outputs].

    Example:

        >>> import leap_tf
        >>> leap_tf.mlp(inputs=2).count_params()
        1801
    """
    layers = [keras.layers.Dense(units, activation=activation) for units in hidden]
    return keras.Sequential(
        [keras.layers.Input((inputs,)), *layers, keras.layers.Dense(outputs, name="head")],
        name="mlp",
    )


@keras.saving.register_keras_serializable(package="leap_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` for short tasks, with TensorFlow's fused kernel.

    Keras computes moments and normalization from elementary operations, which on a CPU takes a
    large part of the time of a small network. The fused kernel gives the same output, and an
    unbiased running variance as in PyTorch and the original code. It is used in training on float32
    images [b, h, w, c]; everything else (other ranks, masks, mixed precision) runs as in Keras.

    Args:
        momentum: weight of the past in the running statistics. Keras's default 0.99 would
            leave 37 % of the initial statistics after a task of 100 steps; 0.9 leaves none.
        epsilon: added to the variance.
        **kwargs: as for `keras.layers.BatchNormalization`.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        can_fuse = (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype == "float32"
            and self.center
            and self.scale
            and not self.synchronized
            and not self.renorm
        )
        if not (training and self.trainable and can_fuse):
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


@keras.saving.register_keras_serializable(package="leap_tf")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with fast second derivatives on CPUs.

    Outputs and gradients are the same. TensorFlow's second derivatives of max-pooling do not run on
    oneDNN's kernels. They are replaced for windows of 2×2; everything else runs as in Keras.
    """

    def call(self, inputs):
        windows = self.pool_size, tuple(self.strides), self.padding, self.data_format
        halves = windows == ((2, 2), (2, 2), "valid", "channels_last")
        # Outside graphs, nothing would remove the mask where it is not used.
        return _max_pool(inputs) if halves and not tf.executing_eagerly() else super().call(inputs)


_WINDOWS = {"ksize": (1, 2, 2, 1), "strides": (1, 2, 2, 1), "padding": "VALID"}


@tf.custom_gradient
def _max_pool(images):
    largest = tf.raw_ops.MaxPool(input=images, **_WINDOWS)
    operands = {"orig_input": images, "orig_output": largest, **_WINDOWS}
    # 1 where a window has its first largest value
    mask = tf.raw_ops.MaxPoolGrad(grad=tf.ones_like(largest), **operands)
    passes = itertools.count()

    @tf.custom_gradient
    def first_pass(upstream):
        routed = tf.raw_ops.MaxPoolGrad(grad=upstream, **operands)
        return routed, lambda of_routed: 4.0 * tf.nn.avg_pool2d(mask * of_routed, 2, 2, "VALID")

    def gradient(upstream):
        if not next(passes):
            return first_pass(upstream)
        # The same numbers: MaxPoolGrad is slow in another function than its MaxPool.
        shape = tf.shape(images)
        spread = tf.raw_ops.AvgPoolGrad(orig_input_shape=shape, grad=4.0 * upstream, **_WINDOWS)
        return mask * spread

    return largest, gradient
