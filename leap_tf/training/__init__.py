"""The inner loop in the graph, the outer loop, stopping, checkpoints and metrics."""

from leap_tf.training.callbacks import (
    JSONLogger,
    ProgressDisplay,
    TensorBoardLogger,
    read_metrics,
)
from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError
from leap_tf.training.early_stopping import StopAtError, StopOnPlateau, StopRule
from leap_tf.training.evaluation import (
    Evaluation,
    EvaluationConfig,
    TaskEvaluation,
    area_under_curve,
    steps_to,
)
from leap_tf.training.inner_loop import InnerLoop, InnerLoopResult, inner_step
from leap_tf.training.meta_trainer import MetaTrainer, ThreadPool
from leap_tf.training.pools import (
    Job,
    TaskFailedError,
    TaskFailure,
    TaskPool,
    TaskPoolError,
    available_cores,
    configure_threads,
)
from leap_tf.training.problem import MetaTrainingDivergedError, Problem, Study, TaskGradient
from leap_tf.training.sampling import TaskSampler, TaskSpec
from leap_tf.training.supervised import SupervisedProblem

# fmt: off
__all__ = [
    "CheckpointMismatchError", "CheckpointUnreadableError", "Evaluation",
    "EvaluationConfig", "InnerLoop", "InnerLoopResult", "JSONLogger", "Job", "MetaTrainer",
    "MetaTrainingDivergedError", "Problem", "ProgressDisplay", "StopAtError", "StopOnPlateau",
    "StopRule", "Study", "SupervisedProblem", "TaskEvaluation", "TaskFailedError",
    "TaskFailure", "TaskGradient", "TaskPool", "TaskPoolError", "TaskSampler", "TaskSpec",
    "TensorBoardLogger", "ThreadPool", "area_under_curve", "available_cores",
    "configure_threads", "inner_step", "read_metrics", "steps_to",
]
# fmt: on
