"""The actor-critic as a TF-Agents network, policy and agent.

They work with TF-Agents' drivers, metrics, savers and checkpoints. TF-Agents' own ReinforceAgent
needs whole episodes in every batch and never bootstraps.
"""

import os
from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.agents import tf_agent
from tf_agents.networks import network
from tf_agents.policies import greedy_policy, policy_saver, tf_policy
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import policy_step
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

from leap_tf.atari.actor_critic import ActorCriticLoss, actor_critic_loss, trained_variables
from leap_tf.atari.environments import screen_spec


class ActorCriticNetwork(network.Network):
    """A Keras 3 actor-critic as a TF-Agents network.

    It returns ((logits, values), network_state) for screens with any number of outer dimensions.
    TF-Agents' networks are layers of Keras 2, which do not find the variables of Keras 3 layers:
    an agent would silently leave the encoder untrained. The network therefore lists them.

    `model` is built by `actor_critic`.
    """

    def __init__(self, observation_spec: types.TensorSpec, model: keras.Model):
        super().__init__(observation_spec, (), "ActorCriticNetwork")
        self.model = model
        self._listed_variables = [variable.value for variable in trained_variables(model)]

    def call(self, observation, step_type=None, network_state=(), training=False):
        outer = tf.shape(observation)[:-3]
        screens = tf.reshape(observation, tf.concat([[-1], tf.shape(observation)[-3:]], 0))
        logits, values = self.model(tf.cast(screens, tf.float32))
        logits = tf.reshape(logits, tf.concat([outer, [logits.shape[-1]]], 0))
        return (logits, tf.reshape(values, outer)), network_state


class ActorCriticPolicy(tf_policy.TFPolicy):
    """Draws actions from the network's logits. `GreedyPolicy` of it takes the most probable one.

    The environment's actions must be one bounded integer, from 0.
    """

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        network: ActorCriticNetwork,
    ):
        self._network = network
        super().__init__(time_step_spec, action_spec, clip=False)

    def _variables(self):
        return list(self._network.variables)

    def _distribution(self, time_step, policy_state):
        (logits, _), _ = self._network(time_step.observation, step_type=time_step.step_type)
        dtype = tf.as_dtype(self.action_spec.dtype)
        actions = tfp.distributions.Categorical(logits=logits, dtype=dtype)
        return policy_step.PolicyStep(actions, policy_state)


def save_policy(agent: keras.Model, path: str | os.PathLike) -> None:
    """Saves the policy of an `actor_critic` for `tf.saved_model.load` or TF-Agents."""
    screens = tensor_spec.from_spec(screen_spec(agent.inputs[0].shape[1:]))
    last = agent.outputs[0].shape[-1] - 1
    actions = tensor_spec.BoundedTensorSpec((), tf.int32, 0, last, "action")
    network = ActorCriticNetwork(screens, agent)
    network.create_variables()
    policy = ActorCriticPolicy(ts.time_step_spec(screens), actions, network)
    policy_saver.PolicySaver(policy, batch_size=None).save(os.fspath(path))


class ActorCriticInfo(NamedTuple):
    """Terms of the loss, and the norm of its gradient before the optimizer clips it."""

    policy_loss: tf.Tensor
    value_loss: tf.Tensor
    entropy: tf.Tensor
    gradient_norm: tf.Tensor


class ActorCriticAgent(tf_agent.TFAgent):
    """n-step advantage actor-critic.

    `train` takes a Trajectory [B, T + 1], whose last step only bootstraps. With a driver, use a
    TFUniformReplayBuffer of max_length T + 1, do not clear it, and run T steps of the driver per
    update. The buffer then holds the newest T + 1 steps; the action of the first was chosen before
    the last update.

    `model` is built by `actor_critic`, and `network` makes it one of TF-Agents. `optimizer` is one
    of Keras 3, which may clip; `RMSProp` has the paper's constants. `unroll` is T, and
    `train_step_counter` counts updates.
    """

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        loss: ActorCriticLoss | None = None,
        unroll: int = 5,
        train_step_counter: tf.Variable | None = None,
    ):
        tf.Module.__init__(self, name="ActorCriticAgent")
        self.network = network = ActorCriticNetwork(time_step_spec.observation, model)
        network.create_variables()
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

    def _initialize(self):
        """Does nothing: the model is given with its weights."""

    def _train(self, experience, weights=None):
        if weights is not None:
            raise ValueError("The loss of an unroll takes no weights. Call train without them.")
        history = tf.nest.map_structure(  # time-major
            lambda each: tf.transpose(each, [1, 0, *range(2, each.shape.rank)]), experience
        )
        with tf.GradientTape() as tape:
            (logits, values), _ = self.network(history.observation, training=True)
            loss = actor_critic_loss(
                logits[:-1],
                values,
                actions=history.action[:-1],
                rewards=history.reward[:-1],
                discounts=history.discount[:-1],
                is_last=history.is_boundary(),
                settings=self._settings,
            )
        gradients = tape.gradient(loss.total, [variable.value for variable in self._trained])
        self._optimizer.apply(gradients, self._trained)
        self.train_step_counter.assign_add(1)
        norm = tf.linalg.global_norm(gradients)
        info = ActorCriticInfo(loss.policy, loss.value, loss.entropy, norm)
        return tf_agent.LossInfo(loss.total, info)
