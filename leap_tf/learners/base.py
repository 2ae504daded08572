"""The protocol of a meta-learner.

A learner observes the training of one task and returns the meta-gradient of that task. Its methods
are pure functions of tensors, traced into the inner loop once. Its state travels through the loop
with a fixed structure and fixed shapes, so one learner serves any number of concurrent tasks.

    learner_variables = learner.build(variables)      once per model, before training
    state = learner.begin_task(initialization)
    for each gradient step:
        state = learner.observe(state, PathPoint(parameters, loss, gradient))
        parameters = optimizer step along learner.direction(gradient, learner_values, step)
    update = learner.end_task(state, TaskEnd(...))

The meta-update is the same for all learners: the meta-optimizer descends on the mean of the
meta-gradients over the tasks of a meta-batch. A learner receives tensors of the meta-learned
parameters only, not those of task layers, which get new values for every task.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.geometry import (
    GradientPath,
    PathGeometry,
    PathPoint,
    Tensors,
    extend_path,
    start_path,
)
from leap_tf.tasks import Task, TaskDistribution

Directions = list[tf.Tensor | None]  # None: the optimizer skips the parameter
SampleTasks = Callable[[TaskDistribution, int, int, np.random.Generator], Sequence[Task]]


class TaskEnd(NamedTuple):
    """The start and the end of training on a task.

    Attributes:
        initialization: θ⁰, before the first step.
        parameters: θᴷ, after the last step.
        query_gradient: one tensor per meta-learned parameter: the gradient of the mean loss of the
            query batches with respect to θᴷ. With `second_order`, the gradient through all steps
            with respect to θ⁰, followed by one tensor per learner variable. Empty if
            `query_batches` is 0.
    """

    initialization: Tensors
    parameters: Tensors
    query_gradient: Tensors


class TaskUpdate(NamedTuple):
    """The contribution of one task to the meta-update.

    Attributes:
        meta_gradient: one tensor per meta-learned parameter, then one per learner variable.
        metrics: scalars about the task, by name.
    """

    meta_gradient: Tensors
    metrics: Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """The settings of meta-training that a learner may depend on.

    Attributes:
        model: the user's model, whose weights are the initialization.
        inner_optimizer: trains on tasks.
        meta_optimizer: moves the initialization.
        steps_per_task: gradient steps on a task.
        meta_batch_size: tasks in a meta-step.
        task_layers: names of layers that get new values for every task.
        running_statistics: "learned" or "fresh", see `MetaTrainer`.
        stopping: the `leap_tf.training.StopRule` that ends tasks early, or None.
    """

    model: keras.Model
    inner_optimizer: keras.optimizers.Optimizer
    meta_optimizer: keras.optimizers.Optimizer
    steps_per_task: int
    meta_batch_size: int
    task_layers: Sequence[str] = ()
    running_statistics: str = "learned"
    stopping: Any = None


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The models to train and the tasks to train them on.

    Attributes:
        models: the models that are meta-trained. Only the user's model may have task layers.
        evaluation_model: the model that evaluation adapts to tasks.
        steps: gradient steps on each training task.
        minimum_steps: the fewest steps from which the learner gets a meta-gradient.
        sample_tasks: a function of (distribution, count, meta_step, rng) that returns the training
            tasks of a meta-step. `rng` is its only source of randomness.
        evaluation_task: a function that converts an evaluation task to one with the inputs that
            `evaluation_model` expects.
        model_index: a function of a task that returns the index in `models` of its model.
        persistent_state: non-trainable variables that a meta-step sets to the mean of their final
            values over its tasks; all others keep their value. By default the running statistics
            of the models if `running_statistics` is "learned", else none.
        trains_parts: whether a task is expected to leave some variables without a gradient.
        first_order_until: the number of initial meta-steps in which a second-order learner uses
            the first-order query gradient ∇f(θᴷ).
        multi_step_until: the number of initial meta-steps in which a second-order learner
            minimizes the query losses after every step, see `MAML`.
    """

    models: Sequence[keras.Model]
    evaluation_model: keras.Model
    steps: int
    _: dataclasses.KW_ONLY
    minimum_steps: int = 1
    sample_tasks: SampleTasks = lambda tasks, count, meta_step, rng: tasks.sample(count, rng)
    evaluation_task: Callable[[Task], Task] = lambda task: task
    model_index: Callable[[Task], int] = lambda task: 0
    persistent_state: Sequence[keras.Variable] | None = None
    trains_parts: bool = False
    first_order_until: int = 0
    multi_step_until: int = 0


