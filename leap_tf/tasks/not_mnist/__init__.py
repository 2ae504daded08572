"""The TFDS data set `not_mnist`. Importing this makes it known to `tfds.load`."""

from leap_tf.tasks.not_mnist.not_mnist_dataset_builder import NotMnist

__all__ = ["NotMnist"]
