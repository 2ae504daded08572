"""A trained agent as a TF-Agents policy on disk."""

import os

import keras
import numpy as np
import tensorflow as tf
from tf_agents.policies import policy_saver
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from leap_tf.atari.network import ActorCriticNetwork
from leap_tf.atari.policy import ActorCriticPolicy


def save_policy(agent: keras.Model, path: str | os.PathLike) -> None:
    """Writes the policy of an actor-critic, to be read by `tf.saved_model.load` or TF-Agents.

    Args:
        agent: of `actor_critic`.
        path: a folder.
    """
    shape = agent.inputs[0].shape[1:]
    screens = tensor_spec.BoundedTensorSpec(
        shape, tf.uint8, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), "observation"
    )
    actions = tensor_spec.BoundedTensorSpec(
        (), tf.int32, 0, agent.outputs[0].shape[-1] - 1, "action"
    )
    network = ActorCriticNetwork(screens, agent)
    network.create_variables()
    policy = ActorCriticPolicy(ts.time_step_spec(screens), actions, network)
    policy_saver.PolicySaver(policy, batch_size=None).save(os.fspath(path))
