"""The TFDS data set `gtsrb`. Importing this makes it known to `tfds.load`."""

from leap_tf.tasks.gtsrb.gtsrb_dataset_builder import Gtsrb

__all__ = ["Gtsrb"]
