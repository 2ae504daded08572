"""Acting and learning as functions of tensors, traced once for each number of actions.

    act(parameters, screens, noise) → actions
    update(state, own, unroll)      → state, what is reported

Parameters, the optimizer's slots and what the meta-learner remembers are in the state, so nothing
is shared and any number of threads can play at a time. An update is one gradient step of the
agent and one point of the gradient path: its loss is that of the unroll.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from leap_tf.atari.encoder import forward, trained_variables
from leap_tf.atari.loss import ActorCriticLoss, actor_critic_loss
from leap_tf.functional import FunctionalOptimizer
from leap_tf.geometry import PathPoint
from leap_tf.learners import Learner


class Unroll(NamedTuple):
    """T transitions of B copies of a game, time-major.

    Attributes:
        screens: uint8 screens of steps 0 to T; those of a step may be in several parts, which
            follow one another.
        actions: [T, B] int32.
        rewards: [T, B] float32, that followed.
        discounts: [T, B] float32, of the environment, that followed.
        is_last: [T + 1, B] bool.
    """

    screens: Sequence[tf.Tensor]
    actions: tf.Tensor
    rewards: tf.Tensor
    discounts: tf.Tensor
    is_last: tf.Tensor


class AgentState(NamedTuple):
    """What an update changes: parameters, optimizer slots, the meta-learner's memory."""

    parameters: list[tf.Tensor]
    slots: list[tf.Tensor]
    memory: Any


class Report(NamedTuple):
    """Scalars of an unroll, before the update it caused."""

    loss: tf.Tensor
    entropy: tf.Tensor


class TracedAgent:
    """An actor-critic that a learner watches.

    Args:
        model: of `actor_critic`.
        optimizer: the inner optimizer.
        learner: the meta-learner; it is built already.
        meta_indices: which of `trained_variables(model)` the learner sees.
        loss: the weights of the agent's loss.

    Attributes:
        actions: how many there are.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        meta_indices: Sequence[int],
        loss: ActorCriticLoss,
    ):
        self.model = model
        self.actions = model.outputs[0].shape[-1]
        self._learner = learner
        self._meta_indices = list(meta_indices)
        self._settings = loss
        self._optimizer = FunctionalOptimizer(optimizer, trained_variables(model))
        self.act = tf.function(self._act)
        self.update = tf.function(self._update)

    def start(self, parameters: list[tf.Tensor]) -> AgentState:
        """Returns the state before the first update."""
        memory = self._learner.begin_task(self.meta_learned(parameters))
        return AgentState(parameters, self._optimizer.initial_slots(parameters), memory)

    def meta_learned(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns those tensors, one per variable, that the learner sees."""
        return [tensors[index] for index in self._meta_indices]

    def _act(self, parameters, screens, noise):
        """Draws actions: argmax of logits + Gumbel noise has the odds of the softmax."""
        logits, _ = forward(self.model, parameters, screens)
        return tf.argmax(logits + noise, axis=-1, output_type=tf.int32)

    def _update(self, state: AgentState, own: Sequence[tf.Tensor], unroll: Unroll):
        steps, copies = unroll.actions.shape
        parts = len(unroll.screens) // (steps + 1)
        # No gradient comes through the last step, so it need not be looked at twice.
        _, bootstrap = forward(self.model, state.parameters, _joined(unroll.screens[-parts:]))
        with tf.GradientTape() as tape:
            tape.watch(state.parameters)
            logits, values = forward(self.model, state.parameters, _joined(unroll.screens[:-parts]))
            values = tf.reshape(tf.concat([values, bootstrap], 0), [steps + 1, copies])
            loss = actor_critic_loss(
                tf.reshape(logits, [steps, copies, logits.shape[-1]]),
                values,
                unroll.actions,
                unroll.rewards,
                unroll.discounts,
                unroll.is_last,
                self._settings,
            )
        gradients = tape.gradient(loss.total, state.parameters)
        meta_gradients = self.meta_learned(gradients)
        point = PathPoint(self.meta_learned(state.parameters), loss.total, meta_gradients)
        memory = self._learner.observe(state.memory, point)
        directions = list(gradients)
        for index, direction in zip(
            self._meta_indices, self._learner.direction(meta_gradients, own), strict=True
        ):
            directions[index] = direction
        with warnings.catch_warnings():
            # What a learner leaves alone, it leaves alone on purpose.
            warnings.filterwarnings("ignore", "Gradients do not exist")
            parameters, slots = self._optimizer.apply(directions, state.parameters, state.slots)
        return AgentState(parameters, slots, memory), Report(loss.total, loss.entropy)


def _joined(screens):
    return tf.concat(screens, 0) if len(screens) > 1 else screens[0]
