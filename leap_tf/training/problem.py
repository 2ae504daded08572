"""The interface between the outer loop and the training of single tasks.

`MetaTrainer` knows nothing of batches or games. A problem does: it samples tasks, trains on one of
them and returns a meta-gradient, and adapts to one of them and returns how well that went.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from leap_tf.geometry import accumulator_dtype
from leap_tf.learners.base import Learner, TrainingPlan, TrainingSetup
from leap_tf.serialization import SerializationError
from leap_tf.tasks import TaskSplits
from leap_tf.training.sampling import TaskSampler, TaskSpec


@dataclasses.dataclass(frozen=True)
class TaskGradient:
    """The result of training on a task.

    Attributes:
        meta_gradient: one tensor per meta-learned variable.
        metrics: means over the steps, the last loss, and what the learner reports.
        finite: whether every loss and all of the meta-gradient is finite.
        state: one tensor per variable of the plan's persistent state.
    """

    meta_gradient: Sequence[tf.Tensor]
    metrics: Mapping[str, float]
    finite: bool
    state: Sequence[tf.Tensor] = ()


class Summary(Protocol):
    """The evaluation of several tasks."""

    def metrics(self) -> Mapping[str, float]:
        """Returns the means over the tasks, by name."""


class Problem(Protocol):
    """Trains and evaluates on single tasks, from the present initialization.

    It changes no variable, so any number of threads can use one problem.

    Attributes:
        setup: what meta-training was asked for.
        learner: the meta-learner, which has been built.
        plan: which models are trained on which tasks.
        sampler: finds the task of a `TaskSpec`.
        meta_variables: the meta-learned variables, those of the learner among them.
        learner_variables: the learner's own variables.
        variables: all variables that results depend on; what a checkpoint must hold.
        evaluation_type: the dataclass that `evaluate` returns.
    """

    setup: TrainingSetup
    learner: Learner
    plan: TrainingPlan
    sampler: TaskSampler
    meta_variables: list[keras.Variable]
    learner_variables: list[keras.Variable]
    variables: list[keras.Variable]
    gradient_type: type[TaskGradient]
    evaluation_type: type

    def get_config(self) -> dict[str, Any]:
        """Returns the settings that results depend on, beside those of the setup."""

    def train(self, spec: TaskSpec) -> TaskGradient:
        """Trains on a task and returns its meta-gradient."""

    def evaluate(self, spec: TaskSpec) -> Any:
        """Adapts to a task without a meta-learner and returns how well that went."""

    def summarize(self, results: Sequence[Any]) -> Summary:
        """Returns the evaluation of several tasks as one."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A trainer and the tasks it is for.

    Attributes:
        trainer: its model is fresh until something trains it.
        tasks: the distribution that is trained on, and the lists that are evaluated. The trainer
            is told of them, so that a pool in other processes can find them.
    """

    trainer: Any
    tasks: TaskSplits

    def __post_init__(self):
        self.trainer.tasks = self.tasks
        sampler = self.trainer.problem.sampler
        sampler.use_distribution(self.tasks.train)
        sampler.use_list("validation", self.tasks.validation)
        sampler.use_list("test", self.tasks.test)


def check_gradient(result: TaskGradient, problem: Problem) -> None:
    """Checks that a result from another process fits the variables of this one.

    Raises:
        SerializationError: the number, shape or dtype of its tensors is another.
    """
    meta = [(v, accumulator_dtype(tf.as_dtype(v.dtype)).name) for v in problem.meta_variables]
    persistent = [(v, v.dtype) for v in problem.plan.persistent_state]
    for tensors, variables in ((result.meta_gradient, meta), (result.state, persistent)):
        if len(tensors) != len(variables):
            raise SerializationError(
                f"A result has {len(tensors)} tensors where the study has {len(variables)} "
                "variables."
            )
        for tensor, (variable, summed) in zip(tensors, variables):
            dtype = tensor.dtype.name
            if tensor.shape != variable.shape or dtype not in (variable.dtype, summed):
                raise SerializationError(
                    f"A result has {dtype} {tuple(tensor.shape)} where {variable.path} is "
                    f"{variable.dtype} {tuple(variable.shape)}."
                )
