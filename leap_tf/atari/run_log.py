"""Logs of task runs: a file of finished runs, and progress lines on standard error."""

import json
import os
import pathlib
import resource
import sys
import time

from leap_tf.atari.evaluation import curve
from leap_tf.atari.problem import Progress, TaskRunStoppedError, TrainedGame


class TaskRunLog:
    """Appends a line to a file for every task run, and prints one from time to time.

    A restarted run repeats the task runs of its unfinished meta-step. Their lines differ only in
    times and memory. `peak_memory_mb` is that of this process so far; environments are kept, so it
    grows with every new game. With a cluster, games run in other processes.

    Args:
        path: the file of JSON lines.
        seconds: minimum time between two printed lines.
    """

    def __init__(self, path: str | os.PathLike, seconds: float = 10.0):
        self._path = pathlib.Path(path)
        self._print = _Printer(seconds, last=float("-inf"))

    def __call__(self, trained: TrainedGame) -> None:
        """Logs a task run."""
        run = trained.evaluation
        rewards = 1e3 * curve(run.rewards, min(10, run.updates))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = {
            "game": run.game,
            "seed": run.seed,
            "updates": run.updates,
            "frames": run.frames,
            "seconds": round(run.seconds, 3),
            "frames_per_second": round(run.frames / run.seconds, 1),
            "updates_per_second": round(run.updates / run.seconds, 2),
            "loss": round(float(run.losses.mean()), 5),
            "reward": round(run.area_under_reward, 3),
            "rewards": [round(float(reward), 3) for reward in rewards],
            "games": len(run.episodes),
            "score": run.score,
            "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        }
        text = "no game finished" if run.score is None else f"score {run.score:.1f}"
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._print(
            f"{run.game}: {run.frames:,} frames, {line['frames_per_second']:.0f} frames/s, "
            f"{line['updates_per_second']:.1f} updates/s, reward {line['reward']:.1f} per 1000 "
            f"steps, {text}"
        )


class ProgressLog:
    """Prints the progress of long task runs, at most once in some seconds, and can stop them."""

    def __init__(self, seconds: float = 60.0):
        self._print = _Printer(seconds, last=time.monotonic())
        self._stopped = False

    def stop(self) -> None:
        """Stops all task runs after their next update; safe to call from a signal handler."""
        self._stopped = True

    def __call__(self, progress: Progress) -> None:
        """Logs an update; may be called by any thread.

        Raises:
            TaskRunStoppedError: `stop` was called.
        """
        if self._stopped:
            raise TaskRunStoppedError(progress)
        self._print(
            f"{progress.game}: {progress.update:,} of {progress.updates:,} updates, "
            f"{progress.frames:,} frames so far"
        )


class _Printer:
    """Prints a line to standard error, unless the last one is less than some seconds ago."""

    def __init__(self, seconds: float, last: float):
        self._seconds, self._last = seconds, last

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)
