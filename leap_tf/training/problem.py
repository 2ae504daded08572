"""The interface between the outer loop and the training of single tasks.

`MetaTrainer` depends on this interface only. A `Problem` hides what a task is made of: batches, or
games. It samples tasks, trains on one task and returns its meta-gradient, and adapts to one task
and returns its evaluation.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.functional import apply_if_finite, check_meta_optimizer
from leap_tf.geometry import accumulator_dtype
from leap_tf.learners.base import Learner, TrainingPlan, TrainingSetup
from leap_tf.serialization import SerializationError
from leap_tf.tasks import TaskSplits
from leap_tf.training.callbacks import with_batch_hooks
from leap_tf.training.checkpoint import describe
from leap_tf.training.pools import Job, TaskFailedError, TaskFailure, TaskPool
from leap_tf.training.sampling import TaskSampler, TaskSpec, as_distribution, describe_tasks, plain

_LOGGER = logging.getLogger("leap_tf")


@dataclasses.dataclass(frozen=True)
class TaskGradient:
    """The result of training on a task.

    Attributes:
        meta_gradient: one tensor per meta-learned variable.
        metrics: means over the steps, the last loss, the learner's metrics and "gradient_steps".
        finite: whether every loss, the adapted weights and the meta-gradient are finite.
        state: the final value of each of the problem's `state_variables`, in their order.
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
        setup, learner, plan: the settings, the learner after `build`, and its plan.
        sampler: finds the task of a `TaskSpec`.
        meta_variables: the meta-learned variables, with the `learner_variables` among them.
        state_variables: non-trainable variables that a meta-step sets to the mean of their final
            values over its tasks.
        variables: all variables that results depend on; what a checkpoint must hold.
        gradient_type, evaluation_type: the dataclasses that `train` and `evaluate` return.
        on_result: None, or a function that the outer loop calls with the result of every training
            task, in the order of the tasks.
        stop_requested: returns whether `fit` was asked to stop. The trainer sets it. A long task
            may call it and raise an error to end early.
    """

    setup: TrainingSetup
    learner: Learner
    plan: TrainingPlan
    sampler: TaskSampler
    meta_variables: list[keras.Variable]
    learner_variables: list[keras.Variable]
    state_variables: list[keras.Variable]
    variables: list[keras.Variable]
    gradient_type: Any
    evaluation_type: Any
    on_result: Callable[[Any], None] | None
    stop_requested: Callable[[], bool]

    def get_config(self) -> dict[str, Any]:
        """Returns the settings that results depend on and that are not in `setup`."""

    def train(self, spec: TaskSpec) -> TaskGradient:
        """Trains on a task and returns its meta-gradient.

        A pool turns an exception into a `TaskFailure`.
        """

    def evaluate(self, spec: TaskSpec) -> Any:
        """Adapts to a task with the learner's direction and returns the evaluation."""

    def summarize(self, results: Sequence[Any]) -> Summary:
        """Combines the evaluations of several tasks into one."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A trainer and the tasks of its study, which it gives to the trainer's task sampler.

    Attributes:
        trainer: a `MetaTrainer` whose model still has its initial weights.
        tasks: the distribution to meta-train on and the lists to evaluate. A pool of other
            processes, each of which builds the same study, can run only these tasks.
    """

    trainer: Any
    tasks: TaskSplits

    def __post_init__(self):
        self.trainer.problem.sampler.use_study(self.tasks)


def check_setup(problem: Problem) -> None:
    """Checks the number of steps and the meta-optimizer of a problem.

    Raises:
        TypeError: the meta-optimizer is not a Keras optimizer.
        ValueError: there are too few steps, or the meta-optimizer cannot be used.
    """
    setup = problem.setup
    if setup.steps_per_task < problem.plan.minimum_steps:
        raise ValueError(
            f"steps_per_task must be at least {problem.plan.minimum_steps} for "
            f"{type(problem.learner).__name__}. Received: {setup.steps_per_task}."
        )
    evaluation_optimizer = getattr(problem, "evaluation_optimizer", None)
    check_meta_optimizer(setup.meta_optimizer, setup.inner_optimizer, evaluation_optimizer)


