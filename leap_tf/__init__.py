"""Leap for TensorFlow and Keras: learn the initialization from which training is shortest.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019.
"""

import importlib

from leap_tf.learners import (
    ANIL,
    FOMAML,
    HAT,
    MAML,
    Leap,
    Learner,
    MetaSGD,
    MultiHeadedFinetuning,
    PlainTraining,
    ProgressiveNets,
    Reptile,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
)
from leap_tf.models import conv_net, mlp
from leap_tf.optimizer import LeapOptimizer
from leap_tf.serving import adapted_model, export
from leap_tf.tasks import (
    ArrayTask,
    FiniteTasks,
    Sinusoids,
    Task,
    TaskDistribution,
    TaskSplits,
    sinusoid_splits,
)
from leap_tf.training import (
    CheckpointMismatchError,
    CheckpointUnreadableError,
    CollapseWarning,
    Evaluation,
    MetaTrainer,
    MetaTrainingDivergedError,
    MetricsLog,
    StopWhenMastered,
    StopWhenStalled,
    TaskEvaluation,
    TaskFailedError,
    TaskPoolError,
    one_thread_per_task,
)

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "FOMAML",
    "HAT",
    "MAML",
    "ArrayTask",
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "CollapseWarning",
    "Evaluation",
    "FiniteTasks",
    "Leap",
    "LeapOptimizer",
    "Learner",
    "MetaSGD",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MetricsLog",
    "MultiHeadedFinetuning",
    "PlainTraining",
    "ProgressiveNets",
    "Reptile",
    "Sinusoids",
    "StatelessLearner",
    "StopWhenMastered",
    "StopWhenStalled",
    "Task",
    "TaskDistribution",
    "TaskEnd",
    "TaskEvaluation",
    "TaskFailedError",
    "TaskPoolError",
    "TaskSplits",
    "TaskUpdate",
    "adapted_model",
    "conv_net",
    "export",
    "mlp",
    "one_thread_per_task",
    "sinusoid_splits",
]


def __getattr__(name: str):
    """Loads `leap_tf.datasets` at its first use, since it needs TensorFlow Datasets."""
    if name == "datasets":
        return importlib.import_module("leap_tf.datasets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
