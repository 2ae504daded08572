"""Games as batched TF-Agents environments.

`ScreenEnvironment` turns the screens, rewards and ends of several copies of a game into time steps
with clipped rewards and discounts, and records the raw scores of whole games.

    step(action) = send(action), receive()

Between the two calls the game may work on threads of its own. The step after the end of an episode
ignores its action and starts the next episode (LAST → FIRST in TF-Agents). If an episode ends with
the loss of a life and the game continues, that step is played with the action, and its reward
counts for the score only.
"""

import abc
import collections
import contextlib
import dataclasses
import difflib
import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from tf_agents.environments import py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

# These games need two or more players. The emulator ends the process instead of raising.
MULTI_PLAYER_GAMES = frozenset({"combat", "joust", "maze_craze", "warlords"})


class Episode(NamedTuple):
    """A finished game: its raw score, and the number of steps since `reset` at its end."""

    score: float
    steps: int


class StepResult(NamedTuple):
    """Result of one step in each copy."""

    screens: np.ndarray  # [copies, height, width, 3] uint8
    rewards: np.ndarray  # [copies], not clipped
    ended: np.ndarray  # [copies] bool, whether the episode ended in a terminal state
    cut_off: np.ndarray  # [copies] bool, whether a time limit ended the episode
    game_over: np.ndarray  # [copies] bool, whether the whole game is over: its score is known


