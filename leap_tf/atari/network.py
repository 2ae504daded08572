"""A Keras 3 actor-critic as a TF-Agents network."""

import keras
import tensorflow as tf
from tf_agents.networks import network
from tf_agents.typing import types

from leap_tf.atari.encoder import trained_variables


class ActorCriticNetwork(network.Network):
    """Gives ((logits, values), network_state) for screens with any number of outer dimensions.

    TF-Agents' networks are layers of Keras 2, which do not see the variables of Keras 3 layers:
    an agent would train nothing of the encoder, without a word. They are therefore listed.

    Args:
        observation_spec: of the screens.
        model: of `actor_critic`.
        name: as for any network.
    """

    def __init__(
        self,
        observation_spec: types.TensorSpec,
        model: keras.Model,
        name: str = "ActorCriticNetwork",
    ):
        super().__init__(observation_spec, (), name)
        self.model = model
        self._listed_variables = [variable.value for variable in trained_variables(model)]

    def call(self, observation, step_type=None, network_state=(), training=False):
        outer = tf.shape(observation)[:-3]
        screens = tf.reshape(observation, tf.concat([[-1], tf.shape(observation)[-3:]], 0))
        logits, values = self.model(tf.cast(screens, tf.float32))
        logits = tf.reshape(logits, tf.concat([outer, [logits.shape[-1]]], 0))
        return (logits, tf.reshape(values, outer)), network_state