def settings_of(problem: Problem) -> dict[str, Any]:
    """Returns all settings of a `Problem` that results depend on, apart from seed and tasks."""
    setup = problem.setup
    return {
        **problem.get_config(),
        "learner": describe(problem.learner),
        "inner_optimizer": describe(setup.inner_optimizer),
        "meta_optimizer": describe(setup.meta_optimizer),
        "stopping": describe(setup.stopping),
        "running_statistics": setup.running_statistics,
        "steps_per_task": setup.steps_per_task,
        "meta_batch_size": setup.meta_batch_size,
    }


def describe_study(problem: Problem, tasks: TaskSplits) -> dict[str, Any]:
    """Returns JSON descriptions of all that the results of a supervised problem depend on."""
    evaluated = {"validation": tasks.validation, "test": tasks.test}
    return {
        "settings": settings_of(problem),
        "evaluation": plain(getattr(problem, "evaluation", None)),
        "weights": [list(each.shape) for each in problem.variables],
        "train": describe_tasks(tasks.train, problem.setup.meta_batch_size),
    } | {part: describe_tasks(as_distribution(each)) for part, each in evaluated.items() if each}


def training_job(problem: Problem) -> Job:
    """Returns the job that trains on tasks."""
    return dataclasses.replace(
        evaluation_job(problem),
        kind="train",
        run=problem.train,
        result_type=problem.gradient_type,
        check=lambda result: check_gradient(result, problem),
    )


def evaluation_job(problem: Problem) -> Job:
    """Returns the job that evaluates tasks."""
    return Job(
        kind="evaluate",
        run=problem.evaluate,
        task_name=lambda spec: problem.sampler.resolve(spec).name,
        result_type=problem.evaluation_type,
        check=lambda result: None,
        variables=problem.variables,
    )


def check_gradient(result: TaskGradient, problem: Problem) -> None:
    """Checks that a result from another process fits the variables of this one.

    Raises:
        SerializationError: the number, a shape or a dtype of its tensors differs.
    """
    meta = [(v, accumulator_dtype(tf.as_dtype(v.dtype)).name) for v in problem.meta_variables]
    state = [(v, v.dtype) for v in problem.state_variables]
    for tensors, variables in ((result.meta_gradient, meta), (result.state, state)):
        if len(tensors) != len(variables):
            raise SerializationError(
                f"A result has {len(tensors)} tensors where the study has {len(variables)} "
                "variables. Build the same study in every process."
            )
        for tensor, (variable, summed) in zip(tensors, variables):
            dtype = tensor.dtype.name
            if tensor.shape != variable.shape or dtype not in (variable.dtype, summed):
                raise SerializationError(
                    f"A result has {dtype} {tuple(tensor.shape)} where {variable.path} is "
                    f"{variable.dtype} {tuple(variable.shape)}."
                )


def evaluate_specs(
    problem: Any, pool: TaskPool, specs: Sequence[TaskSpec], callbacks: Any, stoppable: bool
) -> Any:
    """Evaluates tasks on a pool, calls the test hooks, and returns the summary of the problem.

    Raises:
        StopRequestedError: it is `stoppable`, and a stop was requested.
        Exception: the exception of a task that failed.
    """
    results: list[Any] = []
    callbacks.on_test_begin()
    begin, end = callbacks.on_test_batch_begin, callbacks.on_test_batch_end
    with contextlib.closing(pool.map(evaluation_job(problem), specs)) as found:
        for result in with_batch_hooks(
            found, len(specs), begin, end, lambda each: problem.summarize([each]).metrics()
        ):
            if stoppable and problem.stop_requested():
                raise StopRequestedError
            if isinstance(result, TaskFailure):
                raise result.as_error()
            results.append(result)
    summary = problem.summarize(results)
    callbacks.on_test_end(summary.metrics())
    return summary


class StopRequestedError(Exception):
    """A stop was requested in the middle of a meta-step."""


class MetaTrainingDivergedError(LeapError, FloatingPointError):
    """All tasks of a meta-step diverged, or the meta-update would overflow.

    The initialization keeps the values that it had before the meta-step.
    """


