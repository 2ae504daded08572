"""How the images of the Multi-CV data sets are brought to one size and one scale.

The means and deviations are those of the code of Serrà et al., "Overcoming catastrophic forgetting
with hard attention to the task" (ICML 2018), as appendix G of Flennerhag et al. (2019) has it.
Those of MNIST and Fashion-MNIST are of padded images, those of notMNIST of images that were
scaled to 32×32. CIFAR-100 has those of CIFAR-10.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

IMAGE_SIZE = 32


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels in [0, 1], for each channel or for all."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


_CIFAR = Normalization(
    (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
)
NORMALIZATIONS = {
    "facescrub": Normalization((0.5163, 0.5569, 0.4695), (0.2307, 0.2272, 0.2479)),
    "not_mnist": Normalization((0.4254,), (0.4501,)),
    "mnist": Normalization((0.1,), (0.2752,)),
    "fashion_mnist": Normalization((0.2190,), (0.3318,)),
    "cifar10": _CIFAR,
    "svhn_cropped": Normalization((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "cifar100": _CIFAR,
    "gtsrb": Normalization((0.3398, 0.3117, 0.3210), (0.2755, 0.2647, 0.2712)),
}


@functools.cache
def normalize(normalization: Normalization) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function, always the same one, that prepares a data set's images.

    It maps uint8 [b, h, w, 1 or 3], h and w at most 32, to float32 [b, 32, 32, 3]: zeros all
    around if the image is smaller, then (pixel / 255 − mean) / deviation, then grey repeated for
    all channels. Larger images, or such of unknown size, are a ValueError.
    """

    def prepare(images):
        if any(side is None or side > IMAGE_SIZE for side in images.shape[1:3]):
            raise ValueError(
                f"Images of shape {tuple(images.shape)} do not fit into {IMAGE_SIZE}×{IMAGE_SIZE} "
                "pixels, and nothing is cut off. Scale them where the data set is prepared."
            )
        padded = tf.image.resize_with_crop_or_pad(images, IMAGE_SIZE, IMAGE_SIZE)
        scaled = tf.cast(padded, tf.float32) / 255.0
        normalized = (scaled - list(normalization.mean)) / list(normalization.deviation)
        return tf.tile(normalized, [1, 1, 1, 3 // images.shape[-1]])

    return prepare
