"""Trials on full and read-only disks: small file systems in memory, mounted for one trial each.

A trial trains a small study on such a disk. Just before one kind of file is written for the n-th
time, the disk is filled up. The run must end with one line that says what to do, and leave all
complete files unchanged. Once there is space, it must end with the same bits as an undisturbed run.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras

from leap_tf.experiments import commands, run_directory
from leap_tf.experiments import study as studies
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.training import JSONLogger, TensorBoardLogger
from leap_tf.training.checkpoint import TrainingState
from tests.faults.kills import Results, broken_files, newest_checkpoint, results_of, supervised
from tests.faults.record import ROOT, Fault


class NoMountError(RuntimeError):
    """This process may not mount file systems."""


class Disk:
    """A mounted file system.

    Args:
        path: where it is mounted.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    def fill(self, leave: int = 0) -> None:
        """Fills the disk up to so many free bytes."""
        status = os.statvfs(self.path)
        free = status.f_bavail * status.f_frsize
        (self.path / "ballast").write_bytes(b"\0" * max(0, free - leave))

    def empty(self) -> None:
        """Removes the file that `fill` wrote."""
        (self.path / "ballast").unlink(missing_ok=True)

    def lock(self) -> None:
        """Makes the disk read-only, as the system does with one that has errors."""
        _mount("-o", "remount,ro", str(self.path))

    def unlock(self) -> None:
        """Makes it writable again."""
        _mount("-o", "remount,rw", str(self.path))


@contextlib.contextmanager
def small_disk(path: pathlib.Path, megabytes: int = 4) -> Iterator[Disk]:
    """Mounts a disk in memory, and unmounts it after the block.

    Raises:
        NoMountError: this process may not mount file systems.
    """
    path.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
    try:
        yield Disk(path)
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(path), 2)  # lazily, whatever is still open


def _mount(*arguments):
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoMountError(f"mount {' '.join(arguments)}: {error}") from error


class Writer(NamedTuple):
    """A function that writes a kind of file, and how often a small run calls it."""

    owner: object
    name: str
    calls: int


META_STEPS = 4
BINDINGS = (
    *supervised().bindings,
    "sinusoid_splits.test_tasks = 2",
    "sinusoid_splits.validation_tasks = 1",
    "meta_train.validation_steps = 5",
    "evaluate.steps = 5",
    f"meta_train.meta_steps = {META_STEPS}",
    "meta_train.verbose = False",
)
WRITERS = {
    "configuration": Writer(run_directory, "write_atomically", 2),
    "checkpoint": Writer(TrainingState, "save", META_STEPS),
    "metrics line": Writer(JSONLogger, "on_epoch_end", META_STEPS),
    "TensorBoard events": Writer(TensorBoardLogger, "on_epoch_end", META_STEPS),
    "final model": Writer(keras.Model, "save", 1),
    "picture of meta-training": Writer(studies, "plot_learning_curve", 1),
    "picture of adaptation": Writer(studies, "plot_adaptation", 1),
    "initialization.json, evaluation.json": Writer(studies, "write_atomically", 2),
}


def train(folder: pathlib.Path) -> str:
    """Runs bin/train.py's function in this process; returns the error's text, "" if none."""
    try:
        with commands.one_line_errors():
            commands.train([ROOT / "gin_configs/sinusoid.gin"], BINDINGS, folder)
    except SystemExit as end:
        message = str(end)
    else:
        message = ""
    gc.collect()  # releases the folder's lock
    return message


