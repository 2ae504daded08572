"""Games as batched TF-Agents environments.

`ScreenEnvironment` turns the screens, rewards and ends of several copies of a game into time steps
with clipped rewards and discounts, and records the raw scores of whole games. The step after the
end of an episode ignores its action and starts the next episode (LAST → FIRST in TF-Agents). An
episode may also end with the loss of a life while the game continues. The step after it then plays
the given action; its reward counts for the score, but the time step has reward 0.
"""

import abc
import difflib
import functools
import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from tf_agents.environments import py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.typing import types

# These games need two or more players. The emulator ends the process instead of raising.
MULTI_PLAYER_GAMES = frozenset({"combat", "joust", "maze_craze", "warlords"})


class Episode(NamedTuple):
    """A finished game: its raw score, and the number of steps from `reset` to its end."""

    score: float
    steps: int


class StepResult(NamedTuple):
    """Result of one step in each copy."""

    screens: np.ndarray  # [copies, height, width, 3] uint8
    rewards: np.ndarray  # [copies], not clipped
    ended: np.ndarray  # [copies] bool, whether the episode ended in a terminal state
    cut_off: np.ndarray  # [copies] bool, whether a time limit ended the episode
    game_over: np.ndarray  # [copies] bool, whether the game ended, so that its score is final


class ScreenEnvironment(py_environment.PyEnvironment, abc.ABC):
    """Base class of environments for games.

    Args:
        actions: number of actions. For the other arguments see `AtariEnvironment`.

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

    @abc.abstractmethod
    def start_games(self, seed: int | None) -> np.ndarray:
        """Restarts all copies and returns their screens; None continues the random state."""

    @abc.abstractmethod
    def play(self, actions: np.ndarray) -> StepResult:
        """Makes a step, given [copies] int32 actions."""

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

    def _step(self, action) -> ts.TimeStep:
        result = self.play(np.asarray(action, np.int32))
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
        screens = self.start_games(self._next_seed)
        self._next_seed = None
        self._ended = np.zeros(self._copies, bool)
        self._scores = np.zeros(self._copies)
        self._steps = 0
        self._episodes = []
        self.raw_reward = np.zeros(self._copies)
        return ts.restart(screens, batch_size=self._copies)


class AtariEnvironment(ScreenEnvironment):
    """Copies of an Atari game, stepped together on ale-py's C++ vector environment.

    The emulator resizes and skips frames on its own threads. Observations are RGB screens. The seed
    determines no-op starts and sticky actions, whatever the number of threads. A reset after
    `seed()` reloads the game (90 ms of one core per copy); a reset without it takes 5 ms.

    The vector environment has no modes and difficulties. A flavour of a game, such as
    "freeway/m3/d1", is played by `ALEInterface` in Python, which emulates on one thread only.

    Args:
        game: the emulator's name of the game, such as "ms_pacman", or one of its `flavours`.
        copies: number of copies that run together.
        seed: seed of the first reset; copy i uses seed + i.
        emulator_threads: number of C++ threads that emulate; 1 for a flavour.
        frame_skip: frames per step, during which the action is repeated.
        max_pool: whether the screen is the maximum of the last two frames.
        no_op_max: an episode starts with a random number of no-op frames, fewer than this. In games
            that start on "fire", the first of them is "fire"; there is at least this one.
        fire_on_reset: whether to press "fire" in games that start on it.
        reward_clip: rewards are clipped to ± this value.
        sticky_actions: probability of repeating the previous action instead.
        life_loss_ends: whether the loss of a life ends an episode; the game and its score go on.
        max_frames: frames after which a game is cut off; the discount then stays 1.
        all_actions: whether to offer all 18 actions instead of those that the game uses.
        image_size: height and width of the screens in pixels.

    Raises:
        ValueError: the game is unknown or needs several players, it has no such mode or difficulty,
            or a setting is out of range.
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
        check_emulated(game)
        # Checked first because the emulator hangs or ends the process on some wrong values.
        _check_counts(1, copies=copies, image_size=image_size, frame_skip=frame_skip)
        _check_counts(1, emulator_threads=emulator_threads, max_frames=max_frames)
        _check_counts(0, no_op_max=no_op_max)
        if not 0.0 <= sticky_actions <= 1.0:
            raise ValueError(f"sticky_actions must be a probability. Received: {sticky_actions}.")
        self._life_loss_ends = life_loss_ends
        settings: dict[str, Any] = {
            "max_num_frames_per_episode": max_frames,
            "repeat_action_probability": sticky_actions,
            "full_action_space": all_actions,
            "img_height": image_size,
            "img_width": image_size,
            "frameskip": frame_skip,
            "maxpool": max_pool,
            "noop_max": no_op_max,
            "life_loss_info": life_loss_ends,
            "use_fire_reset": fire_on_reset,
        }
        self._emulator: Any
        if "/" in game:
            if emulator_threads > 1:
                raise ValueError(
                    f"emulator_threads must be 1 for a flavour such as {game!r}, which Python "
                    f"emulates. Received: {emulator_threads}."
                )
            self._emulator = _FlavourEmulator(game, copies, **settings)
        else:
            self._emulator = AtariVectorEnv(
                game,
                copies,
                num_threads=emulator_threads,
                grayscale=False,
                stack_num=1,
                reward_clipping=False,  # the emulator can only clip to ± 1
                **settings,
            )
        sizes = {"image_size": image_size, "frame_skip": frame_skip}
        actions = len(self._emulator.ale.get_action_set())
        super().__init__(copies, actions, seed, reward_clip=reward_clip, **sizes)

    def start_games(self, seed: int | None) -> np.ndarray:
        screens, _ = self._emulator.reset(seed=seed)
        return screens[:, 0]

    def play(self, actions: np.ndarray) -> StepResult:
        screens, rewards, ended, cut_off, info = self._emulator.step(actions)
        no_lives = info["lives"] == 0 if self._life_loss_ends else True
        return StepResult(screens[:, 0], rewards, ended, cut_off, cut_off | (ended & no_lives))


