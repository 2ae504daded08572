"""Evaluations of agents on games: learning curves over frames, their area, frames to a score.

Clipped rewards are those that the agent is trained on; raw rewards are the game's own. A score is
the sum of raw rewards over a whole game.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from leap_tf.atari.environments import Episode

CURVES = ("losses", "entropies", "rewards", "raw_rewards")


@dataclasses.dataclass(frozen=True)
class GameEvaluation:
    """Record of a task run: the training of one agent on one game."""

    game: str
    seed: int
    copies: int  # played together
    frames_per_update: int  # frames of all copies together between two updates
    frame_skip: int  # frames per step
    losses: np.ndarray  # [updates] of each unroll, before its update; empty without learning
    entropies: np.ndarray  # as losses
    rewards: np.ndarray  # [updates] clipped reward, mean per step of a copy
    raw_rewards: np.ndarray  # [updates] raw reward, mean per step of a copy
    episodes: tuple[Episode, ...]  # finished games, in order
    seconds: float  # duration, without creating and resetting the environments
    path_length: float | None = None  # of the gradient path of all parameters, if measured
    path_energy: float | None = None  # of the same path

    @property
    def updates(self) -> int:
        """Number of updates."""
        return len(self.rewards)

    @property
    def frames(self) -> int:
        """Frames of all copies together."""
        return self.updates * self.frames_per_update

    @property
    def area_under_reward(self) -> float:
        """Mean clipped reward per 1000 steps over the whole run."""
        return 1e3 * float(self.rewards.mean())

    @property
    def score(self) -> float | None:
        """Mean score of the last quarter of the finished games.

        None if fewer than two a copy finished: the first ones to finish are not typical.
        """
        if len(self.episodes) < 2 * self.copies:
            return None
        last = self.episodes[-max(1, len(self.episodes) // 4) :]
        return float(np.mean([episode.score for episode in last]))

    @property
    def final_reward(self) -> float:
        """Mean clipped reward per 1000 steps over the last quarter of the updates."""
        return 1e3 * float(self.rewards[-max(1, self.updates // 4) :].mean())

    def frames_to_score(self, target: float, window: int = 10) -> int | None:
        """Returns the frames until the mean score of the last `window` games reaches `target`.

        The result is None if the target is not reached, or fewer games have finished.
        """
        scores = pd.Series([episode.score for episode in self.episodes], dtype=float)
        means = scores.rolling(window).mean()
        reached = np.flatnonzero(means >= target)
        return self._frames_at(self.episodes[reached[0]]) if reached.size else None

    def score_curve(self, points: int) -> np.ndarray:
        """Returns [points] mean scores of the games that finished in each part of the run.

        The value of a part in which no game finished is NaN.
        """
        ends = [(self._frames_at(episode) - 1) * points // self.frames for episode in self.episodes]
        scores = pd.Series([episode.score for episode in self.episodes], dtype=float)
        means = scores.groupby(np.minimum(ends, points - 1)).mean()
        return means.reindex(range(points)).to_numpy()

    def as_record(self) -> dict:
        """Returns the evaluation as plain numbers, with curves rounded to five digits."""
        record = dataclasses.asdict(self)
        for name in CURVES:
            record[name] = [round(float(value), 5) for value in record[name]]
        record["episodes"] = [list(episode) for episode in self.episodes]
        return record

    @classmethod
    def from_record(cls, record: Mapping) -> "GameEvaluation":
        """Reads the result of `as_record`."""
        arrays = {name: np.array(record[name]) for name in CURVES}
        episodes = tuple(Episode(score, int(steps)) for score, steps in record["episodes"])
        return cls(**{**record, **arrays, "episodes": episodes})

    def _frames_at(self, episode):
        return episode.steps * self.copies * self.frame_skip


@dataclasses.dataclass(frozen=True)
class GameEvaluations:
    """Evaluations on several games, from the same initialization."""

    games: tuple[GameEvaluation, ...]

    def metrics(self) -> dict[str, float]:
        """Returns means over the games; rewards are per 1000 steps."""
        return {
            "loss": float(np.mean([game.losses.mean() for game in self.games])),
            "reward": float(np.mean([game.area_under_reward for game in self.games])),
            "final_reward": float(np.mean([game.final_reward for game in self.games])),
        }


def curve(values: ArrayLike, points: int) -> np.ndarray:
    """Returns [points] means of consecutive parts of at least `points` values, of similar size."""
    return np.array([np.mean(part) for part in np.array_split(np.asarray(values), points)])
