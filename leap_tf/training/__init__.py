"""The task loop in the graph, the outer loop, stopping, checkpoints and metrics."""

from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError
from leap_tf.training.evaluation import Evaluation, TaskEvaluation, area_under_curve, steps_to
from leap_tf.training.mastery import StopWhenMastered
from leap_tf.training.meta_trainer import MetaTrainer, MetaTrainingDivergedError
from leap_tf.training.metrics_log import MetricsLog, read_metrics
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.task_loop import TaskLoop, TaskResult
from leap_tf.training.task_pool import TaskPool, ThreadPool
from leap_tf.training.threads import available_cores, one_thread_per_task

__all__ = [
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "Evaluation",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MetricsLog",
    "ProgressDisplay",
    "StopWhenMastered",
    "TaskEvaluation",
    "TaskLoop",
    "TaskPool",
    "TaskResult",
    "ThreadPool",
    "area_under_curve",
    "available_cores",
    "one_thread_per_task",
    "read_metrics",
    "steps_to",
]
