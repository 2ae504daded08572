"""The four-block ConvNet of few-shot learning (Vinyals et al. 2016), as the paper uses it."""

import keras

from leap_tf.models.batch_normalization import BatchNormalization


def conv_net(
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 20,
    filters: int = 64,
    blocks: int = 4,
) -> keras.Model:
    """Builds blocks of conv 3×3, batch norm, 2×2 max-pool and ReLU, and a linear layer "head".

    The paper names ReLU before max-pool (appendix D). Both orders give the same outputs and
    gradients, since max and ReLU commute; pooling first leaves ReLU a quarter of the work.

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
        features = keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{block}")(features)
        features = BatchNormalization(name=f"norm{block}")(features)
        features = keras.layers.MaxPool2D(2, name=f"pool{block}")(features)
        features = keras.layers.ReLU(name=f"relu{block}")(features)
    features = keras.layers.Flatten(name="flatten")(features)
    return keras.Model(images, keras.layers.Dense(classes, name="head")(features), name="conv_net")
