"""Leap for TensorFlow and Keras: learn the initialization from which training is shortest.

Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019.
"""

import importlib

from leap_tf.comparison import ComparedRun, Comparison, compare
from leap_tf.errors import LeapError
from leap_tf.experiments.user_modules import configurable
from leap_tf.functional import UnsupportedModelError
from leap_tf.learners import (
    ANIL,
    FOMAML,
    HAT,
    MAML,
    JointTraining,
    Leap,
    Learner,
    MetaSGD,
    NoMetaLearning,
    ProgressiveNets,
    Reptile,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
    TrainingPlan,
    TrainingSetup,
)
from leap_tf.models import conv_net, mlp
from leap_tf.optimizer import LeapOptimizer
from leap_tf.serving import adapt, adapted_model, export
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
    Evaluation,
    EvaluationConfig,
    JSONLogger,
    MetaTrainer,
    MetaTrainingDivergedError,
    StopAtError,
    StopOnPlateau,
    Study,
    TaskEvaluation,
    TaskFailedError,
    TaskPoolError,
    configure_threads,
)

__version__ = "0.2.0"

# fmt: off
__all__ = [
    "ANIL", "FOMAML", "HAT", "MAML", "ArrayTask", "CheckpointMismatchError",
    "CheckpointUnreadableError", "ComparedRun", "Comparison", "Evaluation", "EvaluationConfig",
    "FiniteTasks", "JSONLogger", "JointTraining", "Leap", "LeapError", "LeapOptimizer", "Learner",
    "MetaSGD", "MetaTrainer", "MetaTrainingDivergedError", "NoMetaLearning", "ProgressiveNets",
    "Reptile", "Sinusoids", "StatelessLearner", "StopAtError", "StopOnPlateau", "Study", "Task",
    "TaskDistribution", "TaskEnd", "TaskEvaluation", "TaskFailedError", "TaskPoolError",
    "TaskSplits", "TaskUpdate", "TrainingPlan", "TrainingSetup", "UnsupportedModelError", "adapt",
    "adapted_model", "compare", "configurable", "configure_threads", "conv_net", "export", "mlp",
    "sinusoid_splits",
]
# fmt: on


def __getattr__(name: str):
    """Loads `leap_tf.datasets` at its first use, since it needs TensorFlow Datasets."""
    if name == "datasets":
        return importlib.import_module("leap_tf.datasets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
