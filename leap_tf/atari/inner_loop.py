"""The inner loop of a game: an agent acts for some steps, learns from them, and so on.

    for each update:
        for each of T steps:  act, then step the emulators
        update the parameters on the whole unroll

`TracedAgent` acts and learns as functions of tensors, traced once for each number of actions:

    act(parameters, screens, noise)        → actions
    update(state, learner_values, unroll)  → state, loss of the unroll before the update

Any number of threads can share an agent. An update is one gradient step of the agent and one point
of the gradient path: the point's loss is that of the unroll.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tf_agents.trajectories import time_step as ts

from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    actor_critic_loss,
    forward,
    trained_variables,
)
from leap_tf.atari.environments import ScreenEnvironment
from leap_tf.functional import FunctionalOptimizer
from leap_tf.learners import Learner
from leap_tf.training import inner_step


class Unroll(NamedTuple):
    """T transitions of B copies of a game, time-major."""

    screens: Sequence[tf.Tensor]  # [B, height, width, 3] uint8 of each step from 0 to T
    actions: tf.Tensor  # [T, B] int32
    rewards: tf.Tensor  # [T, B] float32
    discounts: tf.Tensor  # [T, B] float32, those of the environment
    is_last: tf.Tensor  # [T + 1, B] bool


class AgentState(NamedTuple):
    """The updates made, parameters, optimizer slots, and the meta-learner's memory."""

    step: tf.Tensor
    parameters: list[tf.Tensor]
    slots: list[tf.Tensor]
    memory: Any


class TracedAgent:
    """An actor-critic whose training a meta-learner observes.

    The `model` is one of `actor_critic`. The `learner` has been built, and observes those of
    `trained_variables(model)` at `meta_indices`. `loss` has the weights of the agent's loss.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        meta_indices: Sequence[int],
        *,
        loss: ActorCriticLoss,
    ):
        self.model = model
        self._learner = learner
        self._meta_indices = list(meta_indices)
        self._settings = loss
        self._optimizer = FunctionalOptimizer(optimizer, trained_variables(model))
        # As partials, whose tracing TensorFlow counts for each agent and not for all together.
        self.act = tf.function(functools.partial(self._act))
        self.update = tf.function(functools.partial(self._update))

    def start(self, parameters: list[tf.Tensor]) -> AgentState:
        """Returns the state before the first update."""
        memory = self._learner.begin_task(self.meta_learned(parameters))
        return AgentState(
            tf.constant(0), parameters, self._optimizer.initial_slots(parameters), memory
        )

    def meta_learned(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns those tensors, one per variable, that the learner observes."""
        return [tensors[index] for index in self._meta_indices]

    def _act(self, parameters, screens, noise):
        """Draws actions: argmax of logits + Gumbel noise has the probabilities of the softmax."""
        logits, _ = forward(self.model, parameters, screens)
        return tf.argmax(logits + noise, axis=-1, output_type=tf.int32)

    def _update(self, state: AgentState, learner_values: Sequence[tf.Tensor], unroll: Unroll):
        steps, copies = unroll.actions.shape
        # The last step only bootstraps. Outside the tape its forward pass is cheaper.
        _, bootstrap = forward(self.model, state.parameters, unroll.screens[-1])
        with tf.GradientTape() as tape:
            tape.watch(state.parameters)
            screens = tf.concat(unroll.screens[:-1], 0)
            logits, values = forward(self.model, state.parameters, screens)
            values = tf.reshape(tf.concat([values, bootstrap], 0), [steps + 1, copies])
            loss = actor_critic_loss(
                tf.reshape(logits, [steps, copies, logits.shape[-1]]),
                values,
                actions=unroll.actions,
                rewards=unroll.rewards,
                discounts=unroll.discounts,
                is_last=unroll.is_last,
                settings=self._settings,
            )
        parameters, slots, memory = inner_step(
            self._learner,
            self._optimizer,
            self._meta_indices,
            loss=loss.total,
            gradients=tape.gradient(loss.total, state.parameters),
            parameters=state.parameters,
            slots=state.slots,
            learner_state=state.memory,
            learner_values=learner_values,
            step=state.step,
            trains_parts=True,
        )
        return AgentState(state.step + 1, parameters, slots, memory), loss


class UnrollCollector:
    """Plays a game with an agent, in unrolls of some steps.

    The constructor resets the environment, which must have been seeded. The unrolls are then a
    function of the seeds and the parameters. `seed` is that of the noise that draws actions.
    """

    def __init__(self, environment: ScreenEnvironment, agent: TracedAgent, steps: int, seed: int):
        self._environment = environment
        self._agent = agent
        self._steps = steps
        self._random = np.random.default_rng(seed)
        self._time_step = environment.reset()

    def collect(self, parameters: list[tf.Tensor]) -> tuple[Unroll, float]:
        """Plays one unroll, and returns it with the mean raw reward per step of a copy."""
        environment = self._environment
        time_steps, screens, actions, raw = [self._time_step], [], [], 0.0
        shape = (self._steps, environment.batch_size, environment.actions)
        for noise in self._random.gumbel(size=shape).astype(np.float32):
            screens.append(tf.convert_to_tensor(time_steps[-1].observation))
            actions.append(self._agent.act(parameters, screens[-1], noise).numpy())
            time_steps.append(environment.step(actions[-1]))
            raw += environment.raw_reward.sum()
        self._time_step = time_steps[-1]
        screens.append(tf.convert_to_tensor(self._time_step.observation))
        step_types, rewards, discounts = (
            np.stack([getattr(each, name) for each in time_steps])
            for name in ("step_type", "reward", "discount")
        )
        is_last = step_types == ts.StepType.LAST
        unroll = Unroll(screens, np.stack(actions), rewards[1:], discounts[1:], is_last)
        return unroll, raw / rewards[1:].size
