"""The protocol of a meta-learner.

A learner watches the training of one task and says in the end how the initialization should
move. What it does on a task are pure functions of tensors, traced into the task loop once;
what they remember travels through the loop in a state of fixed structure and shape, so one
learner serves any number of tasks at the same time.

    own = learner.build(variables)                   once, before training
    state = learner.begin_task(initialization)
    for each gradient step:
        state = learner.observe(state, PathPoint(parameters, loss, gradient))
        parameters = the optimizer's step along learner.direction(gradient, own)
    update = learner.end_task(state, TaskEnd(...))

The meta-update is the same for all: the meta-optimizer descends on the mean of the updates
over the tasks of a meta-batch. All tensors are of the meta-learned parameters only; a head that
starts fresh on every task is never shown to the learner.

Most learners need no more than `begin_task`, `observe` and `end_task`. The other hooks have
defaults that do nothing special:

    own variables       build, direction              Meta-SGD's learning rates, ANIL's frozen body
    a loss on new data  query_batches, second_order   MAML and its relatives
    joint training      draw_tasks, training_*, …     multi-headed finetuning, HAT, Progressive Nets

How a held-out task is adapted to, whatever learned the initialization: trained and measured.

Every method is judged by the same loop. What is the method's own is its `direction` (ANIL keeps
its body still, Meta-SGD has its rates); all others take the plain gradient. The loop shows these
learners all parameters, heads that start fresh included, so lengths can be compared.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, extend_path, start_path
from leap_tf.tasks import Task, TaskDistribution


class TaskEnd(NamedTuple):
    """Where the training of a task ended.

    Attributes:
        initialization: θ⁰, where the task started.
        parameters: θᴷ, where the last optimizer step led.
        query_gradient: gradient of the mean loss of `query_batches` new batches at θᴷ. With
            `second_order` it is taken through all steps, with respect to θ⁰ and then the
            learner's own variables; without, with respect to θᴷ. Empty without query batches.
    """

    initialization: Sequence[tf.Tensor]
    parameters: Sequence[tf.Tensor]
    query_gradient: Sequence[tf.Tensor]


class TaskUpdate(NamedTuple):
    """What one task says about the initialization.

    Attributes:
        meta_gradient: one tensor per meta-learned parameter, then one per own variable of the
            learner. A *gradient*: the meta-optimizer descends on its mean over the tasks.
        metrics: named scalars that the learner reports about the task.
    """

    meta_gradient: Sequence[tf.Tensor]
    metrics: Mapping[str, tf.Tensor]


class Learner(abc.ABC):
    """A meta-learner. See the module for the order of the calls.

    Attributes:
        minimum_steps: gradient steps on a task below which the learner has nothing to learn.
        query_batches: training batches after the last step on which the loss is taken for
            `TaskEnd.query_gradient`: those of the task's `query_batches(seed)` if it has such a
            method, else the next ones of its training stream. Of a stream in epochs, these are
            examples that the steps have not seen only if steps and query batches together fit into
            one epoch.
        second_order: whether the query gradient is taken through the steps. They are then
            recorded: time and memory grow with their number.
        sequential: whether tasks follow one another in one network, of which each may train a
            part. A meta-step then has one task.
    """

    minimum_steps: int = 1
    query_batches: int = 0
    second_order: bool = False
    sequential: bool = False

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        """Looks at the meta-learned variables; returns the learner's own, meta-learned too."""
        return []

    @abc.abstractmethod
    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        """Returns the learner's state before the first step, any nest of tensors."""

    def direction(
        self, gradients: Sequence[tf.Tensor], own: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Returns what the inner optimizer is given for the gradients, here and on held-out tasks.

        None leaves a parameter alone, weight decay included.

        Args:
            gradients: of the loss, one per meta-learned parameter.
            own: values of the learner's own variables.
        """
        return list(gradients)

    @abc.abstractmethod
    def observe(self, state: Any, point: PathPoint) -> Any:
        """Returns the state after seeing a step.

        Args:
            state: the state so far.
            point: parameters *before* the step, the batch's loss and gradient there.
        """

    @abc.abstractmethod
    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        """Returns the task's meta-gradient, from the state after the last step and the end."""

    def check(
        self,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        stopping: object | None,
    ) -> None:
        """Raises ValueError if the learner cannot work with these.

        Args:
            meta_optimizer: the optimizer of the outer loop.
            inner_optimizer: the optimizer that trains on tasks.
            stopping: the rule that ends tasks early, or None.
        """
        if self.second_order and stopping:
            raise ValueError(
                f"{type(self).__name__} differentiates through a fixed number of steps, and "
                "cannot stop a task early. Leave stopping out."
            )

    def training_models(
        self, model: keras.Model, task_layers: Sequence[str]
    ) -> Sequence[keras.Model]:
        """Returns the models that are meta-trained, at least one.

        Of several, a task is trained on that of its `number`. Models other than `model` have no
        layers that start fresh.

        Args:
            model: the user's model.
            task_layers: names of its layers that start fresh on every task.
        """
        return [model]

    def judged_model(
        self, model: keras.Model, training_models: Sequence[keras.Model]
    ) -> keras.Model:
        """Returns the model that is adapted to tasks when they are judged.

        Args:
            model: the user's model.
            training_models: those that are meta-trained.
        """
        return model

    def lasting_state(self, training_models: Sequence[keras.Model]) -> Sequence[keras.Variable]:
        """Returns the non-trainable variables that keep what a task leaves in them.

        By default there are none, and every task starts from the running statistics of the
        initialization. Only learners that are `sequential` may have any.

        Args:
            training_models: those that are meta-trained.
        """
        return []

    def judged_task(self, task: Task) -> Task:
        """Returns a task as the judged model takes it."""
        return task

    def draw_tasks(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> Sequence[Task]:
        """Returns the tasks of a meta-step.

        Args:
            distribution: what the user gave to train on.
            count: size of the meta-batch.
            meta_step: the number of meta-steps before this one.
            rng: the only source of randomness that may be used.
        """
        return distribution.sample(count, rng)

    def training_steps(self, steps_per_task: int, meta_batch_size: int) -> int:
        """Returns the gradient steps on each task that `draw_tasks` gives."""
        return steps_per_task


class StatelessLearner(Learner):
    """A learner that needs nothing but the end of a task."""

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> tuple[()]:
        return ()

    def observe(self, state: tuple[()], point: PathPoint) -> tuple[()]:
        return state


class AlongDirection(Learner):
    """Trains along another learner's direction, and measures nothing.

    Args:
        learner: whose direction is taken; it is built already.
        meta_indices: which of the parameters that learner knows.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        self._learner = learner
        self._meta_indices = list(meta_indices)

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        return ()

    def direction(
        self, gradients: Sequence[tf.Tensor], own: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        directions: list[tf.Tensor | None] = list(gradients)
        learned = self._learner.direction([gradients[i] for i in self._meta_indices], own)
        for index, direction in zip(self._meta_indices, learned, strict=True):
            directions[index] = direction
        return directions

    def observe(self, state: Any, point: PathPoint) -> Any:
        return state

    def end_task(self, state: Any, end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([], metrics={})


class Adaptation(AlongDirection):
    """Trains along another learner's direction, and reports `path_length` and `path_energy`.

    Both are those of eq. 7 over all parameters, with the loss as a coordinate, for every learner.

    Args:
        learner, meta_indices: as for `AlongDirection`.
    """

    def __init__(self, learner: Learner, meta_indices: Sequence[int]):
        super().__init__(learner, meta_indices)
        self._geometry = PathGeometry()

    def begin_task(self, initialization: Sequence[tf.Tensor]) -> GradientPath:
        return start_path(initialization)

    def observe(self, state: GradientPath, point: PathPoint) -> GradientPath:
        return extend_path(state, point, self._geometry)

    def end_task(self, state: GradientPath, end: TaskEnd) -> TaskUpdate:
        stay = [tf.zeros_like(tensor) for tensor in end.initialization]
        return TaskUpdate(stay, {"path_length": state.length, "path_energy": state.energy})
