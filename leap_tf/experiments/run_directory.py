"""The folder of a run: its files, and the rule that a folder belongs to one configuration.

    config.gin              every binding of the configuration; a restart must have the same ones
    operative_config.gin    the bindings that were used, defaults included
    modules.json            the user's own modules that the run needs, see `user_modules`
    environment.json        versions, machine and threads of every start
    metrics.jsonl           one line per meta-step
    tensorboard/            the same metrics as TensorBoard events
    checkpoints/            checkpoints from which a restart continues
    initialization.keras    the learned initialization, written after training
    initialization.json     its meta-step, which is not the last one if an earlier one was best
    learner.npz             the learner's own variables, if it has any (Meta-SGD's rates)
    evaluation.json         learned and fresh initialization compared on held-out tasks
    evaluation_again.json   the same comparison by leap-evaluate, for example with other steps
    plots/                  learning_curve.png, adaptation.png, adaptation_again.png
    export/                 the files for serving that leap-export writes
    encoder, evaluation/, policies/    of a run on Atari games, see leap_tf.atari.study
    after_20_meta_steps/    results of a run of 20 meta-steps that was extended later
    lock                    locked by the process that uses the folder

A run can be extended: a configuration that differs only in a larger `meta_train.meta_steps` belongs
to the same run, since the longer run makes the same first meta-steps. The results of the shorter
one move to `after_<its meta-steps>_meta_steps/`, so that all results in the folder itself belong to
the newest initialization.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import shutil
import zipfile
import zlib
from collections.abc import Generator, Sequence
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from leap_tf import __version__
from leap_tf.errors import LeapError
from leap_tf.serialization import (
    SerializationError,
    decode,
    encode,
    is_serializable,
    partial_of,
    replacing,
    write_atomically,
)
from leap_tf.training import Job, TaskPool, TaskSpec

_LOGGER = logging.getLogger("leap_tf")


def bindings_of(text: str) -> dict[str, str]:
    """Returns the bindings of a whole configuration, from name to value as text on one line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = re.split(r"^([\w/.]+) =", "\n".join(lines), flags=re.MULTILINE)[1:]
    return {name: " ".join(value.split()) for name, value in zip(found[::2], found[1::2])}


def changed_bindings(then: str, now: str) -> dict[str, str]:
    """Returns the bindings that differ between two configurations, from name to the value now."""
    old, new = bindings_of(then), bindings_of(now)
    changed = {name for name, _ in old.items() ^ new.items()}
    return {name: new.get(name, "nothing") for name in sorted(changed)}


# Their defaults are those of `study.meta_train` and of `atari.study.meta_train`.
_META_STEPS_BINDINGS = {"meta_train.meta_steps": "100", "atari_meta_train.meta_steps": "100"}
_RESULTS = (  # what depends on the number of meta-steps
    "initialization.keras", "initialization.json", "learner.npz", "encoder", "evaluation.json",
    "evaluation_again.json", "evaluation", "export", "plots", "policies",
)  # fmt: skip


def extended_from(present: str, config: str) -> int | None:
    """Returns the meta-steps of the present configuration if `config` extends it, else None.

    It extends it if it differs only in a larger number of meta-steps.
    """
    changed = changed_bindings(present, config)
    if len(changed) != 1 or not changed.keys() <= {*_META_STEPS_BINDINGS}:
        return None
    ((name, now),) = changed.items()
    before = bindings_of(present).get(name, _META_STEPS_BINDINGS[name])
    grows = before.isdigit() and now.isdigit() and int(now) > int(before)
    return int(before) if grows else None


def set_aside(folder: pathlib.Path, meta_steps: int) -> None:
    """Moves the results of a run into a new subfolder, named by the run's meta-steps."""
    paths = [folder / name for name in _RESULTS]
    results = [path for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if not results:
        return
    name = f"after_{meta_steps}_meta_steps"
    earlier = len(list(folder.glob(f"{name}*")))
    aside = folder / (f"{name}_{earlier + 1}" if earlier else name)
    aside.mkdir()
    for path in results:
        path.rename(aside / path.name)


_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "gin-config")

# Zip, HDF5 and NumPy raise these for files that are cut short, altered or of another kind.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError,
)  # fmt: skip


