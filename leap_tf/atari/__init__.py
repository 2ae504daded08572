"""Leap over actor-critic agents on real Atari games (appendix H), with TF-Agents."""

from leap_tf.atari.legacy_keras import require_legacy_keras

require_legacy_keras()

from leap_tf.atari.loss import ActorCriticLoss, LossParts, actor_critic_loss
from leap_tf.atari.returns import bootstrapped_returns, transition_mask
from leap_tf.atari.rmsprop import RMSProp

__all__ = [
    "ActorCriticLoss",
    "LossParts",
    "RMSProp",
    "actor_critic_loss",
    "bootstrapped_returns",
    "transition_mask",
]
