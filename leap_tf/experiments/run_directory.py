"""A whole configuration as text, as `read_configuration` returns it, and what its bindings are.

A run that is given more meta-steps than it had: it goes on, and what it led to is kept.

A configuration that differs in nothing but a larger `meta_train.meta_steps` is of the same run made
longer. Its meta-steps are those that a run of that length would have made from the start.
What the shorter training led to moves to `after_<its meta-steps>_meta_steps/`, so that nothing in
the folder is of another initialization than the newest.

The folder a run leaves behind, and the rule that two runs never share one.

config.gin              every binding of the configuration; what a restart is held against
operative_config.gin    the bindings that were used, defaults included
environment.json        versions, machine and threads of every start
metrics.jsonl           one line per meta-step
tensorboard/            the same as TensorBoard events
checkpoints/            what a restart goes on from
initialization.keras    the learned initialization, once training is over
initialization.json     the meta-step it is of: an earlier one than the last, if that was best
learner.npz             what the learner itself has learned, if anything (Meta-SGD's rates)
evaluation.json         learned against fresh initialization on held-out tasks
evaluation_again.json   the same by bin/evaluate.py, perhaps with other steps
export/                 what bin/export.py makes of it, to be served elsewhere
after_20_meta_steps/    what of all this a shorter training had led to, before it was made longer
lock                    held by the process at work here
plots/                  learning_curve.png, adaptation.png
"""

import contextlib
import difflib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import TextIO

import keras
import numpy as np
import tensorflow as tf

from leap_tf import __version__
from leap_tf.errors import LeapError


