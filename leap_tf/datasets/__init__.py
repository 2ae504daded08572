"""Task distributions over data sets, prepared for TensorFlow Datasets.

This package needs the extra `datasets`. `import leap_tf` does not load it.
"""

from leap_tf.datasets.alphabets import alphabet_splits, alphabet_task
from leap_tf.datasets.episodes import Episode, Episodes, episode_splits, episodes
from leap_tf.datasets.multi_cv import DataSetTask, multi_cv_splits
from leap_tf.datasets.sources import Classes, MissingDataError, load_classes, open_dataset

# fmt: off
__all__ = [
    "Classes", "DataSetTask", "Episode", "Episodes", "MissingDataError", "alphabet_splits",
    "alphabet_task", "episode_splits", "episodes", "load_classes", "multi_cv_splits",
    "open_dataset",
]
# fmt: on
