"""Repeated kills of a training command, whose results must be those of an undisturbed run.

A run is watched through its folder alone, once a millisecond. Each kill comes a random time after
the folder shows that the run has reached a stage:

    start           before the first checkpoint
    training        between two meta-steps
    checkpoint      as soon as a half-written checkpoint is there
    validation      in the second half of a meta-step that ends with one
    final model     as soon as a half-written initialization is there
    evaluating      after training, before evaluation.json
    evaluation      as soon as evaluation.json is there, complete or not

After the kill, the same command must end with the same bits as an undisturbed run.
"""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence

import h5py
import numpy as np

from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.training import read_metrics
from tests.faults.record import ROOT, Fault

TIMEOUT = 600.0  # seconds in which any stage is reached


@dataclasses.dataclass(frozen=True)
class Victim:
    """A training command.

    Attributes:
        name: what the table calls it.
        binary: its file in bin/.
        gin_file: its configuration.
        bindings: gin bindings over it.
        flags: others.
        stages: those at which it can be killed, in the order of its progress.
    """

    name: str
    binary: str
    gin_file: str
    bindings: tuple[str, ...]
    flags: tuple[str, ...] = ()
    stages: tuple[str, ...] = (
        "start",
        "training",
        "checkpoint",
        "validation",
        "final model",
        "evaluating",
        "evaluation",
    )

    def start(self, folder: pathlib.Path) -> subprocess.Popen:
        """Starts the command, its output in a file beside the folder."""
        command = [sys.executable, str(ROOT / "bin" / self.binary), f"--output_dir={folder}"]
        command += [f"--gin_file={ROOT / self.gin_file}", *self.flags]
        command += [f"--gin_param={binding}" for binding in self.bindings]
        with folder.with_name(folder.name + ".log").open("a") as log:
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)


def supervised(flags: Sequence[str] = ()) -> Victim:
    """A small sinusoid study: every meta-step a checkpoint, every other one a validation."""
    return Victim(
        "bin/train.py, " + (" ".join(flags) or "threads"),
        "train.py",
        "gin_configs/sinusoid.gin",
        (
            "MetaTrainer.meta_batch_size = 2",
            "MetaTrainer.steps_per_task = 5",
            "sinusoid_splits.validation_tasks = 4",
            "sinusoid_splits.test_tasks = 40",
            "meta_train.meta_steps = 20",
            "meta_train.validation_freq = 2",
            "meta_train.validation_steps = 100",
            "meta_train.checkpoint_seconds = 0.0",
            "evaluate.steps = 100",
        ),
        tuple(flags),
    )