def bindings_of(text: str) -> dict[str, str]:
    """Returns every binding, from name to value as text on one line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = re.split(r"^([\w/.]+) =", "\n".join(lines), flags=re.MULTILINE)[1:]
    return {name: " ".join(value.split()) for name, value in zip(found[::2], found[1::2])}


def changed_bindings(then: str, now: str) -> dict[str, str]:
    """Returns what one configuration binds otherwise than another, from name to value as text."""
    old, new = bindings_of(then), bindings_of(now)
    return {
        name: new.get(name, "nothing")
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


_LENGTHS = ("meta_train.meta_steps", "atari_meta_train.meta_steps")
_MADE_OF_THE_INITIALIZATION = (
    "initialization.keras",
    "initialization.json",
    "learner.npz",
    "encoder",
    "evaluation.json",
    "evaluation_again.json",
    "evaluation",
    "export",
    "plots",
    "policies",
)


def length_before(present: str, config: str) -> int | None:
    """Returns the meta-steps of a run that another configuration makes longer, None if it does not.

    Args:
        present: the whole configuration of the run.
        config: that of which it is to be known whether it is of the same run, but longer.
    """
    changed = list(changed_bindings(present, config).items())
    if len(changed) != 1 or changed[0][0] not in _LENGTHS:
        return None
    name, now = changed[0]
    before = bindings_of(present).get(name, "")
    grows = before.isdigit() and now.isdigit() and int(now) > int(before)
    return int(before) if grows else None


def set_aside(folder: pathlib.Path, meta_steps: int) -> None:
    """Moves what was made of an initialization into a folder beside it.

    Args:
        folder: of the run.
        meta_steps: those that led to the initialization.
    """
    made = [folder / name for name in _MADE_OF_THE_INITIALIZATION]
    made = [path for path in made if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if not made:
        return
    name = f"after_{meta_steps}_meta_steps"
    earlier = len(list(folder.glob(f"{name}*")))
    aside = folder / (f"{name}_{earlier + 1}" if earlier else name)
    aside.mkdir()
    for path in made:
        path.rename(aside / path.name)


_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "gin-config")


# What Zip, HDF5 and NumPy raise for files that are cut short, altered or of another kind.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
)


class RunDirectoryError(LeapError, ValueError):
    """The folder holds something else than this run."""


class RunDirectory:
    """Paths inside a run's folder.

    Args:
        path: the folder; made when the run starts.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._lock: TextIO | None = None
        self.config = self.path / "config.gin"
        self.operative_config = self.path / "operative_config.gin"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.initialization = self.path / "initialization.keras"
        self.origin = self.path / "initialization.json"
        self.learner = self.path / "learner.npz"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_again = self.path / "evaluation_again.json"
        self.plots = self.path / "plots"
        self.export = self.path / "export"

    def check(self, config: str) -> None:
        """Finds whether the folder is free or already this run's. Writes nothing.

        A run may be made longer: more meta-steps than it had are no other run.

        Args:
            config: the run's whole configuration, as text.

        Raises:
            RunDirectoryError: the folder holds another run, or files that are no run's.
        """
        if self.config.exists():
            present = self.config.read_text()
            if present != config and length_before(present, config) is None:
                changes = difflib.unified_diff(
                    present.splitlines(),
                    config.splitlines(),
                    "in the folder",
                    "now",
                    n=0,
                    lineterm="",
                )
                raise RunDirectoryError(
                    f"{self.path} holds a run with another configuration. Give another "
                    "--output_dir, or the same configuration to go on with it:\n"
                    + "\n".join(changes)
                )
        elif self.path.exists() and not self._is_just_begun():
            raise RunDirectoryError(
                f"{self.path} is not empty and holds no run. Give a new --output_dir."
            )

    def _is_just_begun(self):
        """Whether the folder is empty, or all in it is what `claim` makes before config.gin."""
        made = {self.plots.name, "lock", f"{self.config.name}.partial"}
        names = {path.name for path in self.path.iterdir()}
        return names <= made and not (self.plots.exists() and any(self.plots.iterdir()))

    def claim(self, config: str) -> None:
        """Makes the folder this run's, and this process's alone. Arguments as for `check`.

        Raises:
            RunDirectoryError: as `check`, or another process is at work there.

        Every start adds itself to environment.json.
        """
        self.check(config)
        self.plots.mkdir(parents=True, exist_ok=True)
        self.lock_out_others()
        if self.config.exists():
            before = length_before(self.config.read_text(), config)
            if before is not None:
                set_aside(self.path, before)
                self.plots.mkdir(exist_ok=True)
        write_atomically(self.config, config)
        starts = json.loads(self.environment.read_text()) if self.environment.exists() else []
        starts.append(describe_environment())
        write_atomically(self.environment, json.dumps(starts, indent=2) + "\n")

    def lock_out_others(self) -> None:
        """Holds a lock as long as this process lives; the system lets go of it, however it ends.

        Raises:
            RunDirectoryError: another process is at work there.
        """
        if self._lock is not None:
            return
        lock = open(self.path / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunDirectoryError(
                f"Another process is at work in {self.path}. Wait for it, or stop it."
            ) from error
        self._lock = lock

    def require_config(self) -> pathlib.Path:
        """Returns the configuration file of a run that exists.

        Raises:
            RunDirectoryError: there is none.
        """
        if not self.config.exists():
            raise RunDirectoryError(
                f"{self.path} holds no run (no config.gin). Give the --output_dir of a training."
            )
        return self.config

    def is_finished(self, config: str) -> bool:
        """Returns whether the run of this very configuration has been trained and judged."""
        return self.evaluation.exists() and self.config.read_text() == config

    def read_evaluation(self) -> dict | None:
        """Returns the run's own judgement, None if there is none."""
        return json.loads(self.evaluation.read_text()) if self.evaluation.exists() else None

    def require_initialization(self) -> pathlib.Path:
        """Returns the file of the learned initialization.

        Raises:
            RunDirectoryError: training has not finished.
        """
        if not self.initialization.exists():
            raise RunDirectoryError(
                f"{self.path} has no learned initialization yet. Finish training: the command "
                "that started it goes on where it stopped."
            )
        return self.initialization

    def save_learner(self, learner_variables: Sequence[keras.Variable]) -> None:
        """Writes the values of the learner's own variables, if it has any."""
        if learner_variables:
            with replacing(self.learner) as partial:
                np.savez(partial, *[variable.numpy() for variable in learner_variables])

    def load_learned(
        self, model: keras.Model, learner_variables: Sequence[keras.Variable] = ()
    ) -> None:
        """Gives a model, and a learner, the values that training left in this folder.

        Only arrays are read. The model that initialization.keras describes is not built, so a file
        from somebody else runs nothing.

        Args:
            model: built as it was when training began.
            learner_variables: the learner's own variables.

        Raises:
            RunDirectoryError: training has not finished, a file is damaged, or of another model.
        """
        with _saying_what_to_do(self.require_initialization()):
            model.load_weights(self.initialization)
        if self.learner.exists():
            with (
                _saying_what_to_do(self.learner),
                np.load(self.learner, allow_pickle=False) as values,
            ):
                for variable, name in zip(learner_variables, values.files, strict=True):
                    variable.assign(values[name])


@contextlib.contextmanager
def _saying_what_to_do(path):
    try:
        yield
    except _UNREADABLE as error:
        text = str(error).strip() or type(error).__name__
        raise RunDirectoryError(
            f"{path} cannot be read, or is of another model: {text.splitlines()[0]} Remove it and "
            "give the training command again, which writes it anew from the last checkpoint."
        ) from error


def describe_environment() -> dict:
    """Returns versions and machine, for whoever wants to repeat a run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"leap-tf": __version__},
    }


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either whole or not there."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` once the block has ended well.

    For libraries that write files themselves: the name ends as theirs has to.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