class _FlavourEmulator:
    """Copies of a flavour, with the methods of `AtariVectorEnv` that `AtariEnvironment` calls.

    In mode 0 and difficulty 0, both play the same games. Only the random numbers of no-ops and the
    last screen of an episode differ.
    """

    def __init__(self, flavour: str, copies: int, **settings):
        self._consoles = [_Console(flavour, settings) for _ in range(copies)]
        self.ale = self._consoles[0]

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict]:
        for number, console in enumerate(self._consoles):
            if seed is not None:
                console.load(seed + number)
            console.start_game()
        return self._screens(), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        results = [console.step(action) for console, action in zip(self._consoles, actions)]
        rewards, ended, cut_off, lives = map(np.array, zip(*results))
        return self._screens(), rewards, ended, cut_off, {"lives": lives}

    def _screens(self):
        return np.stack([console.screen() for console in self._consoles])[:, None]


class _Console:
    """One emulated game with a mode and a difficulty. The step after its end starts a new game."""

    def __init__(self, flavour: str, settings: dict):
        self._flavour = flavour
        self._settings = settings
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._emulator = ALEInterface()
        self._emulator.setFloat("repeat_action_probability", settings["repeat_action_probability"])
        self.load(0)

    def get_action_set(self) -> list[Action]:
        return self._actions

    def load(self, seed: int) -> None:
        game, mode, difficulty = re.split("/[md]", self._flavour)
        emulator = self._emulator
        emulator.setInt("random_seed", seed)
        emulator.loadROM(roms.get_rom_path(game))  # type: ignore[arg-type]
        emulator.setMode(int(mode))
        emulator.setDifficulty(int(difficulty))
        every = self._settings["full_action_space"]
        self._actions = emulator.getLegalActionSet() if every else emulator.getMinimalActionSet()
        self._random = np.random.default_rng(seed)
        self._over = True

    def start_game(self) -> None:
        emulator, settings = self._emulator, self._settings
        emulator.reset_game()
        fires = settings["use_fire_reset"] and Action.FIRE in self._actions
        if fires:
            emulator.act(Action.FIRE)
        for _ in range(int(self._random.integers(max(1, settings["noop_max"]))) - fires):
            emulator.act(Action.NOOP)
            if emulator.game_over(with_truncation=False):
                emulator.reset_game()
        self._frames = [emulator.getScreenRGB()]
        self._steps, self._lives, self._over = 0, emulator.lives(), False

    def step(self, action: int) -> tuple[int, bool, bool, int]:
        """Plays a step. Returns the reward, whether a game or life ended, cut-off, and lives."""
        emulator, settings = self._emulator, self._settings
        if self._over:
            self.start_game()
            return 0, False, False, self._lives
        reward, shown = 0, min(settings["frameskip"], 1 + settings["maxpool"])
        for left in reversed(range(settings["frameskip"])):
            reward += emulator.act(self._actions[action])
            if left < shown:
                self._frames = [*self._frames, emulator.getScreenRGB()][-shown:]
            if ended := emulator.game_over(with_truncation=False):
                break
        self._steps += 1
        before, self._lives = self._lives, emulator.lives()
        cut_off = self._steps * settings["frameskip"] >= settings["max_num_frames_per_episode"]
        self._over = ended or cut_off
        ended |= settings["life_loss_info"] and 0 < self._lives < before
        return reward, ended, cut_off, self._lives

    def screen(self) -> np.ndarray:
        """Returns the maximum of the last frames, resized as the vector environment does."""
        size = self._settings["img_width"], self._settings["img_height"]
        return cv2.resize(
            functools.reduce(np.maximum, self._frames), size, interpolation=cv2.INTER_AREA
        )


