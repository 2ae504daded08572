"""The task loop in the graph, the outer loop, stopping, checkpoints and metrics."""

from leap_tf.training.callbacks import (
    CollapseWarning,
    MetricsLog,
    ProgressDisplay,
    TensorBoardLog,
    read_metrics,
)
from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError
from leap_tf.training.early_stopping import StopRule, StopWhenMastered, StopWhenStalled
from leap_tf.training.evaluation import Evaluation, TaskEvaluation, area_under_curve, steps_to
from leap_tf.training.inner_loop import TaskLoop, TaskResult
from leap_tf.training.meta_batch import MetaTrainingDivergedError
from leap_tf.training.meta_loop import MetaLoop
from leap_tf.training.meta_trainer import MetaTrainer
from leap_tf.training.pools import (
    Job,
    TaskFailedError,
    TaskFailure,
    TaskPool,
    TaskPoolError,
    ThreadPool,
    available_cores,
    map_in_threads,
    one_thread_per_task,
)
from leap_tf.training.problem import SeededTask, TaskAddress, TrainedTask

__all__ = [
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "CollapseWarning",
    "Evaluation",
    "Job",
    "MetaLoop",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MetricsLog",
    "ProgressDisplay",
    "SeededTask",
    "StopRule",
    "StopWhenMastered",
    "StopWhenStalled",
    "TaskAddress",
    "TaskEvaluation",
    "TaskFailedError",
    "TaskFailure",
    "TaskLoop",
    "TaskPool",
    "TaskPoolError",
    "TaskResult",
    "TensorBoardLog",
    "ThreadPool",
    "TrainedTask",
    "area_under_curve",
    "available_cores",
    "map_in_threads",
    "one_thread_per_task",
    "read_metrics",
    "steps_to",
]
