"""Task distributions over `tf.data` and `tensorflow-datasets`."""

from leap_tf.tasks.arrays import ArrayTask
from leap_tf.tasks.sinusoids import Sinusoids
from leap_tf.tasks.task import FiniteTasks, Task, TaskDistribution

__all__ = [
    "ArrayTask",
    "FiniteTasks",
    "Sinusoids",
    "Task",
    "TaskDistribution",
]
