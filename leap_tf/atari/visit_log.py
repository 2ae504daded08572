"""What a person sees of visits to games, and what is kept of them."""

import json
import os
import pathlib
import resource
import sys
import threading
import time

from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.atari.visit import VisitStoppedError
from leap_tf.training import SeededTask


class VisitLog:
    """Appends a line to a file for every visit, and shows one now and then.

    A run that is started again repeats visits of the meta-step that was under way; those lines
    are the same but for times and memory. The latter is the most that this process, in which
    games are played unless a cluster plays them, has had so far: environments are kept, so it grows
    with every new game.

    Args:
        path: the file of JSON lines.
        seconds: least time between two lines that are shown.
        points: of the reward's curve in a line.
        stream: where to show; standard error by default.
    """

    def __init__(
        self, path: str | os.PathLike, seconds: float = 10.0, points: int = 10, stream=None
    ):
        self._path = pathlib.Path(path)
        self._seconds = seconds
        self._points = points
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._last_shown = float("-inf")

    def __call__(self, visit: GameEvaluation) -> None:
        """Takes note of a visit; any thread may call it."""
        line = {
            "game": visit.game,
            "seed": visit.seed,
            "updates": visit.updates,
            "frames": visit.frames,
            "seconds": round(visit.seconds, 3),
            "frames_per_second": round(visit.frames / visit.seconds, 1),
            "updates_per_second": round(visit.updates / visit.seconds, 2),
            "loss": round(float(visit.losses.mean()), 5),
            "reward": round(visit.area_under_reward, 3),
            "rewards": [
                round(1e3 * float(mean), 3)
                for mean in curve(visit.rewards, min(self._points, visit.updates))
            ],
            "games": len(visit.episodes),
            "score": visit.score,
            "peak_memory_mb": round(_peak_memory_mb()),
        }
        with self._lock:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if time.monotonic() - self._last_shown >= self._seconds:
                self._last_shown = time.monotonic()
                print(describe(line), file=self._stream, flush=True)


class VisitWatch:
    """Shows now and then how far visits under way have come, and can end them.

    Args:
        seconds: least time between two lines.
        stream: where to show; standard error by default.
    """

    def __init__(self, seconds: float = 60.0, stream=None):
        self._seconds = seconds
        self._stream = stream or sys.stderr
        self._last_shown = time.monotonic()
        self._stopped = False

    def stop(self) -> None:
        """Ends all visits after their next update; safe to call from a signal handler."""
        self._stopped = True

    def __call__(self, seeded: SeededTask, frames_per_update: int, updates: int) -> None:
        """Takes note of an update; any thread may call it.

        Raises:
            VisitStoppedError: visits are to end.
        """
        if self._stopped:
            raise VisitStoppedError(seeded.task.name, updates)
        if time.monotonic() - self._last_shown >= self._seconds:
            self._last_shown = time.monotonic()
            print(
                f"{seeded.task.name}: {updates:,} of {seeded.steps:,} updates, "
                f"{updates * frames_per_update:,} frames so far",
                file=self._stream,
                flush=True,
            )


def describe(line: dict) -> str:
    """Returns a line of the log for people."""
    score = "no game ended" if line["score"] is None else f"score {line['score']:.1f}"
    return (
        f"{line['game']}: {line['frames']:,} frames, {line['frames_per_second']:.0f} frames/s, "
        f"{line['updates_per_second']:.1f} updates/s, reward {line['reward']:.1f} per 1000 steps, "
        f"{score}"
    )


def _peak_memory_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