class Learner(abc.ABC):
    """A meta-learner. The module's docstring shows the order of the calls.

    A subclass must define `begin_task`, `observe` and `end_task`. Learners that change the models
    or the tasks (joint training, HAT, Progressive Nets) also override `plan`.

    Attributes:
        query_batches: number of batches for `TaskEnd.query_gradient`. They come from the task's
            method `query_batches(seed)` if it has one, else from its training stream after the
            last step. In the latter case their examples are new only if steps and query batches
            together fit into one epoch.
        second_order: whether the query gradient is taken through the steps. All steps are then
            recorded, so time and memory grow with their number.
    """

    query_batches: int = 0
    second_order: bool = False

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        """Creates and returns the learner variables, which are meta-learned too; none by default.

        Args:
            variables: the meta-learned variables of the model.
        """
        return []

    @abc.abstractmethod
    def begin_task(self, initialization: Tensors) -> Any:
        """Returns the learner's state before the first step, any nest of tensors."""

    def direction(self, gradients: Tensors, learner_values: Tensors, step: tf.Tensor) -> Directions:
        """Returns the gradients that the inner optimizer applies, in training and evaluation.

        The optimizer skips a parameter whose direction is None, weight decay included.

        Args:
            gradients: the gradients of the loss, one per meta-learned parameter.
            learner_values: values of the learner variables.
            step: the number of the gradient step, int32, from 0.
        """
        return list(gradients)

    @abc.abstractmethod
    def observe(self, state: Any, point: PathPoint) -> Any:
        """Returns the state after another step.

        Args:
            state: the state before the step.
            point: parameters *before* the step, with the loss and the gradient of its batch.
        """

    @abc.abstractmethod
    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        """Returns the meta-gradient and the metrics of the task, from the last state."""

    def __repr__(self) -> str:
        try:
            config = self.get_config()
        except NotImplementedError:
            return super().__repr__()
        settings = ", ".join(f"{name}={value!r}" for name, value in config.items())
        return f"{type(self).__name__}({settings})"

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        """Returns the models and the tasks: by default the user's model on sampled tasks.

        Raises:
            ValueError: the learner cannot work with these settings.
        """
        if self.second_order and setup.stopping:
            raise ValueError(
                f"{type(self).__name__} differentiates through a fixed number of steps, so it "
                "cannot stop a task early. Leave stopping out."
            )
        return TrainingPlan([setup.model], setup.model, setup.steps_per_task)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name, as plain values.

        A checkpoint can only be continued by a learner with the same configuration. By default,
        each constructor argument is read from the attribute with the same name.

        Raises:
            NotImplementedError: a parameter has no attribute of its name.
        """
        if type(self).__init__ is object.__init__:
            return {}
        names = list(inspect.signature(type(self)).parameters)
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise NotImplementedError(
                f"{type(self).__name__} has no attributes {missing} for its constructor's "
                "arguments. Set them, or override get_config()."
            )
        return {name: getattr(self, name) for name in names}


class StatelessLearner(Learner):
    """A learner without state: it uses only the start and the end of a task."""

    def begin_task(self, initialization: Tensors) -> Any:
        return ()

    def observe(self, state: Any, point: PathPoint) -> Any:
        return state


class Adaptation(StatelessLearner):
    """Trains on a task in the direction of another learner. Its meta-gradient is not used.

    Args:
        learner: the learner whose `direction` is used. It must have been built.
        meta_indices: indices of that learner's parameters among all parameters.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        self._learner = learner
        self._meta_indices = list(meta_indices)

    def direction(self, gradients: Tensors, learner_values: Tensors, step: tf.Tensor) -> Directions:
        directions: list[tf.Tensor | None] = list(gradients)
        learner_gradients = [gradients[index] for index in self._meta_indices]
        chosen = self._learner.direction(learner_gradients, learner_values, step)
        for index, direction in zip(self._meta_indices, chosen, strict=True):
            directions[index] = direction
        return directions

    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([], metrics={})  # nothing reads a meta-gradient of an adaptation


class MeasuredAdaptation(Adaptation):
    """Adaptation that reports `path_length` and `path_energy`, eq. 7 of Flennerhag et al. 2019.

    The path includes the loss and all parameters, those of task layers too, so the values of
    different learners can be compared.
    """

    _geometry = PathGeometry()

    def begin_task(self, initialization: Tensors) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self._geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([], {"path_length": state.length, "path_energy": state.energy})