class RunDirectoryError(LeapError, ValueError):
    """The folder of a run is in use, holds something else, or lacks a file."""


class RunDirectory:
    """Paths in a run's folder, and the checks that protect it.

    The attributes are the paths of the files that the module's docstring lists.

    Args:
        path: the folder; `claim` creates it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).expanduser()
        self._lock: TextIO | None = None
        self.config = self.path / "config.gin"
        self.operative_config = self.path / "operative_config.gin"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.initialization = self.path / "initialization.keras"
        self.initialization_info = self.path / "initialization.json"
        self.learner = self.path / "learner.npz"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_again = self.path / "evaluation_again.json"
        self.plots = self.path / "plots"
        self.export = self.path / "export"

    def check(self, config: str) -> None:
        """Checks that a run with this whole configuration can start, continue or extend a run here.

        Raises:
            RunDirectoryError: the folder holds a run with a different configuration, or other
                files. Nothing has been written.
        """
        if self.config.exists():
            present = self.config.read_text()
            if present != config and not self._may_become(present, config):
                texts = present.splitlines(), config.splitlines()
                changes = difflib.unified_diff(*texts, "in the folder", "now", n=0, lineterm="")
                raise RunDirectoryError(
                    f"{self.path} holds a run with a different configuration. Pass a different "
                    "--output_dir, or the same configuration to continue the run:\n"
                    + "\n".join(changes)
                )
        elif self.path.exists() and not self._is_just_begun():
            raise RunDirectoryError(
                f"{self.path} is not empty and holds no run. Pass a different --output_dir."
            )

    def _may_become(self, present, config):
        """Returns whether the run can take another configuration: no result depends on it yet."""
        changed = changed_bindings(present, config)
        only_evaluated = all(name.startswith("evaluate.") for name in changed)
        open_end = only_evaluated and not self.evaluation.exists()
        extends = extended_from(present, config) is not None
        return extends or open_end or self._is_just_begun()

    def _is_just_begun(self):
        """Returns whether the folder holds only files that a start creates before any result."""
        created = {self.plots, self.config, self.operative_config, self.environment}
        created |= {partial_of(path) for path in created}
        created |= {self.path / "lock", self.path / "modules.json"}
        results = set(self.path.iterdir()) - created
        return not results and not (self.plots.exists() and any(self.plots.iterdir()))

    def claim(self, config: str) -> None:
        """Takes possession of the folder for this run and this process.

        Adds this start to environment.json.

        Raises:
            RunDirectoryError: as for `check`, or another process uses the folder.
        """
        self.check(config)
        self.plots.mkdir(parents=True, exist_ok=True)
        self.lock_out_others()
        present = self.config.read_text() if self.config.exists() else config
        if (meta_steps := extended_from(present, config)) is not None:
            set_aside(self.path, meta_steps)
            self.plots.mkdir(exist_ok=True)
        write_atomically(self.config, config)
        starts = json.loads(self.environment.read_text()) if self.environment.exists() else []
        starts.append(describe_environment())
        write_atomically(self.environment, json.dumps(starts, indent=2) + "\n")

    def lock_out_others(self) -> None:
        """Locks the folder until this process ends, for which even a kill is an end.

        Raises:
            RunDirectoryError: another process has locked the folder.
        """
        if self._lock is not None:
            return
        lock = open(self.path / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunDirectoryError(
                f"Another process uses {self.path}. Wait for it, or stop it."
            ) from error
        self._lock = lock

    def is_in_use(self) -> bool:
        """Returns whether another process has locked the folder."""
        if not (self.path / "lock").exists():
            return False
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def require_config(self) -> pathlib.Path:
        """Returns the path of the run's configuration; raises RunDirectoryError without one."""
        if not self.config.exists():
            raise RunDirectoryError(
                f"{self.path} holds no run (no config.gin). Pass that of a training run."
            )
        return self.config

    def is_finished(self, config: str) -> bool:
        """Returns whether the run of exactly this configuration has been trained and evaluated."""
        return self.evaluation.exists() and self.config.read_text() == config

    def read_evaluation(self) -> dict | None:
        """Returns the run's own evaluation, None if there is none."""
        return json.loads(self.evaluation.read_text()) if self.evaluation.exists() else None

    def require_initialization(self) -> pathlib.Path:
        """Returns the path of the learned initialization; raises RunDirectoryError without one."""
        if not self.initialization.exists():
            raise RunDirectoryError(
                f"{self.path} has no learned initialization yet. Run the training command again: "
                "it continues where it stopped."
            )
        return self.initialization

    def save_learner(self, learner_variables: Sequence[keras.Variable]) -> None:
        """Writes the values of the learner's variables, if it has any."""
        if learner_variables:
            with replacing(self.learner) as partial:
                np.savez(partial, *[variable.numpy() for variable in learner_variables])

    def load_learned(self, model: keras.Model, learner_variables: Sequence[keras.Variable]) -> None:
        """Assigns the learned values in this folder to a model and to a learner's variables.

        Only arrays are read. The model that initialization.keras describes is not built, so a file
        from a stranger runs no code.

        Raises:
            RunDirectoryError: training has not finished, or a file is missing, damaged or of a
                different model.
        """
        with _read_errors(self.require_initialization()):
            model.load_weights(self.initialization)
        if learner_variables or self.learner.exists():
            with _read_errors(self.learner), np.load(self.learner, allow_pickle=False) as values:
                for variable, name in zip(learner_variables, values.files, strict=True):
                    variable.assign(values[name])


