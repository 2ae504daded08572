"""The protocol of a meta-learner.

A learner observes the training of one task and returns the direction in which the initialization
should move. What it computes on a task are pure functions of tensors, traced into the inner loop
once. Its state travels through the loop with a fixed structure and fixed shapes, so one learner
serves any number of tasks at the same time.

    learner_variables = learner.build(variables)      once, before training
    state = learner.begin_task(initialization)
    for each gradient step:
        state = learner.observe(state, PathPoint(parameters, loss, gradient))
        parameters = optimizer step along learner.direction(gradient, learner_values)
    update = learner.end_task(state, TaskEnd(...))

The meta-update is the same for all learners: the meta-optimizer descends on the mean of the
meta-gradients over the tasks of a meta-batch. All tensors are those of the meta-learned parameters;
a layer that is reinitialized for every task is never shown to the learner.

A learner needs `begin_task`, `observe` and `end_task`; the rest has defaults. `plan` is for methods
that train other models than the user's, or other tasks: joint training, HAT, Progressive Nets.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, extend_path, start_path
from leap_tf.tasks import Task, TaskDistribution

SampleTasks = Callable[[TaskDistribution, int, int, np.random.Generator], Sequence[Task]]


class TaskEnd(NamedTuple):
    """Where the training of a task ended.

    Attributes:
        initialization: θ⁰, where the task started.
        parameters: θᴷ, where the last optimizer step led.
        query_gradient: gradient of the mean loss of `query_batches` new batches at θᴷ. With
            `second_order` it is taken through all steps, with respect to θ⁰ and then the
            learner's variables; without, with respect to θᴷ. Empty without query batches.
    """

    initialization: Sequence[tf.Tensor]
    parameters: Sequence[tf.Tensor]
    query_gradient: Sequence[tf.Tensor]


class TaskUpdate(NamedTuple):
    """What one task contributes to the meta-update.

    Attributes:
        meta_gradient: one tensor per meta-learned parameter, then one per variable of the learner.
            A *gradient*: the meta-optimizer descends on its mean over the tasks.
        metrics: named scalars that the learner reports about the task.
    """

    meta_gradient: Sequence[tf.Tensor]
    metrics: Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What meta-training was asked for, as far as a learner may depend on it.

    Attributes:
        model: the user's model, whose weights are the initialization.
        inner_optimizer: the Keras optimizer that trains on tasks.
        meta_optimizer: the Keras optimizer that moves the initialization.
        steps_per_task: gradient steps on a task.
        meta_batch_size: tasks in a meta-step.
        task_layers: names of layers that are reinitialized for every task.
        stopping: the rule that ends tasks early, or None.
    """

    model: keras.Model
    inner_optimizer: keras.optimizers.Optimizer
    meta_optimizer: keras.optimizers.Optimizer
    steps_per_task: int
    meta_batch_size: int
    task_layers: Sequence[str] = ()
    stopping: Any = None