class ScreenEnvironment(py_environment.PyEnvironment, abc.ABC):
    """Base class of all games.

    Args:
        actions: number of actions. The other arguments are those of `AtariEnvironment`.

    Attributes:
        raw_reward: [copies] float64, rewards of the last step, not clipped.

    Raises:
        ValueError: a count or size is below 1, or `reward_clip` is not positive.
    """

    _ended: np.ndarray
    _scores: np.ndarray
    _steps: int
    _episodes: list[Episode]

    def __init__(
        self,
        copies: int,
        actions: int,
        seed: int,
        *,
        reward_clip: float,
        image_size: int,
        frame_skip: int,
    ):
        _check_counts(1, copies=copies, image_size=image_size, frame_skip=frame_skip)
        if not reward_clip > 0:
            raise ValueError(f"reward_clip must be above 0. Received: {reward_clip}.")
        super().__init__(handle_auto_reset=False)
        self.actions = actions
        self.frame_skip = frame_skip
        self._copies = copies
        self._reward_clip = reward_clip
        self._image_size = image_size
        self._next_seed: int | None = seed
        self._waiting = False

    @abc.abstractmethod
    def start_games(self, seed: int | None) -> np.ndarray:
        """Restarts all copies and returns their screens; None continues the random state."""

    @abc.abstractmethod
    def start_step(self, actions: np.ndarray) -> None:
        """Starts a step, given [copies] int32 actions."""

    @abc.abstractmethod
    def end_step(self) -> StepResult:
        """Waits for the step that was started."""

    @property
    def batched(self) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return self._copies

    def observation_spec(self) -> types.ArraySpec:
        return screen_spec((self._image_size, self._image_size, 3))

    def action_spec(self) -> types.ArraySpec:
        return array_spec.BoundedArraySpec((), np.int32, 0, self.actions - 1, "action")

    def seed(self, seed: int) -> None:
        """Makes the next reset start from this seed, whatever was played before."""
        self._next_seed = seed

    def send(self, actions: np.ndarray) -> None:
        """Starts a step with [copies] integer actions."""
        self.start_step(np.asarray(actions, np.int32))
        self._waiting = True

    def receive(self) -> ts.TimeStep:
        """Waits for the step that was started, and returns it."""
        result = self.end_step()
        self._waiting = False
        first, self._ended = self._ended, result.ended | result.cut_off
        self._steps += 1
        self.raw_reward = result.rewards.astype(np.float64)
        self._scores += self.raw_reward
        for copy in np.flatnonzero(result.game_over):
            self._episodes.append(Episode(float(self._scores[copy]), self._steps))
            self._scores[copy] = 0.0
        step_type = np.where(
            first, ts.StepType.FIRST, np.where(self._ended, ts.StepType.LAST, ts.StepType.MID)
        )
        clipped = np.clip(self.raw_reward, -self._reward_clip, self._reward_clip)
        return ts.TimeStep(
            step_type.astype(np.int32),
            np.where(first, 0.0, clipped).astype(np.float32),
            np.where(result.ended, 0.0, 1.0).astype(np.float32),
            result.screens,
        )

    def take_episodes(self) -> list[Episode]:
        """Returns the games that ended since the last call or reset."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def _reset(self) -> ts.TimeStep:
        if self._waiting:
            self.end_step()
            self._waiting = False
        screens = self.start_games(self._next_seed)
        self._next_seed = None
        self._ended = np.zeros(self._copies, bool)
        self._scores = np.zeros(self._copies)
        self._steps = 0
        self._episodes = []
        self.raw_reward = np.zeros(self._copies)
        return ts.restart(screens, batch_size=self._copies)

    def _step(self, action) -> ts.TimeStep:
        self.send(action)
        return self.receive()


class AtariEnvironment(ScreenEnvironment):
    """Copies of an Atari game on ale-py's C++ vector environment, stepped together.

    The emulator resizes and skips frames on its own threads. Observations are RGB screens. The seed
    determines no-op starts and sticky actions, whatever the number of threads. A reset after
    `seed()` reloads the game (90 ms of one core per copy); a reset without it takes 5 ms.

    Args:
        game: the emulator's name of the game, such as "ms_pacman".
        copies: number of copies that run together.
        seed: seed of the first reset; copy i uses seed + i.
        emulator_threads: number of C++ threads that emulate.
        frame_skip: frames per step, during which the action is repeated.
        max_pool: whether the screen is the maximum of the last two frames.
        no_op_max: an episode starts with a random number of frames without action, below this. If
            the game starts on "fire", the last of them is "fire".
        fire_on_reset: whether to press "fire" in games that start on it.
        reward_clip: rewards are clipped to ± this value.
        sticky_actions: probability of repeating the previous action instead.
        life_loss_ends: whether the loss of a life ends an episode; the game and its score go on.
        max_frames: frames after which a game is cut off; the discount then stays 1.
        all_actions: whether to offer all 18 actions instead of those that the game uses.
        image_size: height and width of the screens in pixels.

    Raises:
        ValueError: the game is unknown or needs several players, or a setting is out of range.
    """

    def __init__(
        self,
        game: str,
        copies: int = 32,
        seed: int = 0,
        emulator_threads: int = 1,
        *,
        frame_skip: int = 4,
        max_pool: bool = True,
        no_op_max: int = 30,
        fire_on_reset: bool = True,
        reward_clip: float = 5.0,
        sticky_actions: float = 0.0,
        life_loss_ends: bool = False,
        max_frames: int = 108_000,
        all_actions: bool = False,
        image_size: int = 84,
    ):
        check_rom(game)
        # Checked first because the emulator hangs or ends the process on some wrong values.
        _check_counts(1, copies=copies, image_size=image_size, frame_skip=frame_skip)
        _check_counts(1, emulator_threads=emulator_threads, max_frames=max_frames)
        _check_counts(0, no_op_max=no_op_max)
        if not 0.0 <= sticky_actions <= 1.0:
            raise ValueError(f"sticky_actions must be a probability. Received: {sticky_actions}.")
        self._life_loss_ends = life_loss_ends
        self._emulator = AtariVectorEnv(
            game,
            copies,
            num_threads=emulator_threads,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=sticky_actions,
            full_action_space=all_actions,
            img_height=image_size,
            img_width=image_size,
            grayscale=False,
            stack_num=1,
            frameskip=frame_skip,
            maxpool=max_pool,
            noop_max=no_op_max,
            life_loss_info=life_loss_ends,
            reward_clipping=False,  # the emulator can only clip to ± 1
            use_fire_reset=fire_on_reset,
        )
        super().__init__(
            copies,
            len(self._emulator.ale.get_action_set()),
            seed,
            reward_clip=reward_clip,
            image_size=image_size,
            frame_skip=frame_skip,
        )

    def start_games(self, seed: int | None) -> np.ndarray:
        screens, _ = self._emulator.reset(seed=seed)
        return screens[:, 0]

    def start_step(self, actions: np.ndarray) -> None:
        self._emulator.send(actions)

    def end_step(self) -> StepResult:
        screens, rewards, ended, cut_off, info = self._emulator.recv()
        no_lives = info["lives"] == 0 if self._life_loss_ends else True
        return StepResult(screens[:, 0], rewards, ended, cut_off, cut_off | (ended & no_lives))


class EnvironmentPool:
    """Environments of all games, created when a game is first played and then kept for reuse.

    Creating an environment takes seconds. Threads that play at the same time have different ones.
    Every use starts with a seeded reset, so results do not depend on which one a thread gets.

    Args:
        make_environment: called as make_environment(game=name).
        groups: number of environments per use, together one batch. The agent acts for one group
            while the emulator threads of another one work.

    Raises:
        ValueError: `groups` is below 1.
    """

    def __init__(self, make_environment: Callable[..., ScreenEnvironment], groups: int = 1):
        _check_counts(1, groups=groups)
        self._make_environment = make_environment
        self._groups = groups
        self._idle: dict[str, list[list[ScreenEnvironment]]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, game: str, seed: int) -> Iterator[list[ScreenEnvironment]]:
        """Lends environments of a game until the block ends.

        Args:
            game: name of the game.
            seed: seed of the next reset; copy i, counted over all groups, uses seed + i.
        """
        with self._lock:
            idle = self._idle[game]
            environments = idle.pop() if idle else []
        if not environments:
            environments = [self._make_environment(game=game) for _ in range(self._groups)]
        copies = 0
        for environment in environments:
            environment.seed(seed + copies)
            copies += environment.batch_size
        yield environments
        # After an error the environments may be broken, so they are not reused.
        with self._lock:
            self._idle[game].append(environments)


@dataclasses.dataclass(frozen=True)
class Game:
    """A game as a task, by its name. Raises as `check_game`."""

    name: str

    def __post_init__(self):
        check_game(self.name)


def games(names: list[str]) -> list[Game]:
    """Returns the games of these names; raises ValueError if one is unknown or given twice."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Games are given more than once: {', '.join(repeated)}.")
    return [Game(name) for name in names]