@contextlib.contextmanager
def _read_errors(path):
    try:
        yield
    except _UNREADABLE as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunDirectoryError(
            f"{path} is missing, damaged or of a different model ({line}). Delete it and run the "
            "training command again, which writes it from the last checkpoint."
        ) from error


def describe_environment() -> dict:
    """Returns versions, machine and threads, for those who want to repeat a run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"leap-tf": __version__},
    }


class CachingPool:
    """A pool that caches the results of the tasks of the current meta-step.

    A task may take an hour. With the cache, a killed run repeats only the unfinished tasks of its
    meta-step. The files are `folder/<hash of all weights>/<place>_<seed>_<steps>.npz`, so results
    of other meta-steps are never used. Everything else in the folder is deleted. Results of
    variables that cannot be serialized (bfloat16) are not cached.
    """

    def __init__(self, pool: TaskPool, folder: str | os.PathLike):
        self._pool = pool
        self._folder = pathlib.Path(folder)

    @property
    def remote(self) -> bool:
        """True if the wrapped pool runs tasks in other processes."""
        return self._pool.remote

    def map(self, job: Job[Any], specs: Sequence[TaskSpec]) -> Generator[Any, None, None]:
        serializable = all(is_serializable(each.numpy().dtype) for each in job.variables)
        if job.kind != "train" or not serializable:
            yield from self._pool.map(job, specs)
            return
        content = b"".join(variable.numpy().tobytes() for variable in job.variables)
        folder = self._folder / hashlib.sha256(content).hexdigest()
        for other in set(self._folder.glob("*")) - {folder}:
            shutil.rmtree(other, ignore_errors=True)
        cached = {spec: _read(_file(folder, spec), job) for spec in specs}

        def write(spec: TaskSpec, result: Any) -> None:
            file = _file(folder, spec)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as partial:
                    partial.write_bytes(encode(result))
            except OSError as error:
                task = job.task_name(spec)
                _LOGGER.warning("Could not cache the result of task %s: %s", task, error)
            if job.on_result:
                job.on_result(spec, result)

        missing = [spec for spec in specs if cached[spec] is None]
        writing = dataclasses.replace(job, on_result=write)
        with contextlib.closing(self._pool.map(writing, missing)) as results:
            for spec, result in cached.items():
                if result is None:
                    yield next(results)
                else:
                    if job.on_result:
                        job.on_result(spec, result)
                    yield result

    def clear(self) -> None:
        """Deletes the cache. Call it when training has finished."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _file(folder, spec):
    return folder / f"{spec.index}_{spec.seed}_{spec.steps}.npz"


def _read(file, job):
    """Returns the result in a file; None if there is none, or it cannot be used."""
    if not file.exists():
        return None
    try:
        result = decode(file.read_bytes(), job.result_type)
        job.check(result)
        return result
    except SerializationError as error:
        _LOGGER.warning("Ignoring the cached result %s and repeating the task: %s", file, error)
        return None
