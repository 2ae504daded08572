"""The protocol of a meta-learner.

A learner watches the training of one task and says in the end how the initialization should
move. Its three methods are pure functions of tensors and are traced into the task loop once;
what they remember travels through the loop in a state of fixed structure and shape, so one
learner serves any number of tasks at the same time.

    state = learner.begin_task(initialization)
    for each gradient step:
        state = learner.observe(state, PathPoint(parameters, loss, gradient))
        parameters = the optimizer's step
    update = learner.end_task(state, initialization, parameters)

All tensors are of the meta-learned parameters only; a head that starts fresh on every task
is never shown to the learner.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from leap_tf.geometry import PathPoint


class TaskUpdate(NamedTuple):
    """What one task says about the initialization.

    Attributes:
        meta_gradient: one tensor per meta-learned parameter. A *gradient*: the meta-optimizer
            descends on its mean over the tasks.
        metrics: named scalars that the learner reports about the task.
    """

    meta_gradient: Sequence[tf.Tensor]
    metrics: Mapping[str, tf.Tensor]


class Learner(abc.ABC):
    """A meta-learner, as three pure functions. See the module for the order of the calls.

    Attributes:
        minimum_steps: gradient steps on a task below which the learner has nothing to learn.
    """

    minimum_steps: int = 1

    @abc.abstractmethod
    def begin_task(self, initialization: Sequence[tf.Tensor]) -> Any:
        """Returns the learner's state before the first step, any nest of tensors."""

    @abc.abstractmethod
    def observe(self, state: Any, point: PathPoint) -> Any:
        """Returns the state after seeing a step.

        Args:
            state: the state so far.
            point: parameters *before* the step, the batch's loss and gradient there.
        """

    @abc.abstractmethod
    def end_task(
        self, state: Any, initialization: Sequence[tf.Tensor], parameters: Sequence[tf.Tensor]
    ) -> TaskUpdate:
        """Returns the task's meta-gradient.

        Args:
            state: the state after the last step.
            initialization: θ⁰, where the task started.
            parameters: θᴷ, where the last optimizer step led.
        """