class MetaBatch:
    """The mean meta-gradient of a meta-batch, summed in the order of its tasks.

    The order does not depend on which result arrives first, so the mean has the same bits on every
    pool. Meta-steps count from 1, and `tolerated_failures` is the fraction of tasks that may fail.
    """

    def __init__(self, meta_step: int, tasks: int, tolerated_failures: float = 0.0):
        self._meta_step = meta_step
        self._tasks = tasks
        # 1e-9 because 0.29 * 100 is 28.999..., and 29 failures are tolerated.
        self._tolerated = int(tolerated_failures * tasks + 1e-9)
        self._total: Sequence[tf.Tensor] | None = None
        self._state: list[Sequence[tf.Tensor]] = []
        self._metrics: list[Mapping[str, float]] = []
        self._skipped = 0
        self._failures: list[TaskFailure] = []

    def add(self, result: TaskGradient | TaskFailure) -> bool:
        """Adds the next result, and returns whether the task has one, even one that is skipped.

        A result that is not finite is skipped. More failures than are tolerated are a
        TaskFailedError; if none are tolerated, the exception of the task is raised.
        """
        if isinstance(result, TaskFailure):
            self._record_failure(result)
            return False
        if not result.finite:
            self._skipped += 1
        else:
            gradient = result.meta_gradient
            if self._total is not None:
                gradient = [total + each for total, each in zip(self._total, gradient)]
            self._total = gradient
            self._state.append(result.state)
            self._metrics.append(result.metrics)
        return True

    def apply(self, problem: Problem) -> dict[str, Any]:
        """Moves the initialization by the mean meta-gradient and returns metrics.

        State variables become the means of their final values over the tasks.

        Raises:
            MetaTrainingDivergedError: no task has a finite result, or the meta-update would
                overflow.
        """
        gradients, logs = self.mean(problem.meta_variables)
        if not apply_if_finite(problem.setup.meta_optimizer, gradients, problem.meta_variables):
            raise MetaTrainingDivergedError(
                f"The meta-update of meta-step {self._meta_step} would overflow and was not "
                "applied. Lower the meta learning rate."
            )
        states = problem.state_variables
        for variable, value in zip(states, self.mean_state(states)):
            variable.assign(value)
        return logs

    def mean_state(self, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
        """Returns the means over the tasks of their `TaskGradient.state`.

        A variable that no task changed keeps its exact value.
        """
        if len(self._state) == 1:
            return list(self._state[0])
        return [
            variable.value + tf.add_n([value - variable.value for value in values]) / len(values)
            for variable, *values in zip(variables, *self._state)
        ]

    def mean(self, variables: Sequence[keras.Variable]) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """Returns the mean meta-gradient in the dtypes of the variables, and metrics.

        Raises:
            MetaTrainingDivergedError: no task has a finite result.
        """
        if self._total is None:
            failed = f" {len(self._failures)} failed." if self._failures else ""
            raise MetaTrainingDivergedError(
                f"No task of meta-step {self._meta_step} has a usable result: {self._skipped} "
                f"diverged (loss, weights or meta-gradient not finite).{failed} The initialization "
                "is unchanged. Lower the inner learning rate, clip its gradients, or lower the "
                "meta learning rate."
            )
        metrics = self._metrics
        mean = [gradient / tf.cast(len(metrics), gradient.dtype) for gradient in self._total]
        logs: dict[str, Any] = {
            name: float(np.mean([task[name] for task in metrics])) for name in metrics[0]
        }
        logs["gradient_steps"] = sum(task["gradient_steps"] for task in metrics)
        widest = max((each.dtype for each in mean), key=lambda dtype: dtype.size)
        logs["meta_gradient_norm"] = float(
            tf.linalg.global_norm([tf.cast(each, widest) for each in mean])
        )
        logs |= {"tasks_skipped": self._skipped, "tasks_failed": len(self._failures)}
        return [tf.cast(each, variable.dtype) for each, variable in zip(mean, variables)], logs

    def _record_failure(self, failure):
        self._failures.append(failure)
        if not self._tolerated:
            raise failure.as_error()
        if len(self._failures) > self._tolerated:
            raise TaskFailedError(
                f"{len(self._failures)} of the {self._tasks} tasks of meta-step {self._meta_step} "
                f"failed, and tolerated_failures allows {self._tolerated}. {failure}"
            ) from failure.error
        text = str(failure).removesuffix(".")
        _LOGGER.warning("%s. Meta-step %d continues without this task.", text, self._meta_step)
