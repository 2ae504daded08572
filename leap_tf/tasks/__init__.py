"""Task distributions over `tf.data` and `tensorflow-datasets`."""

from leap_tf.tasks.alphabets import alphabet_splits, alphabet_task
from leap_tf.tasks.arrays import ArrayTask
from leap_tf.tasks.datasets import MissingDataError, open_dataset
from leap_tf.tasks.mixed import MixedTask
from leap_tf.tasks.multi_cv import DataSetTask, multi_cv_splits
from leap_tf.tasks.numbered import NumberedTask, number_of_each
from leap_tf.tasks.sinusoids import Sinusoids, sinusoid_splits
from leap_tf.tasks.task import FiniteTasks, Task, TaskDistribution, TaskSplits

__all__ = [
    "ArrayTask",
    "DataSetTask",
    "FiniteTasks",
    "MissingDataError",
    "MixedTask",
    "NumberedTask",
    "Sinusoids",
    "Task",
    "TaskDistribution",
    "TaskSplits",
    "alphabet_splits",
    "alphabet_task",
    "multi_cv_splits",
    "number_of_each",
    "open_dataset",
    "sinusoid_splits",
]
