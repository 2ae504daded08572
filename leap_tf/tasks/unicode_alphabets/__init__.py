"""The TFDS data set `unicode_alphabets`. Importing this makes it known to `tfds.load`."""

from leap_tf.tasks.unicode_alphabets.unicode_alphabets_dataset_builder import UnicodeAlphabets

__all__ = ["UnicodeAlphabets"]
