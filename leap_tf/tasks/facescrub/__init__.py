"""The TFDS data set `facescrub`. Importing this makes it known to `tfds.load`."""

from leap_tf.tasks.facescrub.facescrub_dataset_builder import Facescrub

__all__ = ["Facescrub"]
