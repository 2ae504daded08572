"""Copies of a game as a batched TF-Agents environment: what all games have in common.

A game says what its copies' screens, rewards and ends are. From these come time steps with
clipped rewards and discounts, and the raw scores of whole games beside them.

    step(action) = send(action), receive()

Between the two the game may work on threads of its own, and whoever sent can do something else.
The step after the end of an episode ignores its action and starts the next one: TF-Agents'
LAST → FIRST. Where the loss of a life ends an episode and the game goes on, that step is played
with the action, and what it earns counts for the score only.
"""

import abc
from typing import NamedTuple

import numpy as np
from tf_agents.environments import py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types


class Episode(NamedTuple):
    """A game that was played to its end: raw score, and the steps since `reset` at its end."""

    score: float
    steps: int


class Played(NamedTuple):
    """What a step led to in each copy.

    Attributes:
        screens: [copies, height, width, 3] uint8.
        rewards: [copies], not clipped.
        ended: [copies] bool, whether the episode ended: nothing is to be expected after it.
        cut_off: [copies] bool, whether it was cut off by a limit of time.
        game_over: [copies] bool, whether the game is over too, and its score known.
    """

    screens: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    cut_off: np.ndarray
    game_over: np.ndarray


class ScreenEnvironment(py_environment.PyEnvironment, abc.ABC):
    """Base of all games.

    Args:
        copies: how many run at a time.
        actions: how many actions there are.
        seed: of the first reset. `seed()` sets that of the next one.
        reward_clip: rewards are clipped to ± this.
        image_size: height and width of the screens.
        frame_skip: frames in a step.

    Attributes:
        raw_reward: [copies] float64, of the last step, not clipped.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        copies: int,
        actions: int,
        seed: int,
        reward_clip: float,
        image_size: int,
        frame_skip: int,
    ):
        check_numbers(copies, reward_clip, image_size, frame_skip)
        super().__init__(handle_auto_reset=False)
        self.actions = actions
        self.frame_skip = frame_skip
        self._copies = copies
        self._reward_clip = reward_clip
        self._image_size = image_size
        self._next_seed: int | None = seed
        self._ended = np.zeros(copies, bool)
        self._scores = np.zeros(copies)
        self._steps = 0
        self._waiting = False
        self._episodes: list[Episode] = []
        self.raw_reward = np.zeros(copies)

    @abc.abstractmethod
    def start_games(self, seed: int | None) -> np.ndarray:
        """Starts all copies anew and returns their screens; None goes on with the random state."""

    @abc.abstractmethod
    def start_step(self, actions: np.ndarray) -> None:
        """Starts a step, given [copies] int32 actions."""

    @abc.abstractmethod
    def end_step(self) -> Played:
        """Waits for the step that was started."""

    @property
    def batched(self) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return self._copies

    def observation_spec(self) -> types.ArraySpec:
        # Bounds are arrays: of scalar ones NumPy 2 makes an overflow in TF-Agents.
        shape = (self._image_size, self._image_size, 3)
        return array_spec.BoundedArraySpec(
            shape, np.uint8, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), "observation"
        )

    def action_spec(self) -> types.ArraySpec:
        return array_spec.BoundedArraySpec((), np.int32, 0, self.actions - 1, "action")

    def seed(self, seed: int) -> None:
        """Lets the next reset start from this seed, whatever happened before."""
        self._next_seed = seed

    def send(self, actions: np.ndarray) -> None:
        """Starts a step.

        Args:
            actions: [copies] integers.
        """
        self.start_step(np.asarray(actions, np.int32))
        self._waiting = True

    def receive(self) -> ts.TimeStep:
        """Waits for the step that was started, and returns it."""
        played = self.end_step()
        self._waiting = False
        first, self._ended = self._ended, played.ended | played.cut_off
        self._steps += 1
        self.raw_reward = played.rewards.astype(np.float64)
        self._scores += self.raw_reward
        for copy in np.flatnonzero(played.game_over):
            self._episodes.append(Episode(float(self._scores[copy]), self._steps))
            self._scores[copy] = 0.0
        step_type = np.where(
            first, ts.StepType.FIRST, np.where(self._ended, ts.StepType.LAST, ts.StepType.MID)
        )
        clipped = np.clip(self.raw_reward, -self._reward_clip, self._reward_clip)
        return ts.TimeStep(
            step_type.astype(np.int32),
            np.where(first, 0.0, clipped).astype(np.float32),
            np.where(played.ended, 0.0, 1.0).astype(np.float32),
            played.screens,
        )

    def take_episodes(self) -> list[Episode]:
        """Returns the games that ended since the last call, or since the last reset."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def _reset(self) -> ts.TimeStep:
        if self._waiting:
            self.end_step()
            self._waiting = False
        screens = self.start_games(self._next_seed)
        self._next_seed = None
        self._ended[:] = False
        self._scores[:] = 0.0
        self.raw_reward = np.zeros(self._copies)
        self._steps = 0
        self._episodes = []
        return ts.restart(screens, batch_size=self._copies)

    def _step(self, action) -> ts.TimeStep:
        self.send(action)
        return self.receive()


def check_numbers(copies: int, reward_clip: float, image_size: int, frame_skip: int) -> None:
    """Raises ValueError if a number makes no sense."""
    for name, number in (
        ("copies", copies),
        ("image_size", image_size),
        ("frame_skip", frame_skip),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, and is {number}.")
    if not reward_clip > 0:
        raise ValueError(f"reward_clip must be above 0, and is {reward_clip}.")
