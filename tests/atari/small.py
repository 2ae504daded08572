"""Small agents and games for tests."""

import keras
import numpy as np

from leap_tf.atari.actor_critic import PixelConvolution
from leap_tf.atari.environments import ColourBandit, EnvironmentPool, Episode
from leap_tf.atari.evaluation import GameEvaluation

SIZE = 16


def small_encoder():
    screens = keras.Input((SIZE, SIZE, 3))
    features = PixelConvolution(4, 4, 4, activation="relu", name="conv")(screens)
    features = keras.layers.Flatten(name="flatten")(features)
    features = keras.layers.Dense(16, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")


def bandits(copies=4, groups=1):
    """Returns a pool of bandits, whose names end in their number of actions."""

    def make(game):
        return ColourBandit(game, copies, actions=int(game[-1]), image_size=SIZE)

    return EnvironmentPool(make, groups)


def played(rewards, episodes=(), game="pong", seed=0):
    """Returns the evaluation of a run with updates of 5 steps of 2 copies, 4 frames a step."""
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