@contextlib.contextmanager
def before_call(writer: Writer, number: int, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` just before the n-th call of a function, counted from 1."""
    original = getattr(writer.owner, writer.name)
    calls = 0

    def watched(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return original(*arguments, **options)

    setattr(writer.owner, writer.name, watched)
    try:
        yield
    finally:
        setattr(writer.owner, writer.name, original)


def run_undisturbed(folder: pathlib.Path) -> Results:
    """Returns the results of the small run without any fault."""
    message = train(folder)
    if message:
        raise RuntimeError(message)
    return results_of(folder)


def fill_before(
    disk: Disk,
    folder: pathlib.Path,
    expected: Results,
    *,
    kind: str,
    number: int,
    leave: int,
    fault: Fault,
) -> None:
    """Runs a trial in which the disk is full when a file is written, and has space later."""
    with before_call(WRITERS[kind], number, lambda: disk.fill(leave)):
        message = train(folder)
    words = "No space left on device"
    after(disk.empty, folder, expected, message=message, words=words, kind=kind, fault=fault)


def lock_before(
    disk: Disk,
    folder: pathlib.Path,
    expected: Results,
    *,
    kind: str,
    number: int,
    fault: Fault,
) -> None:
    """Runs a trial in which the disk is read-only when a file is written, and writable later."""
    # A disk with a file open for writing cannot be locked, so it is locked between two runs.
    with before_call(WRITERS[kind], number, _raise_interrupt):
        with contextlib.suppress(KeyboardInterrupt):
            train(folder)
    gc.collect()
    disk.lock()
    message = train(folder)
    words = "Read-only file system"
    after(disk.unlock, folder, expected, message=message, words=words, kind=kind, fault=fault)


def _raise_interrupt():
    raise KeyboardInterrupt


def after(
    repair: Callable[[], None],
    folder: pathlib.Path,
    expected: Results,
    *,
    message: str,
    words: str,
    kind: str,
    fault: Fault,
) -> None:
    """Checks the message and files of a run that failed, repairs the disk and checks the rest.

    Args:
        repair: makes the disk writable again.
        folder: the run's folder.
        expected: the results of an undisturbed run.
        message: the message of the run that failed.
        words: what the message must contain.
        kind: the kind of file, for the record.
        fault: the record.
    """
    run = RunDirectory(folder)
    fault.trials += 1
    fault.injected += 1
    where = f"{words}, {kind}"
    fault.failures += [f"{where}: {broken}" for broken in broken_files(run)]
    if words not in message or "run the same command again" not in message:
        fault.failures.append(f"{where}: the message was {message!r}")
    if "\n" in message.strip():
        fault.failures.append(f"{where}: the message is of several lines")
    lines = run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0
    fault.repeated.append(max(0, lines - newest_checkpoint(run)))
    repair()
    started = time.monotonic()
    message = train(folder)
    fault.recovery_seconds.append(round(time.monotonic() - started, 2))
    if message:
        fault.failures.append(f"{where}: with space again it ended with {message!r}")
    elif results_of(folder) != expected:
        fault.failures.append(f"{where}: the results differ")


def attack_disk(folder: pathlib.Path, trials: int, seed: int) -> list[Fault]:
    """Fills and locks disks at random moments.

    Args:
        folder: where disks are mounted.
        trials: how often, of each kind.
        seed: decides when, and how much space is left.
    """
    rng = random.Random(seed)
    expected = run_undisturbed(folder / "undisturbed")
    promise = "one line that says what to do; then bit-identical to an undisturbed run"
    full = Fault("disk full while a run writes", expected=promise)
    locked = Fault("run directory read-only", expected=promise)
    kinds = list(WRITERS)
    for trial in range(trials):
        kind = kinds[trial % len(kinds)]
        number = rng.randint(1, WRITERS[kind].calls)
        with small_disk(folder / f"disk-{trial}") as disk:
            # Nothing is written after evaluation.json, so if that fits, nothing fails at all.
            leave = 0 if "evaluation.json" in kind else rng.choice([0, 0, 4096, 8192])
            run = disk.path / "run"
            fill_before(disk, run, expected, kind=kind, number=number, leave=leave, fault=full)
            full.count(f"at {kind}")
        if trial < trials // 4:
            with small_disk(folder / f"locked-{trial}") as disk:
                options = {"kind": "checkpoint", "number": 1 + trial % 4, "fault": locked}
                lock_before(disk, disk.path / "run", expected, **options)
    return [full, locked]
