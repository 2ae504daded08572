"""The task loop in the graph, the outer loop, stopping, checkpoints and metrics."""

from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError
from leap_tf.training.collapse_warning import CollapseWarning
from leap_tf.training.evaluation import Evaluation, TaskEvaluation, area_under_curve, steps_to
from leap_tf.training.meta_loop import MetaLoop
from leap_tf.training.meta_trainer import MetaTrainer
from leap_tf.training.meta_update import MetaTrainingDivergedError
from leap_tf.training.metrics_log import MetricsLog, read_metrics
from leap_tf.training.parts import (
    Divisible,
    Parts,
    UnfitPartsError,
    parts_of_record,
    record_of_parts,
)
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.seeded_task import SeededTask, TaskAddress, TrainedTask
from leap_tf.training.stop_rules import StopRule, StopWhenMastered, StopWhenStalled
from leap_tf.training.task_loop import TaskLoop, TaskResult
from leap_tf.training.task_pool import (
    Job,
    TaskFailedError,
    TaskFailure,
    TaskPool,
    TaskPoolError,
    ThreadPool,
    map_in_threads,
)
from leap_tf.training.tensorboard_log import TensorBoardLog
from leap_tf.training.threads import available_cores, one_thread_per_task

__all__ = [
    "CheckpointMismatchError",
    "CheckpointUnreadableError",
    "CollapseWarning",
    "Divisible",
    "Evaluation",
    "Job",
    "MetaLoop",
    "MetaTrainer",
    "MetaTrainingDivergedError",
    "MetricsLog",
    "Parts",
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
    "UnfitPartsError",
    "area_under_curve",
    "available_cores",
    "map_in_threads",
    "one_thread_per_task",
    "parts_of_record",
    "read_metrics",
    "record_of_parts",
    "steps_to",
]
