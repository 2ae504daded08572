"""Leap for TensorFlow and Keras: learn the initialization from which training is shortest.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019.
"""

from leap_tf.learners import Leap, LeapOptimizer, Learner, PlainTraining
from leap_tf.models import conv_net, mlp
from leap_tf.tasks import (
    ArrayTask,
    FiniteTasks,
    MissingDataError,
    Sinusoids,
    Task,
    TaskDistribution,
    TaskSplits,
    alphabet_splits,
    sinusoid_splits,
)
from leap_tf.training import (
    CheckpointMismatchError,
    CheckpointUnreadableError,
    Evaluation,
    MetaTrainer,
    MetaTrainingDivergedError,
    TaskEvaluation,
    one_thread_per_task,
)

__version__ = "0.1.0"

__all__ = [
    "ArrayTask",
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "Evaluation",
    "FiniteTasks",
    "Leap",
    "LeapOptimizer",
    "Learner",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MissingDataError",
    "PlainTraining",
    "Sinusoids",
    "Task",
    "TaskDistribution",
    "TaskEvaluation",
    "TaskSplits",
    "alphabet_splits",
    "conv_net",
    "mlp",
    "one_thread_per_task",
    "sinusoid_splits",
]
