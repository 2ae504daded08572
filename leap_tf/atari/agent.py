"""Advantage actor-critic as a TF-Agents agent, for its drivers, metrics, savers and checkpoints.

TF-Agents' own ReinforceAgent wants whole episodes in every batch and never bootstraps. The
arithmetic is in `loss.py`, which meta-training uses too.
"""

from typing import NamedTuple

import keras
import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.policies import greedy_policy
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

from leap_tf.atari.encoder import trained_variables
from leap_tf.atari.loss import ActorCriticLoss, actor_critic_loss
from leap_tf.atari.network import ActorCriticNetwork
from leap_tf.atari.policy import ActorCriticPolicy


class ActorCriticInfo(NamedTuple):
    """Parts of the loss, and the norm of its gradient before the optimizer clips it."""

    policy_loss: tf.Tensor
    value_loss: tf.Tensor
    entropy: tf.Tensor
    gradient_norm: tf.Tensor


class ActorCriticAgent(tf_agent.TFAgent):
    """n-step advantage actor-critic.

    `train` takes a Trajectory [B, T + 1], of which the last step only bootstraps. With a driver:
    a TFUniformReplayBuffer of max_length T + 1 that is not cleared, and T steps of the driver per
    update. It then holds the newest T + 1 steps, the first of which was acted before the update.

    Args:
        time_step_spec: of the environment.
        action_spec: of the environment.
        model: of `actor_critic`.
        optimizer: a Keras 3 optimizer, which may clip; `RMSProp` has the paper's constants.
        loss: its weights.
        unroll: T.
        train_step_counter: counts updates.
        name: of the module.
    """

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: ActorCriticLoss | None = None,
        unroll: int = 5,
        train_step_counter: tf.Variable | None = None,
        name: str = "ActorCriticAgent",
    ):
        tf.Module.__init__(self, name=name)
        network = ActorCriticNetwork(time_step_spec.observation, model)
        network.create_variables()
        self._network = network
        self._optimizer = optimizer
        self._settings = loss or ActorCriticLoss()
        self._trained = trained_variables(model)
        optimizer.build(self._trained)
        policy = ActorCriticPolicy(time_step_spec, action_spec, network)
        if train_step_counter is None:
            train_step_counter = tf.Variable(0, dtype=tf.int64, trainable=False)
        super().__init__(
            time_step_spec,
            action_spec,
            policy=greedy_policy.GreedyPolicy(policy),
            collect_policy=policy,
            train_sequence_length=unroll + 1,
            train_step_counter=train_step_counter,
        )

    @property
    def network(self) -> ActorCriticNetwork:
        """The network that is trained."""
        return self._network

    def _initialize(self):
        """Nothing to do: the model comes with its weights."""

    def _train(self, experience, weights=None):
        if weights is not None:
            raise ValueError("The loss of an unroll has no weights; pass none.")
        history = tf.nest.map_structure(_time_major, experience)
        with tf.GradientTape() as tape:
            (logits, values), _ = self._network(history.observation, training=True)
            loss = actor_critic_loss(
                logits[:-1],
                values,
                history.action[:-1],
                history.reward[:-1],
                history.discount[:-1],
                history.is_boundary(),
                self._settings,
            )
        gradients = tape.gradient(loss.total, [variable.value for variable in self._trained])
        self._optimizer.apply(gradients, self._trained)
        self.train_step_counter.assign_add(1)
        norm = tf.linalg.global_norm(gradients)
        return tf_agent.LossInfo(
            loss.total, ActorCriticInfo(loss.policy, loss.value, loss.entropy, norm)
        )


def _time_major(tensor):
    return tf.transpose(tensor, [1, 0, *range(2, tensor.shape.rank)])