def available_games() -> list[str]:
    """Returns the sorted names of all games for one player."""
    return sorted(set(roms.get_all_rom_ids()) - MULTI_PLAYER_GAMES)


def check_game(name: str) -> None:
    """Raises ValueError unless a game has this name, such as "ms_pacman" or "catch/17"."""
    if name.startswith("catch"):
        layout_seed(name)
    else:
        check_rom(name)


def layout_seed(name: str) -> int:
    """Returns the number in the name of a `CatchEnvironment`; raises ValueError without one."""
    if not re.fullmatch(r"catch/\d{1,9}", name):
        raise ValueError(f"{name!r} must be catch/ and a number of up to nine digits: 'catch/17'.")
    return int(name.removeprefix("catch/"))


def check_rom(name: str) -> None:
    """Raises ValueError if the emulator does not have a game, or it needs several players."""
    if name in MULTI_PLAYER_GAMES:
        raise ValueError(f"{name!r} is a game for several players, which the emulator cannot run.")
    available = available_games()
    if name not in available:
        similar = difflib.get_close_matches(name.lower(), available, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(
            f"The emulator has no game {name!r}. Names are in lower case with underscores, such "
            f"as 'ms_pacman'.{hint}"
        )


def _check_counts(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if not least <= count < 2**31:
            raise ValueError(f"{name} must be at least {least} and below 2³¹. Received: {count}.")


def screen_spec(shape: tuple[int, ...]) -> array_spec.BoundedArraySpec:
    """Returns the specification of uint8 screens of a shape."""
    # The bounds are arrays because TF-Agents overflows on scalar bounds under NumPy 2.
    low, high = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    return array_spec.BoundedArraySpec(shape, np.uint8, low, high, "observation")
