"""How an agent learned a game, in figures: curves over frames, their area, time to a score.

Two rewards are told apart: what the agent is trained on (clipped), and what the game gives (raw).
Sums of raw rewards over whole games are scores.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from leap_tf.atari.screen_environment import Episode
from leap_tf.serialization import Parts, UnfitPartsError, parts_of_record, record_of_parts


@dataclasses.dataclass(frozen=True)
class GameEvaluation:
    """One visit to a game.

    Attributes:
        game: its name.
        seed: of the visit.
        copies: how many were played at a time.
        frames_per_update: frames of all copies together between two updates.
        frame_skip: frames of a step.
        losses, entropies: [updates] of each unroll, before the update it caused; empty where the
            agent did not learn.
        rewards: [updates] clipped reward, mean per step of a copy.
        raw_rewards: [updates] the same, not clipped.
        episodes: games that ended, in order.
        seconds: what it took, without making and resetting the environments.
        path_length, path_energy: of the gradient path of all parameters, if it was measured.
    """

    game: str
    seed: int
    copies: int
    frames_per_update: int
    frame_skip: int
    losses: np.ndarray
    entropies: np.ndarray
    rewards: np.ndarray
    raw_rewards: np.ndarray
    episodes: Sequence[Episode]
    seconds: float
    path_length: float | None = None
    path_energy: float | None = None

    @property
    def updates(self) -> int:
        """How many updates were made."""
        return len(self.rewards)

    @property
    def frames(self) -> int:
        """Frames of all copies together."""
        return self.updates * self.frames_per_update

    @property
    def area_under_reward(self) -> float:
        """Mean height of the curve of clipped rewards, per 1000 steps."""
        return 1e3 * float(self.rewards.mean())

    @property
    def score(self) -> float | None:
        """Mean score of the last quarter of the games that ended, None if none did."""
        if not self.episodes:
            return None
        last = self.episodes[-max(1, len(self.episodes) // 4) :]
        return float(np.mean([episode.score for episode in last]))

    def final_reward(self, share: float = 0.25) -> float:
        """Returns the mean clipped reward per 1000 steps over the last `share` of the updates."""
        return 1e3 * float(self.rewards[-max(1, int(share * self.updates)) :].mean())

    def frames_to_reward(self, target: float, share: float = 0.1) -> int | None:
        """Returns the frames until the clipped reward of the last updates reached `target`.

        Args:
            target: clipped reward per 1000 steps.
            share: of all updates, over which the running mean goes; so many must have been made.

        Returns:
            Frames of all copies, or None if it was not reached.
        """
        window = max(1, round(share * self.updates))
        sums = np.cumsum([0.0, *np.asarray(self.rewards, np.float64)])
        means = 1e3 * (sums[window:] - sums[:-window]) / window
        reached = np.flatnonzero(means >= target)
        return int(reached[0] + window) * self.frames_per_update if reached.size else None

    def frames_to_score(self, target: float, window: int = 10) -> int | None:
        """Returns the frames until the last `window` games had a mean score of `target`.

        Args:
            target: the score to reach.
            window: games in the running mean; so many must have ended.

        Returns:
            Frames of all copies, or None if it was not reached.
        """
        scores = [episode.score for episode in self.episodes]
        for end in range(window, len(scores) + 1):
            if np.mean(scores[end - window : end]) >= target:
                return self._frames_at(self.episodes[end - 1])
        return None

    def score_curve(self, points: int) -> np.ndarray:
        """Returns [points] mean scores of the games that ended in each part of the visit.

        Where none ended, the value is not a number.
        """
        parts: list[list[float]] = [[] for _ in range(points)]
        for episode in self.episodes:
            part = (self._frames_at(episode) - 1) * points // max(self.frames, 1)
            parts[min(part, points - 1)].append(episode.score)
        return np.array([np.mean(part) if part else np.nan for part in parts])

    def as_record(self) -> dict:
        """Returns everything as plain numbers, curves included."""
        record = dataclasses.asdict(self)
        for name in ("losses", "entropies", "rewards", "raw_rewards"):
            record[name] = [round(float(value), 5) for value in record[name]]
        record["episodes"] = [list(episode) for episode in self.episodes]
        return record

    @classmethod
    def from_record(cls, record: Mapping) -> "GameEvaluation":
        """Reads what `as_record` gave."""
        arrays = {
            name: np.array(record[name])
            for name in ("losses", "entropies", "rewards", "raw_rewards")
        }
        episodes = tuple(Episode(score, int(steps)) for score, steps in record["episodes"])
        return cls(**{**record, **arrays, "episodes": episodes})

    def parts(self) -> Parts:
        """Returns all of it as plain values and arrays, to the last digit."""
        parts = parts_of_record(self)
        episodes = [list(episode) for episode in self.episodes]
        return Parts({**parts.plain, "episodes": episodes}, parts.arrays)

    @classmethod
    def from_parts(cls, parts: Parts) -> "GameEvaluation":
        """Reads what `parts` gave; raises UnfitPartsError if it is something else."""
        read = record_of_parts(cls, parts, {**get_type_hints(cls), "episodes": list})
        episodes = []
        for episode in read.episodes:
            match episode:
                case [int() | float() as score, int(steps)]:
                    episodes.append(Episode(score, steps))
                case _:
                    raise UnfitPartsError(f"{episode!r} is no episode.")
        return dataclasses.replace(read, episodes=tuple(episodes))

    def _frames_at(self, episode):
        return episode.steps * self.copies * self.frame_skip


@dataclasses.dataclass(frozen=True)
class GameEvaluations:
    """Visits to several games from the same initialization."""

    games: tuple[GameEvaluation, ...]

    def metrics(self) -> dict[str, float]:
        """Returns means over the games; rewards are per 1000 steps."""
        return {
            "loss": float(np.mean([game.losses.mean() for game in self.games])),
            "reward": float(np.mean([game.area_under_reward for game in self.games])),
            "final_reward": float(np.mean([game.final_reward() for game in self.games])),
        }


def curve(values: ArrayLike, points: int) -> np.ndarray:
    """Returns [points] means of consecutive parts of `values`, nearly equal in size.

    Args:
        values: [updates], at least `points`.
        points: how many parts.
    """
    return np.array([np.mean(part) for part in np.array_split(np.asarray(values), points)])
