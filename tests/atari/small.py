"""Small agents, games and trainers for tests."""

import types

import keras
import numpy as np

from leap_tf.atari.actor_critic import PixelConvolution, RMSProp
from leap_tf.atari.environments import Episode, ScreenEnvironment, StepResult
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.problem import AtariProblem, EnvironmentPool
from leap_tf.tasks import FiniteTasks
from leap_tf.training import MetaTrainer, TaskSpec

SIZE = 16
COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [255, 255, 0], [0, 255, 255]], np.uint8
)
BANDITS = [types.SimpleNamespace(name=f"bandit{actions}") for actions in (2, 3, 4, 5)]
GAMES = FiniteTasks(BANDITS[:3])


def small_encoder():
    screens = keras.Input((SIZE, SIZE, 3))
    features = PixelConvolution(4, 4, 4, activation="relu", name="conv")(screens)
    features = keras.layers.Flatten(name="flatten")(features)
    features = keras.layers.Dense(16, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")


class ColourBandit(ScreenEnvironment):
    """A game without an emulator, whose best score is known: name the colour of the screen.

    The reward is 1 if the action is the number of the colour shown, else 0. A random policy gets
    1 / actions a step, the best policy 1. Every screen's colour is drawn independently.

    Args:
        game: a name in place of an Atari game's.
        copies: number of copies that run together.
        seed: seed of the first reset.
        actions: number of colours, 2 to 6.
        image_size: height and width of the screens in pixels.
    """

    episode_steps = 4

    def __init__(self, game="colour_bandit", copies=16, seed=0, actions=4, *, image_size=84):
        options = {"reward_clip": 1.0, "image_size": image_size, "frame_skip": 1}
        super().__init__(copies, actions, seed, **options)

    def start_games(self, seed):
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._age = 0
        return self._draw()

    def play(self, actions):
        starts = self._age == self.episode_steps
        rewards = np.zeros(self.batch_size) if starts else (actions == self._colour) * 1.0
        self._age = 0 if starts else self._age + 1
        ended = np.full(self.batch_size, self._age == self.episode_steps)
        return StepResult(self._draw(), rewards, ended, np.zeros_like(ended), ended)

    def _draw(self):
        self._colour = self._random.integers(0, self.actions, self.batch_size)
        shape = (self.batch_size, self._image_size, self._image_size, 3)
        return np.ascontiguousarray(np.broadcast_to(COLOURS[self._colour][:, None, None], shape))


def bandits(copies=4):
    """Returns a pool of bandits, whose names end in their number of actions."""

    def make(game):
        return ColourBandit(game, copies, actions=int(game[-1]), image_size=SIZE)

    return EnvironmentPool(make)


def problem(encoder=None, games=BANDITS, **options):
    """Returns a problem that finds `games` by the specs of `task`."""
    settings = {
        "inner_optimizer": RMSProp(3e-3, epsilon=1e-5),
        "meta_optimizer": keras.optimizers.SGD(0.1),
        "environment_pool": bandits(),
    }
    made = AtariProblem(encoder or small_encoder(), **(settings | options))
    made.sampler.use_list("games", games)
    return made


def task(seed, steps, index=2):
    """Returns the spec of a game of `problem`; the default has 4 actions."""
    return TaskSpec("games", 0, index, seed, steps)


def trainer(pool=2, seed=0, **options):
    keras.utils.set_random_seed(seed)
    settings = {
        "inner_optimizer": RMSProp(3e-3, epsilon=1e-5, epsilon_inside_root=True),
        "steps_per_task": 4,
        "meta_batch_size": 3,
        "seed": seed,
    }
    return MetaTrainer.from_problem(problem(**(settings | options)), pool)


def assert_same(arrays, others):
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)


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
