"""The task loop in the graph, the outer loop, stopping, checkpoints and metrics."""

from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError
from leap_tf.training.evaluation import Evaluation, TaskEvaluation, area_under_curve, steps_to
from leap_tf.training.meta_loop import MetaLoop, MetaTrainingDivergedError
from leap_tf.training.meta_trainer import MetaTrainer
from leap_tf.training.metrics_log import MetricsLog, read_metrics
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.seeded_task import SeededTask, TrainedTask
from leap_tf.training.stop_rules import StopRule, StopWhenMastered, StopWhenStalled
from leap_tf.training.task_loop import TaskLoop, TaskResult
from leap_tf.training.task_pool import TaskPool, ThreadPool
from leap_tf.training.threads import available_cores, one_thread_per_task

__all__ = [
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "Evaluation",
    "MetaLoop",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MetricsLog",
    "ProgressDisplay",
    "SeededTask",
    "StopRule",
    "StopWhenMastered",
    "StopWhenStalled",
    "TaskEvaluation",
    "TaskLoop",
    "TaskPool",
    "TaskResult",
    "ThreadPool",
    "TrainedTask",
    "area_under_curve",
    "available_cores",
    "one_thread_per_task",
    "read_metrics",
    "steps_to",
]
