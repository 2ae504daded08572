"""Leap for TensorFlow and Keras: learn the initialization from which training is shortest.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019.
"""

from leap_tf.learners import (
    ANIL,
    FOMAML,
    HAT,
    MAML,
    Leap,
    LeapOptimizer,
    Learner,
    MetaSGD,
    MultiHeadedFinetuning,
    PlainTraining,
    ProgressiveNets,
    Reptile,
)
from leap_tf.models import conv_net, mlp
from leap_tf.serving import adapted_model, export
from leap_tf.tasks import (
    ArrayTask,
    FiniteTasks,
    MissingDataError,
    Sinusoids,
    Task,
    TaskDistribution,
    TaskSplits,
    alphabet_splits,
    multi_cv_splits,
    sinusoid_splits,
)
from leap_tf.training import (
    CheckpointMismatchError,
    CheckpointUnreadableError,
    Evaluation,
    MetaTrainer,
    MetaTrainingDivergedError,
    StopWhenMastered,
    StopWhenStalled,
    TaskEvaluation,
    one_thread_per_task,
)
from leap_tf.version import __version__ as __version__

__all__ = [
    "ANIL",
    "FOMAML",
    "HAT",
    "MAML",
    "ArrayTask",
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "Evaluation",
    "FiniteTasks",
    "Leap",
    "LeapOptimizer",
    "Learner",
    "MetaSGD",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MissingDataError",
    "MultiHeadedFinetuning",
    "PlainTraining",
    "ProgressiveNets",
    "Reptile",
    "Sinusoids",
    "StopWhenMastered",
    "StopWhenStalled",
    "Task",
    "TaskDistribution",
    "TaskEvaluation",
    "TaskSplits",
    "adapted_model",
    "alphabet_splits",
    "conv_net",
    "export",
    "mlp",
    "multi_cv_splits",
    "one_thread_per_task",
    "sinusoid_splits",
]