def atari(flags: Sequence[str] = ()) -> Victim:
    """Small agents on three games, with TF-Agents. Another command evaluates them."""
    return Victim(
        "bin/atari_train.py, " + (" ".join(flags) or "threads"),
        "atari_train.py",
        "gin_configs/atari_cpu.gin",
        (
            "atari_study.games = ['pong', 'freeway', 'crazy_climber']",
            "mnih_2013.filters = (4, 4)",
            "mnih_2013.units = 8",
            "AtariEnvironment.copies = 2",
            "AtariProblem.steps_per_task = 4",
            "AtariProblem.meta_batch_size = 2",
            "atari_meta_train.meta_steps = 12",
            "atari_meta_train.checkpoint_seconds = 0.0",
        ),
        tuple(flags),
        stages=("start", "training", "checkpoint", "final model"),
    )


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a finished run that must be the same every time."""

    weights: tuple[bytes, ...]
    metrics: tuple[dict, ...]
    evaluation: str


def results_of(folder: pathlib.Path) -> Results:
    """Reads the results of a finished run."""
    run = RunDirectory(folder)
    with zipfile.ZipFile(run.initialization) as archive, archive.open("model.weights.h5") as file:
        arrays: list[np.ndarray] = []
        with h5py.File(file) as weights:
            weights.visititems(
                lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None
            )
    return Results(
        weights=tuple(array.tobytes() for array in arrays),
        metrics=tuple(
            {name: value for name, value in entry.items() if name != "seconds"}
            for entry in read_metrics(run.metrics)
        ),
        evaluation=run.evaluation.read_text() if run.evaluation.exists() else "",
    )


@dataclasses.dataclass(frozen=True)
class Pace:
    """The times of an undisturbed run.

    Attributes:
        to_checkpoint: seconds to the first checkpoint.
        meta_step: seconds of a usual meta-step, median.
        validated: the same of those that validate.
        evaluating: seconds from the initialization to the end.
        meta_steps: how many it made.
    """

    to_checkpoint: float
    meta_step: float
    validated: float
    evaluating: float
    meta_steps: int


def run_undisturbed(victim: Victim, folder: pathlib.Path) -> tuple[Results, Pace]:
    """Runs the command to its end.

    Raises:
        RuntimeError: it fails.
    """
    run = RunDirectory(folder)
    started = time.monotonic()
    process = victim.start(folder)
    checkpoint = _wait(process, lambda: newest_checkpoint(run) > 0)
    initialization = _wait(process, run.initialization.exists)
    if process.wait(TIMEOUT):
        raise RuntimeError(f"The command failed: {_log(folder)}")
    ended = time.monotonic()
    entries = read_metrics(run.metrics)[1:]  # the first one is traced
    validated = [entry["seconds"] for entry in entries if "val_loss" in entry]
    usual = [entry["seconds"] for entry in entries if "val_loss" not in entry]
    return results_of(folder), Pace(
        to_checkpoint=checkpoint - started,
        meta_step=float(np.median(usual)),
        validated=float(np.median(validated)) if validated else 0.0,
        evaluating=ended - initialization,
        meta_steps=len(entries) + 1,
    )


def schedule(victim: Victim, pace: Pace, rng: random.Random) -> list[tuple[str, int]]:
    """Draws the kills of one run, each a stage and the meta-step after which it comes."""
    within = [stage for stage in victim.stages if stage in ("training", "checkpoint", "validation")]
    # The meta-step after an odd one is even, and validates.
    meta_steps = rng.sample(range(1, pace.meta_steps - 1, 2), k=2 * len(within))
    at_the_end = [s for s in victim.stages if s in ("final model", "evaluating", "evaluation")]
    return [
        *[("start", 0)] * 2,
        *sorted(zip(2 * within, meta_steps), key=lambda kill: kill[1]),
        *[(stage, pace.meta_steps) for stage in at_the_end],
    ]


def attack(
    victim: Victim,
    folder: pathlib.Path,
    kills: int,
    seed: int = 0,
    shorten: Callable[[list], list] = lambda planned: planned,
) -> Fault:
    """Kills runs of a command, restarts them, and compares their results.

    Args:
        victim: the command.
        folder: for the folders of the runs.
        kills: the least number of kills.
        seed: decides when they come.
        shorten: selects some of the kills of a run, if there is no time for all.
    """
    rng = random.Random(seed)
    expected, pace = run_undisturbed(victim, folder / "undisturbed")
    fault = Fault(
        f"SIGKILL: {victim.name}",
        expected="weights, metrics and evaluation bit-identical to an undisturbed run",
    )
    while fault.injected < kills:
        run = folder / f"run-{fault.trials}"
        fault.trials += 1
        planned = shorten(schedule(victim, pace, rng))[: kills - fault.injected]
        _kill_one_run(victim, run, planned, pace, rng=rng, fault=fault)
        actual = results_of(run)
        for field in dataclasses.fields(Results):
            if getattr(actual, field.name) != getattr(expected, field.name):
                fault.failures.append(f"{field.name} of run {fault.trials} differ")
    return fault


def _kill_one_run(victim, folder, planned, pace, *, rng, fault):
    was_at = None
    for stage, meta_step in planned:
        life = _Life(victim, folder, was_at)
        life.wait_for(life.arrival(stage, meta_step))
        span, least, most = {
            "start": (pace.to_checkpoint, 0.0, 1.0),
            "training": (pace.meta_step, 0.0, 1.0),
            "validation": (pace.validated, 0.5, 0.95),
            "evaluating": (pace.evaluating, 0.0, 0.9),
        }.get(stage, (0.0, 0.0, 0.0))
        life.wait(span * rng.uniform(least, most))
        if life.kill():
            fault.injected += 1
            fault.count(f"at {stage}")
            left = bool(set(_half_written(folder)) - life.left_before)
            fault.count("with a half-written file left", left)
            fault.failures += [
                f"{broken} by a kill at {stage}" for broken in broken_files(life.run)
            ]
            fault.repeated.append(max(0, _lines(life.run) - newest_checkpoint(life.run)))
        else:
            fault.count("came too late")
        fault.recovery_seconds += life.recovery_seconds
        was_at = _progress(life.run)
    life = _Life(victim, folder, was_at)
    life.wait_for(lambda: False)
    fault.recovery_seconds += life.recovery_seconds
    if life.process.returncode:
        raise RuntimeError(f"The last start failed: {_log(folder)}")


class _Life:
    """One process of a run, from its start to its end, watched through the folder.

    Args:
        victim: the command.
        folder: the run's.
        was_at: the progress of the run before this process.

    Attributes:
        recovery_seconds: the time from the start until the run is further than before; empty until
            then, and if there was no progress before.
    """

    def __init__(self, victim: Victim, folder: pathlib.Path, was_at: tuple | None):
        self.run = RunDirectory(folder)
        self.left_before = set(_half_written(folder))
        self.recovery_seconds: list[float] = []
        self._was_at = was_at
        self._wall_clock = time.time()
        self._started = time.monotonic()
        self.process = victim.start(folder)

    def arrival(self, stage: str, meta_step: int) -> Callable[[], bool]:
        """Returns a function that tells whether this process has reached a stage."""

        def in_training():
            return _lines(self.run) >= meta_step

        def in_checkpoint():
            return in_training() and not self.left_before.issuperset(
                _half_written(self.run.checkpoints)
            )

        return {
            "start": lambda: True,
            "training": in_training,
            "validation": in_training,
            "checkpoint": in_checkpoint,
            "final model": lambda: self._wrote("initialization*"),
            "evaluating": lambda: self._wrote("initialization.keras"),
            "evaluation": lambda: self._wrote("evaluation.json*"),
        }[stage]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds, or the process ends.

        Raises:
            TimeoutError: neither happens.
        """
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            self._look()
            if condition() or self.process.poll() is not None:
                self._look()
                return
            time.sleep(0.0005)
        raise TimeoutError(f"Nothing happened for {TIMEOUT} s: {_log(self.run.path)}")

    def wait(self, seconds: float) -> None:
        """Waits so long, or until the process ends."""
        until = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() >= until)

    def kill(self) -> bool:
        """Kills the process; returns whether it was still there to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def _wrote(self, pattern) -> bool:
        return any(_modified(path) > self._wall_clock for path in self.run.path.glob(pattern))

    def _look(self):
        if self._was_at is None or self.recovery_seconds:
            return
        if _progress(self.run) > self._was_at or self.process.poll() == 0:
            self.recovery_seconds.append(round(time.monotonic() - self._started, 2))


def _modified(path) -> float:
    """Returns when a file was written; 0 if it has just been moved away."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _progress(run) -> tuple[int, bool, bool]:
    return newest_checkpoint(run), run.initialization.exists(), run.evaluation.exists()


def _wait(process, condition) -> float:
    """Waits for a condition and returns the time."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if condition():
            return time.monotonic()
        if process.poll() is not None and not condition():
            raise RuntimeError("The command ended before it got there.")
        time.sleep(0.001)
    raise TimeoutError("The command did not get there in time.")


def _lines(run):
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def newest_checkpoint(run) -> int:
    steps = [path.stem.removeprefix("step-") for path in run.checkpoints.glob("step-*.index")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _half_written(folder) -> list[str]:
    """Files that are being written under another name than they will have."""
    return [
        name
        for _, _, files in os.walk(folder)
        for name in files
        if "partial" in name or "tempstate" in name
    ]


def broken_files(run) -> list[str]:
    """Returns a line for each file that has its final name and is incomplete."""
    broken = []
    if run.initialization.exists() and not zipfile.is_zipfile(run.initialization):
        broken.append("initialization.keras was left half-written")
    for path in (run.evaluation, run.environment):
        try:
            json.loads(path.read_text()) if path.exists() else None
        except ValueError:
            broken.append(f"{path.name} was left half-written")
    return broken


def _log(folder):
    return folder.with_name(folder.name + ".log").read_text()[-2000:]