def sample_tasks(
    distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
) -> Sequence[Task]:
    """Samples the tasks of a meta-step from the distribution, whatever the meta-step."""
    return distribution.sample(count, rng)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Which models are trained on which tasks.

    Attributes:
        models: the models that are meta-trained. Those other than the user's have no layers that
            are reinitialized.
        evaluation_model: the model that is adapted to tasks in evaluation.
        steps: gradient steps on each training task.
        minimum_steps: the fewest steps from which the learner can learn.
        sample_tasks: returns the training tasks of a meta-step, called as sample_tasks(
            distribution, count, meta_step, rng). The generator is its only source of randomness.
        evaluation_task: returns an evaluation task in the form that `evaluation_model` takes.
        model_index: returns which of `models` is trained on a task.
        persistent_state: non-trainable variables that keep the value a task leaves in them. All
            others start every task from their value in the initialization. Meta-steps of one task
            only.
        trains_parts: whether a task may leave some of the variables without a gradient.
    """

    models: Sequence[keras.Model]
    evaluation_model: keras.Model
    steps: int
    _: dataclasses.KW_ONLY
    minimum_steps: int = 1
    sample_tasks: SampleTasks = sample_tasks
    evaluation_task: Callable[[Task], Task] = lambda task: task
    model_index: Callable[[Task], int] = lambda task: 0
    persistent_state: Sequence[keras.Variable] = ()
    trains_parts: bool = False


class Learner(abc.ABC):
    """A meta-learner. The module's docstring has the order of the calls.

    Attributes:
        query_batches: batches after the last step on which the loss is taken for
            `TaskEnd.query_gradient`: those of the task's `query_batches(seed)` if it has such a
            method, else the next ones of its training stream. Of a stream in epochs, these are
            examples that the steps have not seen only if steps and query batches together fit into
            one epoch.
        second_order: whether the query gradient is taken through the steps. They are then
            recorded, so time and memory grow with their number.
    """

    query_batches: int = 0
    second_order: bool = False

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        """Creates and returns the learner's own variables, which are meta-learned too.

        Args:
            variables: the meta-learned variables of the model.
        """
        return []

    @abc.abstractmethod
    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        """Returns the learner's state before the first step, any nest of tensors."""

    def direction(
        self, gradients: Sequence[tf.Tensor], learner_values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Returns what the inner optimizer applies in place of the gradients.

        Evaluation tasks use it as training tasks do.

        Args:
            gradients: of the loss, one per meta-learned parameter.
            learner_values: values of the variables that `build` returned.

        Returns:
            One tensor per parameter. None leaves a parameter unchanged, weight decay included.
        """
        return list(gradients)

    @abc.abstractmethod
    def observe(self, state: Any, point: PathPoint) -> Any:
        """Returns the state after another step.

        Args:
            state: the state so far.
            point: parameters *before* the step, the batch's loss and gradient there.
        """

    @abc.abstractmethod
    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        """Returns the task's meta-gradient, from the state after the last step and the end."""

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        """Returns which models are trained on which tasks.

        The default trains the user's model on tasks sampled from the distribution.

        Args:
            setup: what meta-training was asked for.

        Raises:
            ValueError: the learner cannot work with this setup.
        """
        if self.second_order and setup.stopping:
            raise ValueError(
                f"{type(self).__name__} differentiates through a fixed number of steps, and "
                "cannot stop a task early. Leave stopping out."
            )
        return TrainingPlan([setup.model], setup.model, setup.steps_per_task)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name, as plain values.

        A run in a checkpoint folder can only be continued by a learner of the same configuration.
        The default reads attributes with the names of the constructor's parameters.

        Raises:
            NotImplementedError: there is a parameter without an attribute of its name.
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
    """A learner that uses only the end of a task."""

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> tuple[()]:
        return ()

    def observe(self, state: tuple[()], point: PathPoint) -> tuple[()]:
        return state


class Adaptation(Learner):
    """Trains along another learner's direction and measures nothing.

    Every method is evaluated by the same loop. Only its `direction` is its own: ANIL leaves its
    body unchanged, Meta-SGD has its rates, all others take the plain gradient.

    Args:
        learner: whose direction is taken; it has been built.
        meta_indices: which of all parameters that learner knows.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        self._learner = learner
        self._meta_indices = list(meta_indices)

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        return ()

    def direction(
        self, gradients: Sequence[tf.Tensor], learner_values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        directions: list[tf.Tensor | None] = list(gradients)
        known = [gradients[index] for index in self._meta_indices]
        learned = self._learner.direction(known, learner_values)
        for index, direction in zip(self._meta_indices, learned, strict=True):
            directions[index] = direction
        return directions

    def observe(self, state: Any, point: PathPoint) -> Any:
        return state

    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([], metrics={})


class MeasuredAdaptation(Adaptation):
    """Adaptation that reports `path_length` and `path_energy`.

    Both are those of eq. 7 over all parameters, reinitialized heads included, with the loss as a
    coordinate. They are the same for every learner and can be compared.

    Args:
        learner, meta_indices: as for `Adaptation`.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        super().__init__(learner, meta_indices)
        self._geometry = PathGeometry()

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self._geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        unchanged = [tf.zeros_like(tensor) for tensor in end.initialization]
        return TaskUpdate(unchanged, {"path_length": state.length, "path_energy": state.energy})
