"""Leap over actor-critic agents on real Atari games (appendix H), with TF-Agents."""

from leap_tf.atari.legacy_keras import require_legacy_keras

require_legacy_keras()

from leap_tf.atari.agent import ActorCriticAgent
from leap_tf.atari.arcade import Arcade
from leap_tf.atari.colour_bandit import ColourBandit
from leap_tf.atari.encoder import actor_critic, mnih_2013, trained_variables
from leap_tf.atari.environment import AtariEnvironment
from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations, curve
from leap_tf.atari.games import Game, available_games, games
from leap_tf.atari.loss import ActorCriticLoss, LossParts, actor_critic_loss
from leap_tf.atari.network import ActorCriticNetwork
from leap_tf.atari.policy import ActorCriticPolicy
from leap_tf.atari.returns import bootstrapped_returns, transition_mask
from leap_tf.atari.rmsprop import RMSProp
from leap_tf.atari.screen_environment import Episode, ScreenEnvironment
from leap_tf.atari.task_runner import AtariTaskRunner
from leap_tf.atari.trainer import AtariTrainer

__all__ = [
    "ActorCriticAgent",
    "ActorCriticLoss",
    "ActorCriticNetwork",
    "ActorCriticPolicy",
    "Arcade",
    "AtariEnvironment",
    "AtariTaskRunner",
    "AtariTrainer",
    "ColourBandit",
    "Episode",
    "Game",
    "GameEvaluation",
    "GameEvaluations",
    "LossParts",
    "RMSProp",
    "ScreenEnvironment",
    "actor_critic",
    "actor_critic_loss",
    "available_games",
    "bootstrapped_returns",
    "curve",
    "games",
    "mnih_2013",
    "trained_variables",
    "transition_mask",
]
