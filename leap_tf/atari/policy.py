"""The actor of an actor-critic as a TF-Agents policy."""

import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.policies import tf_policy
from tf_agents.trajectories import policy_step
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

from leap_tf.atari.network import ActorCriticNetwork


class ActorCriticPolicy(tf_policy.TFPolicy):
    """Draws actions from the network's logits. Wrap it in a GreedyPolicy for the likeliest one.

    Args:
        time_step_spec: of the environment.
        action_spec: one bounded integer, from 0.
        network: gives ((logits, values), state).
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
        distribution = tfp.distributions.Categorical(
            logits=logits, dtype=tf.as_dtype(self.action_spec.dtype)
        )
        return policy_step.PolicyStep(distribution, policy_state)
