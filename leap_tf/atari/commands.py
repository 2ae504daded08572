"""The Atari commands: meta-train, evaluate, compare, and screen games; and the logs they write.

`gin_files` are configuration files, `gin_params` bindings that override them, and `output_dir` is
the folder of a run. ConfigurationError, RunDirectoryError and ClusterError are raised before a file
is overwritten.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from leap_tf.atari import comparison
from leap_tf.atari.environments import check_game
from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.atari.problem import AtariProblem, Progress, TaskRunStoppedError, TrainedGame
from leap_tf.atari.study import (
    AtariStudyFactory,
    configured_evaluate,
    configured_meta_train,
    configured_study,
)
from leap_tf.experiments.commands import THREADS, Path, PoolChoice, exit_on_signals, stop_on_signals
from leap_tf.experiments.config import (
    ConfigurationError,
    operative_configuration,
    read_configuration,
    report_bindings_without_effect,
)
from leap_tf.experiments.run_directory import CachingPool, RunDirectory, bindings_of
from leap_tf.serialization import write_atomically

# Settings that do not affect a single agent. Changing them does not repeat a screening.
_OF_THE_STUDY = re.compile(
    r"atari_study\.(games|pool)$|atari_evaluate\.|atari_meta_train\.|meta/|Leap\.|"
    r"AtariProblem\.(learner|meta_optimizer|meta_batch_size)$"
)


def train(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    pool: PoolChoice = THREADS,
) -> None:
    """Starts or resumes meta-training of the configured study, on any pool with equal results."""
    run = RunDirectory(output_dir)
    config = read_configuration(gin_files, gin_params)
    run.check(config)
    report_bindings_without_effect(config)
    with pool.open(AtariStudyFactory(config)) as opened:
        log = TaskRunLog(run.path / "task_runs.jsonl")
        options = {"pool": opened} if opened else {}  # or the one of the configuration
        study = configured_study(on_result=log, on_update=ProgressLog(), **options)
        run.claim(config)
        if opened:
            opened.start()
        cache = CachingPool(study.trainer.pool, run.path / "cached_results")
        study.trainer.pool = cache
        with stop_on_signals(study.trainer):
            configured_meta_train(study=study, run=run)
        cache.clear()
    write_atomically(run.operative_config, operative_configuration())
    print(f"Encoder, metrics and logs are in {run.path}. Evaluate with bin/atari_evaluate.py.")


def evaluate(gin_params: Sequence[str], output_dir: Path) -> None:
    """Starts or resumes the evaluation of a finished run. Only `atari_evaluate` can be bound."""
    run = RunDirectory(output_dir)
    if others := [each for each in gin_params if not each.strip().startswith("atari_evaluate.")]:
        raise ConfigurationError(
            "Agents are evaluated with the settings of their run, so that an evaluation can be "
            f"resumed. Only atari_evaluate can be bound here, not {others}."
        )
    read_configuration([run.require_config()], gin_params)
    run.require_initialization()
    run.lock_out_others()
    progress = ProgressLog()
    with exit_on_signals(progress.stop), contextlib.suppress(TaskRunStoppedError):
        print(configured_evaluate(study=configured_study(), run=run, on_update=progress))
        print(f"All agents, the summary and plots are in {run.path}.")


def compare(runs: Sequence[str], output_dir: Path) -> None:
    """Compares evaluated runs, each given as "method=folder", and writes table and figures."""
    named = []
    for run in runs:
        method, separator, folder = run.partition("=")
        if not (separator and method and folder):
            raise ConfigurationError(f"Runs must be given as method=folder, not as {run!r}.")
        named.append((method, pathlib.Path(folder).expanduser()))
    print(comparison.compare(named, pathlib.Path(output_dir)))


def screen(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    games: Sequence[str],
    seeds: Sequence[int],
    *,
    updates: int | None = None,
    output: Path | None = None,
) -> None:
    """Trains single agents from fresh encoders and compares them with random play.

    Random play is the same agent without learning, from the same start and for as many steps. Use
    this to choose the settings and games of a configuration, and to check that agents learn. Lines
    of JSON are appended to `output`, and agents that are there already are not trained again.
    """
    file = pathlib.Path(output) if output else None
    present = file.read_text().splitlines() if file and file.exists() else []
    done = {_key(json.loads(line)) for line in present}
    for game in games:
        check_game(game)
        for seed in seeds:
            config = read_configuration(gin_files, [*gin_params, f"atari_study.seed = {seed}"])
            problem = configured_study().trainer.problem
            steps = updates or problem.setup.steps_per_task
            line = {
                "game": game,
                "seed": seed,
                "bindings": sorted(gin_params),
                "settings_sha256": _fingerprint(config),
                "updates": steps,
            }
            if _key(line) in done:
                continue
            line |= _against_random_play(problem, game, seed, steps)
            print(
                f"{game}, seed {seed}: {line['final_reward']:.1f} per 1000 steps in the last "
                f"quarter of {line['frames']:,} frames, random play "
                f"{line['random_final_reward']:.1f}, factor {line['factor']}; "
                f"{line['wall_seconds']:.0f} s",
                flush=True,
            )
            if file:
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    print(f"Bindings over {', '.join(map(str, gin_files))}: {sorted(gin_params)}", file=sys.stderr)


def _key(line):
    return tuple(line.get(name) for name in ("game", "seed", "settings_sha256", "updates"))


def _fingerprint(config: str) -> str:
    """Returns a hash of the settings that affect a single agent."""
    bindings = sorted(bindings_of(config).items())
    settings = [item for item in bindings if not _OF_THE_STUDY.match(item[0])]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _against_random_play(problem: AtariProblem, game: str, seed: int, steps: int) -> dict:
    """Trains the agent and plays the control at the same time, on two threads."""
    started, started_cpu = time.perf_counter(), time.process_time()

    def play(learning: bool) -> GameEvaluation:
        return problem.adapt(game, seed, steps, learning=learning)[0]

    with ThreadPoolExecutor(2) as executor:
        agent, control = executor.map(play, [True, False])
    reward, random_reward = agent.final_reward, control.final_reward
    return {
        "frames": agent.frames,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - started_cpu, 1),
        "final_reward": round(reward, 2),
        "random_final_reward": round(random_reward, 2),
        "reward": round(agent.area_under_reward, 2),
        "random_reward": round(control.area_under_reward, 2),
        "score": agent.score,
        "random_score": control.score,
        "factor": round(reward / random_reward, 3) if random_reward > 0 else None,
    }


class TaskRunLog:
    """Appends a JSON line to a file for every task run, and prints one every `seconds` at most.

    A restarted run repeats the task runs of its unfinished meta-step, with the same lines but for
    times and memory. `peak_memory_mb` is that of this process so far.
    """

    def __init__(self, path: str | os.PathLike, seconds: float = 10.0):
        self._path = pathlib.Path(path)
        self._print = _Printer(seconds, last=float("-inf"))

    def __call__(self, trained: TrainedGame) -> None:
        """Logs a task run."""
        run = trained.evaluation
        rewards = 1e3 * curve(run.rewards, min(10, run.updates))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, else in KiB
        line = {
            "game": run.game,
            "seed": run.seed,
            "updates": run.updates,
            "frames": run.frames,
            "seconds": round(run.seconds, 3),
            "frames_per_second": round(run.frames / run.seconds, 1),
            "loss": round(float(run.losses.mean()), 5),
            "reward": round(run.area_under_reward, 3),
            "rewards": [round(float(reward), 3) for reward in rewards],
            "games": len(run.episodes),
            "score": run.score,
            "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        }
        score = "too few games for a score" if run.score is None else f"score {run.score:.1f}"
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._print(
            f"{run.game}: {run.frames:,} frames, {line['frames_per_second']:.0f} frames/s, "
            f"reward {line['reward']:.1f} per 1000 steps, {score}"
        )


class ProgressLog:
    """Prints progress, at most one line in so many seconds, and can stop task runs."""

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
