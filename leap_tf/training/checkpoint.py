"""Checkpoints of meta-training: everything that decides how it goes on.

Initialization, meta-optimizer, random state (a seed and the meta-step, from which every
random number is derived), history and the state of early stopping are in a
`tf.train.Checkpoint`. Reading one runs no code: numbers, JSON and arrays without pickle.
"""

import contextlib
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import SavedArrays
from leap_tf.training.settings import differences

# What TensorFlow raises when files of a checkpoint are missing, cut short or altered. Most are
# OpErrors; its checkpoint reader adds two kinds of its own.
_UNREADABLE = (tf.errors.OpError, RuntimeError, IndexError)


class CheckpointMismatchError(ValueError):
    """A checkpoint belongs to another model or another run."""


class CheckpointUnreadableError(OSError):
    """A checkpoint's files are missing, cut short or altered."""


class Progress(tf.train.experimental.PythonState):
    """How far meta-training has come, as JSON in the checkpoint.

    Attributes:
        seed: the run's seed.
        settings: what the run was set to, by name.
        meta_step: meta-updates made.
        stopped: whether a callback has ended the training.
        epochs: numbers of the meta-steps in `history`.
        history: one list of values per metric.
        callbacks: what callbacks remember that do, in order.
    """

    FIELDS = ("seed", "settings", "meta_step", "stopped", "epochs", "history", "callbacks")

    def __init__(self, seed: int, settings: Mapping[str, Any]):
        self.seed = seed
        self.settings = dict(settings)
        self.meta_step = 0
        self.stopped = False
        self.epochs: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.callbacks: list[dict] = []

    def serialize(self) -> str:
        fields = {field: getattr(self, field) for field in self.FIELDS}
        return json.dumps(fields, default=_as_python)

    def deserialize(self, string_value) -> None:
        fields = json.loads(tf.compat.as_text(string_value))
        _check_progress(fields)
        for field in self.FIELDS:
            setattr(self, field, fields[field])


def _as_python(number):
    """What callbacks add to the history may be NumPy's, of which JSON knows nothing."""
    if isinstance(number, (np.generic, np.ndarray, tf.Tensor)):
        return np.asarray(number).tolist()
    raise TypeError(f"A {type(number).__name__} cannot be in the history: {number!r}")


def _check_progress(fields):
    """Refuses a progress that no training has written."""
    kinds = {"seed": int, "settings": dict, "stopped": bool, "epochs": list, "callbacks": list}
    whole = (
        isinstance(fields, dict)
        and all(isinstance(fields.get(name), kind) for name, kind in kinds.items())
        and type(fields.get("meta_step")) is int
        and fields["meta_step"] >= 0
        and isinstance(fields.get("history"), dict)
        and all(isinstance(values, list) for values in fields["history"].values())
        and all(isinstance(memory, dict) for memory in fields["callbacks"])
    )
    if not whole:
        raise ValueError(f"its progress is none: {str(fields)[:80]}")


class TrainingState:
    """What is saved and restored.

    Args:
        variables: the model's variables, in order.
        meta_optimizer: built on the meta-learned variables.
        seed: the run's seed.
        settings: all else that decides how it goes on, JSON by name.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        meta_optimizer: keras.optimizers.Optimizer,
        seed: int,
        settings: Mapping[str, Any],
    ):
        self.progress = Progress(seed, settings)
        self._settings = dict(settings)
        self.best_weights = SavedArrays()
        self._seed = seed
        self._variables = [*variables, *meta_optimizer.variables]
        self._paths = [variable.path for variable in variables]
        self._checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in variables],
            meta_optimizer=[variable.value for variable in meta_optimizer.variables],
            progress=self.progress,
            best_weights=self.best_weights,
        )

    def save(self, path: str | pathlib.Path) -> None:
        """Writes one checkpoint under exactly this prefix.

        Raises:
            OSError: it cannot be written; checkpoints before it are as they were.
        """
        try:
            self._checkpoint.write(str(path))
        except tf.errors.OpError as error:
            raise OSError(f"A checkpoint cannot be written: {_first_line(error)}") from error

    def load(self, path: str | pathlib.Path) -> None:
        """Reads a checkpoint, all of it or nothing.

        Raises:
            CheckpointUnreadableError: its files are missing or damaged.
            CheckpointMismatchError: it is of another model, seed or setting.
        """
        with self.all_or_nothing():
            self._read(path)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Puts everything back to what it was before the block, if the block raises."""
        values = [tf.identity(variable.value) for variable in self._variables]
        progress = {field: getattr(self.progress, field) for field in Progress.FIELDS}
        best_weights = self.best_weights.value
        try:
            yield
        except BaseException:
            for variable, value in zip(self._variables, values):
                variable.assign(value)
            for field, value in progress.items():
                setattr(self.progress, field, value)
            self.best_weights.value = best_weights
            raise

    def _read(self, path):
        try:
            self._checkpoint.read(str(path)).assert_consumed()
        except (*_UNREADABLE, zipfile.BadZipFile) as error:
            raise CheckpointUnreadableError(
                f"The checkpoint {path} cannot be read: {_first_line(error)}"
            ) from error
        except (AssertionError, ValueError) as error:
            raise CheckpointMismatchError(
                f"The checkpoint {path} does not fit this model and meta-optimizer, whose "
                f"variables are {self._paths}. Build the model and the optimizers as they were "
                f"when it was saved. TensorFlow says: {_first_line(error)}"
            ) from error
        try:
            changed = differences(self.progress.settings, self._settings)
        except RecursionError:
            changed = ["nested without end"]
        if changed:
            raise CheckpointMismatchError(
                f"The checkpoint {path} is of a run with other settings ({'; '.join(changed)}). "
                "Give the same ones, or another directory. To go on with another meta rate, load "
                "the checkpoint with the old one and then assign meta_optimizer.learning_rate."
            )
        if self.progress.seed != self._seed:
            raise CheckpointMismatchError(
                f"The checkpoint {path} is of a run with seed {self.progress.seed}, this one has "
                f"seed {self._seed}. Give the same seed, or another directory."
            )


def _first_line(error):
    """What an error says, without the names of TensorFlow's operations before and behind it."""
    text = re.sub(r"^\s*\{\{.*?\}\}\s*|\s*\[Op:\w+\].*$", "", str(error), flags=re.DOTALL)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
