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
