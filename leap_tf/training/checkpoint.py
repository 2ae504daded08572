"""Checkpoints of meta-training: everything that decides how it continues.

Initialization, meta-optimizer, random state (a seed and the meta-step, from which every random
number is derived), history, the state of early stopping and the settings of the run are in a
`tf.train.Checkpoint`. Reading one runs no code: it holds numbers, JSON and arrays without pickle.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.serialization import SavedArrays

_LOGGER = logging.getLogger("leap_tf")


def describe(thing: Any) -> Any:
    """Returns the class and the configuration of an object as JSON values.

    `thing` is None or has `get_config()`, or a TypeError is raised. The names of optimizers and
    losses are left out, since Keras adds a counter to them.
    """
    if thing is None:
        return None
    if not hasattr(thing, "get_config"):
        raise TypeError(
            f"{type(thing).__name__} has no get_config(). Add the method and return all settings "
            "from it, so that a run can only be continued with the same ones."
        )
    config = {name: value for name, value in thing.get_config().items() if name != "name"}
    described = {"class": type(thing).__name__} | config
    return json.loads(json.dumps(described, default=_plain))


def _plain(value):
    return value.item() if isinstance(value, np.generic) else type(value).__name__


def describe_layers(model: keras.Model) -> dict[str, Any]:
    """Returns class and plain settings of every layer, without names, which Keras numbers."""
    described = {}
    for index, layer in enumerate(model._flatten_layers(include_self=False)):
        try:
            config = layer.get_config()
        except NotImplementedError:  # its arguments cannot be serialized
            config = {}
        kinds = (bool, int, float, str, tuple)
        kept = {
            name: each
            for name, each in config.items()
            if isinstance(each, kinds) or (each and name.endswith(("regularizer", "constraint")))
        }
        if layer.compute_dtype != "float32":
            kept["compute_dtype"] = layer.compute_dtype
        described[str(index)] = {"class": type(layer).__name__} | kept | {"name": "", "seed": 0}
    return json.loads(json.dumps(described, default=_plain))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each setting that differs, such as "inner.momentum: 0.0 then, 0.9 now".

    Args:
        then, now: results of `describe`, or mappings of them.
    """
    old, new = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name}: {old.get(name, 'nothing')} then, {new.get(name, 'nothing')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def check_same_tasks(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that two results of `describe_tasks` are equal. An empty result matches any other.

    Raises:
        CheckpointMismatchError: they differ.
    """
    changed = differences({"tasks": then}, {"tasks": now}) if then and now else []
    if changed:
        raise CheckpointMismatchError(
            "The checkpoints are of a run on other tasks. Give the same tasks, or another "
            "checkpoint_dir. To continue on the new tasks, load() one of the checkpoints and give "
            f"another checkpoint_dir. What differs: {_shortened(changed)}."
        )


def _shortened(phrases):
    shown = [f"{phrase[:500]}…" if len(phrase) > 500 else phrase for phrase in phrases[:3]]
    return "; ".join([*shown, *([f"{len(phrases) - 3} more"] if len(phrases) > 3 else [])])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# TensorFlow raises these for checkpoint files that are missing, cut short or altered.
_UNREADABLE = (tf.errors.OpError, RuntimeError, IndexError)


class CheckpointMismatchError(LeapError, ValueError):
    """A checkpoint belongs to another model or another run."""


class CheckpointUnreadableError(LeapError, OSError):
    """A checkpoint's files are missing, cut short or altered."""


class Progress(tf.train.experimental.PythonState):
    """The progress of meta-training, stored as JSON in the checkpoint.

    `epochs` are the numbers of the meta-steps in `history`, `stopped` is whether a callback has
    ended the training, and `callbacks` has the state of each stateful callback, in order.
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

    def save_history(self, history: keras.callbacks.History) -> None:
        """Copies a Keras history."""
        self.history = {name: list(values) for name, values in history.history.items()}
        self.epochs = list(history.epoch)

    def restore_history(self, history: keras.callbacks.History) -> None:
        """Copies the saved history back."""
        history.history = {name: list(values) for name, values in self.history.items()}
        history.epoch = list(self.epochs)

    def warn_if_finished(self, meta_steps: int) -> bool:
        """Returns whether nothing is left to do up to `meta_steps`, and logs a warning if so."""
        if self.stopped:
            reason = f"a callback ended this training at meta-step {self.meta_step}. To continue "
            reason += "it, load its last checkpoint and call fit() again"
        elif self.meta_step >= meta_steps:
            reason = f"{self.meta_step} meta-steps have been made already, earlier calls included. "
            reason += f"To continue, give more than meta_steps={meta_steps}"
        else:
            return False
        _LOGGER.warning(
            "No meta-step is made: %s. To start again, give a new trainer another checkpoint_dir, "
            "or none.",
            reason,
        )
        return True

    def serialize(self) -> str:
        fields = {field: getattr(self, field) for field in self.FIELDS}
        return json.dumps(fields, default=_as_python)

    def deserialize(self, string_value) -> None:
        fields = json.loads(tf.compat.as_text(string_value))
        _check_progress(fields)
        for field in self.FIELDS:
            setattr(self, field, fields[field])


def _as_python(number):
    """Converts NumPy numbers that callbacks add to the history."""
    if isinstance(number, (np.generic, np.ndarray, tf.Tensor)):
        return np.asarray(number).tolist()
    raise TypeError(f"A {type(number).__name__} cannot be in the history: {number!r}")


def _check_progress(fields):
    """Checks the structure of the progress in a checkpoint."""
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
        raise ValueError(f"the progress in it has an unknown structure: {str(fields)[:80]}")


class TrainingState:
    """The state of meta-training that checkpoints save and restore.

    Args:
        variables: the model's variables, in order.
        meta_optimizer: built on the meta-learned variables.
        seed: the run's seed.
        settings: all other settings that results depend on, as JSON by name.
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
            OSError: it cannot be written; earlier checkpoints are unchanged.
        """
        try:
            self._checkpoint.write(str(path))
        except tf.errors.OpError as error:
            raise OSError(f"A checkpoint cannot be written: {_first_line(error)}") from error

    @property
    def tasks(self) -> dict[str, Any]:
        """The description of the tasks trained on last, see `describe_tasks`; {} if unknown."""
        return self.progress.settings.get("tasks") or {}

    @tasks.setter
    def tasks(self, tasks: Mapping[str, Any]) -> None:
        self.progress.settings = {**self.progress.settings, "tasks": dict(tasks)}

    def load(self, path: str | pathlib.Path, tasks: Mapping[str, Any] | None = None) -> None:
        """Reads a checkpoint, all of it or nothing.

        The description of its tasks must be `tasks`, see `describe_tasks`.

        Raises:
            CheckpointUnreadableError: its files are missing or damaged.
            CheckpointMismatchError: its model, seed, settings or tasks are different.
        """
        with self.all_or_nothing():
            self._read(path)
            check_same_tasks(self.tasks, tasks or {})

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restores everything to its value before the block if the block raises."""
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
                f"The checkpoint {path} does not fit this model and meta-optimizer. Build them as "
                "they were when it was saved, or give another checkpoint. TensorFlow says: "
                f"{_first_line(error)} The variables here are {self._paths}."
            ) from error
        try:
            then = {name: each for name, each in self.progress.settings.items() if name != "tasks"}
            # Earlier versions did not write down the layers.
            then = {"layers": self._settings.get("layers")} | then
            changed = differences(then, self._settings)
        except RecursionError:
            changed = ["nested without end"]
        if changed:
            raise CheckpointMismatchError(
                f"The checkpoint {path} is of a run with other settings ({_shortened(changed)}). "
                "Give the same ones, or another checkpoint. To continue with another meta learning "
                "rate, load the checkpoint with the old one and then assign "
                "meta_optimizer.learning_rate."
            )
        if self.progress.seed != self._seed:
            raise CheckpointMismatchError(
                f"The checkpoint {path} is of a run with seed {self.progress.seed}, this one has "
                f"seed {self._seed}. Give the same seed, or another checkpoint."
            )


def _first_line(error):
    """The first line of an error, without the names of TensorFlow operations around it."""
    text = re.sub(r"^\s*\{\{.*?\}\}\s*|\s*\[Op:\w+\].*$", "", str(error), flags=re.DOTALL)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


# The files of a checkpoint, and those that TensorFlow leaves when it is killed. Other files in the
# folder are never touched.
_INDEX = re.compile(r"step-\d{8,}\.index")
_OWN_FILE = re.compile(r"(step-\d{8,})\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?")
_KEPT = 3  # checkpoints in a folder
_OWN_FOLDER = re.compile(r"step-\d{8,}_temp")


class CheckpointFolder:
    """Keeps the last few checkpoints of a run and restores the newest readable one.

    Args:
        folder: where they are; created with the first checkpoint. Without a folder, nothing is
            saved or restored.
    """

    def __init__(self, folder: str | os.PathLike | None):
        self.path: Any = pathlib.Path(folder).expanduser().resolve() if folder else None
        if "[" in str(self.path):
            raise ValueError(f"TensorFlow reads no checkpoints below a folder with '[': {folder}.")
        self._last_save = time.monotonic()

    def save_if_due(self, state: TrainingState, seconds: float) -> None:
        """Writes a checkpoint if the last one is at least `seconds` old."""
        if time.monotonic() - self._last_save >= seconds:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint of the present meta-step and removes the oldest ones.

        A checkpoint exists once it has its index, which TensorFlow renames into place last. A
        process that is killed while saving leaves the earlier checkpoints unchanged.
        """
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        state.save(self.path / f"step-{state.progress.meta_step:08d}")
        self._remove_all_but({path.name for path in self._newest_first()[:_KEPT]})
        self._last_save = time.monotonic()

    def _remove_all_but(self, kept):
        """Removes older checkpoints, and the remains of an interrupted save."""
        for path in self.path.glob("step-*"):
            own = _OWN_FILE.fullmatch(path.name)
            if own and (own[1] not in kept or own[3]) and path.is_file():
                path.unlink()
            elif _OWN_FOLDER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)

    def _restore(self, candidates, state, tasks):
        """Restores the first readable checkpoint, and logs a warning for each damaged one."""
        for path in candidates:
            try:
                state.load(path, tasks)
            except CheckpointUnreadableError as error:
                _LOGGER.warning("%s Falling back to the checkpoint before it.", error)
                continue
            return True
        if candidates:
            raise CheckpointUnreadableError(
                f"None of the {len(candidates)} checkpoints in {self.path} can be read. Start "
                "again in another directory; nothing has been overwritten."
            )
        return False

    def resume(
        self,
        state: TrainingState,
        tasks: Mapping[str, Any],
        known: dict[pathlib.Path, Mapping[str, Any]],
    ) -> bool:
        """Restores the newest readable checkpoint if the training has not started yet.

        A warning is logged for each damaged one.

        `tasks` is the description of the tasks to train on, see `describe_tasks`. `known` has the
        description, possibly {}, for each folder that this training was loaded from or saved to;
        this folder is added. Returns whether a checkpoint was restored.

        Raises:
            CheckpointMismatchError: the folder is of another run or other tasks. Or the training
                has started, and the folder is ahead of it, or of another training.
            CheckpointUnreadableError: there are checkpoints, but none can be read.
        """
        if self.path is None:
            return False
        candidates = self._newest_first()
        reached, newest = state.progress.meta_step, max(map(_step_of, candidates), default=0)
        if not reached:
            restored = self._restore(candidates, state, tasks)
            known[self.path] = tasks
            return restored
        if newest > reached or (newest and self.path not in known):
            raise CheckpointMismatchError(
                f"The folder holds a checkpoint of meta-step {newest}, and this trainer is at "
                f"{reached}, which it did not reach from there. Give another checkpoint_dir. To "
                "continue from the folder, create a new trainer."
            )
        if newest:
            check_same_tasks(known[self.path], tasks)
        known[self.path] = tasks
        return False

    def _newest_first(self):
        found = (index for index in self.path.glob("step-*.index") if _INDEX.fullmatch(index.name))
        return [index.with_suffix("") for index in sorted(found, key=_step_of, reverse=True)]


def _step_of(path):
    return int(path.stem.removeprefix("step-"))
