"""Small agents and games for tests."""

import keras
import numpy as np

from leap_tf.atari.arcade import Arcade
from leap_tf.atari.colour_bandit import ColourBandit
from leap_tf.atari.encoder import PixelConvolution
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.screen_environment import Episode

SIZE = 16


def small_encoder():
    screens = keras.Input((SIZE, SIZE, 3))
    features = PixelConvolution(4, 4, 4, activation="relu", name="conv")(screens)
    features = keras.layers.Flatten(name="flatten")(features)
    features = keras.layers.Dense(16, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")


def bandits(copies=4, groups=1):
    """An arcade whose only machines are bandits; their number of actions is in the name."""

    def make(game):
        return ColourBandit(game, copies, actions=int(game[-1]), image_size=SIZE)

    return Arcade(make, groups)


def played(rewards, episodes=(), game="pong", seed=0):
    """A visit of which only this matters: updates of 5 steps of 2 copies, 4 frames a step."""
    rewards = np.array(rewards, float)
    return GameEvaluation(
        game=game,
        seed=seed,
        copies=2,
        frames_per_update=40,
        frame_skip=4,
        losses=rewards,
        entropies=rewards,
        rewards=rewards,
        raw_rewards=2 * rewards,
        episodes=tuple(Episode(*episode) for episode in episodes),
        seconds=2.0,
    )