def available_games() -> list[str]:
    """Returns the sorted names of all games for one player."""
    return sorted(set(roms.get_all_rom_ids()) - MULTI_PLAYER_GAMES)


@functools.cache
def flavours(game: str) -> tuple[str, ...]:
    """Returns the flavours of a game: its modes and difficulties, such as "freeway/m3/d1".

    Source: Farebrother, Machado and Bowling 2018, "Generalization and Regularization in DQN".

    Raises:
        ValueError: the emulator does not have the game, or it needs several players.

    Example:

        >>> flavours("crazy_climber")[:3]
        ('crazy_climber/m0/d0', 'crazy_climber/m0/d1', 'crazy_climber/m1/d0')
    """
    check_rom(game)
    ALEInterface.setLoggerMode(LoggerMode.Error)
    emulator = ALEInterface()
    emulator.loadROM(roms.get_rom_path(game))  # type: ignore[arg-type]
    return tuple(
        f"{game}/m{mode}/d{difficulty}"
        for mode in emulator.getAvailableModes()
        for difficulty in emulator.getAvailableDifficulties()
    )


def check_game(name: str) -> None:
    """Checks that a game has this name: "pong", "pong/m0/d1" or "catch/17"; raises ValueError."""
    if name.partition("/")[0] == "catch":
        layout_seed(name)
    else:
        check_emulated(name)


def plain_name(name: str) -> str:
    """Returns the name of a known game, without mode and difficulty if they are its first."""
    game = name.partition("/")[0]
    return game if game != "catch" and name == flavours(game)[0] else name


def check_emulated(name: str) -> None:
    """Checks that the emulator has a game or a flavour of this name; raises ValueError."""
    game, separator, _ = name.partition("/")
    if not separator:
        check_rom(name)
    elif name not in flavours(game):
        raise ValueError(f"{game} has no flavour {name!r}. It has: {', '.join(flavours(game))}.")


def layout_seed(name: str) -> int:
    """Returns the number in the name of a `CatchEnvironment`; raises ValueError without one."""
    if not re.fullmatch(r"catch/(0|[1-9]\d{0,8})", name):
        raise ValueError(f"{name!r} must be catch/ and a number of up to nine digits: 'catch/17'.")
    return int(name.removeprefix("catch/"))


def check_rom(name: str) -> None:
    """Checks that the emulator has a single-player game of this name; raises ValueError."""
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
    """Returns the observation spec of uint8 screens with this shape."""
    # The bounds are arrays because TF-Agents overflows on scalar bounds under NumPy 2.
    low, high = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    return array_spec.BoundedArraySpec(shape, np.uint8, low, high, "observation")
