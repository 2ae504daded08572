"""Keras callbacks for meta-training, and support for Keras's own callbacks.

Callbacks see a meta-step as an epoch and a task as a batch. See "Callbacks" in docs/design.md.
"""

import collections
import contextlib
import json
import logging
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tqdm

from leap_tf.serialization import write_atomically
from leap_tf.training.checkpoint import TrainingState

Result = TypeVar("Result")

_LOGGER = logging.getLogger("leap_tf")
_WINDOW = 10  # meta-steps that `HealthWarnings` looks at
_SHOWN = ("loss", "error", "val_error", "tasks_skipped")  # metrics in a `ProgressDisplay`
# Attributes that decide what a callback does next. EarlyStopping also keeps its best weights.
_STATE = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.OrbaxCheckpoint: ("best",),
}
_REFUSED = {
    keras.callbacks.BackupAndRestore: "It restores neither the meta-optimizer nor the meta-step. "
    "Use fit(..., checkpoint_dir=...), which continues a run that was interrupted.",
    keras.callbacks.SwapEMAWeights: "It needs an optimizer with use_ema=True, which cannot be a "
    "meta_optimizer. Lower the meta learning rate towards the end instead, for example by "
    "ReduceLROnPlateau or a schedule.",
}
# The direction of mode "auto" for the metrics of `fit`. Keras itself knows only that of "loss".
_LOWER_IS_BETTER = (
    *("loss", "error", "training_error", "final_loss", "auc", "path_length", "path_energy"),
    *("diverged", "tasks_skipped", "tasks_failed", "meta_gradient_norm"),
)
_MODES = dict.fromkeys(_LOWER_IS_BETTER, "min") | {"reward": "max", "final_reward": "max"}


class ProgressDisplay(keras.callbacks.Callback):
    """Shows progress, speed and time left.

    On a terminal it shows a progress bar. Elsewhere (a file, a CI log) it prints a line at the
    first meta-step, then at most one every `seconds`, and one at the last. The stream is standard
    error by default.
    """

    def __init__(self, seconds: float = 10.0, stream=None):
        super().__init__()
        self._seconds = seconds
        self._stream = stream or sys.stderr

    def on_train_begin(self, logs=None):
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._gradient_steps = 0
        self._meta_steps_here = 0
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._bar is None and self._stream.isatty():
            count = {"total": self.params["epochs"], "initial": epoch, "unit": "meta-step"}
            self._bar = tqdm.tqdm(file=self._stream, dynamic_ncols=True, **count)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        self._gradient_steps += int(logs.get("gradient_steps", 0))
        self._meta_steps_here += 1
        elapsed = time.monotonic() - self._started
        text = self._describe(logs, elapsed)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        epochs = self.params["epochs"]
        if epoch + 1 == epochs or time.monotonic() - self._last_line >= self._seconds:
            self._last_line = time.monotonic()
            seconds = elapsed / self._meta_steps_here * (epochs - epoch - 1)
            line = f"{text}  {tqdm.tqdm.format_interval(seconds)} left"
            print(f"meta-step {epoch + 1}/{epochs}  {line}", file=self._stream, flush=True)

    def on_train_end(self, logs=None):
        if self._bar is not None:
            self._bar.close()

    def _describe(self, logs, elapsed):
        metrics = [f"{name} {logs[name]:.4g}" for name in _SHOWN if name in logs]
        return "  ".join([*metrics, f"{self._gradient_steps / max(elapsed, 1e-9):.0f} steps/s"])


class JSONLogger(keras.callbacks.Callback):
    """Appends a line `{"meta_step": …, "seconds": …, metrics}` to a file after every meta-step.

    Numbers that are not finite become null. A restarted run may repeat meta-steps made after its
    last checkpoint; their old lines are removed first, so each meta-step is in the file once.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path = pathlib.Path(path).expanduser()

    def on_train_begin(self, logs=None):
        self._rewound = False

    def on_epoch_begin(self, epoch, logs=None):
        if not self._rewound:
            self._rewind(epoch)
            self._rewound = True
        self._started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        seconds = round(time.monotonic() - self._started, 3)
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        metrics = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"meta_step": epoch + 1, "seconds": seconds, **metrics})
        with self._path.open("a") as file:
            file.write(line + "\n")

    def _rewind(self, meta_step):
        if not self._path.exists():
            return
        kept = [entry for entry in read_metrics(self._path) if entry["meta_step"] <= meta_step]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Returns the entries of a file of `JSONLogger`, without a last line cut short by a kill."""
    entries = []
    for line in pathlib.Path(path).expanduser().read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("meta_step"), int):
            break
        entries.append(entry)
    return entries


class TensorBoardLogger(keras.callbacks.TensorBoard):
    """Writes the metrics of every meta-step as TensorBoard events, with constant memory.

    TensorFlow keeps a tensor of about 0.5 kB for every new Python number it is given, and Keras
    gives it some ten after each meta-step. NumPy numbers are not kept.
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__(os.path.expanduser(log_dir), write_graph=False)

    def on_epoch_end(self, epoch, logs=None):
        metrics = {name: np.float32(value) for name, value in (logs or {}).items()}
        super().on_epoch_end(np.int64(epoch), metrics)

    def on_train_batch_end(self, batch, logs=None):
        """Writes nothing: single tasks are not shown."""

    def on_test_end(self, logs=None):
        """Writes nothing: `on_epoch_end` has the metrics of validation too."""


class HealthWarnings(keras.callbacks.Callback):
    """Warns once of each sign that meta-training is unhealthy. `fit` always adds this callback.

    - *The meta-gradient has all but vanished*: in three consecutive meta-steps its norm was below a
      hundredth of its median so far. Paths of a network with only dead units have length zero, so
      meta-updates that are too long can drive Leap there. A mean over different tasks does not
      vanish like that when meta-training converges.
    - *Meta-updates are too long*: the median of the last ten is more than 1.5 times the mean
      distance that tasks move from the initialization (`distance_moved`), see docs/tuning.md.
    - *Meta-training makes tasks harder*: path length and loss are above the largest of the first
      ten meta-steps.
    - *Tasks are skipped*, since their loss, weights or meta-gradient are not finite.

    After a restart, medians and first meta-steps are counted anew.
    """

    def on_train_begin(self, logs=None):
        self._norms: list[float] = []
        self._first: list[tuple[float, float]] = []
        self._ratios: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._in_a_row: collections.Counter[str] = collections.Counter()

    def on_epoch_begin(self, epoch, logs=None):
        self._before = [variable.numpy() for variable in self.model.trainable_variables]

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        skipped = logs["tasks_skipped"]
        self._observe(
            skipped > 0,
            1,
            f"Tasks are skipped: at meta-step {epoch + 1} the loss, weights or meta-gradient of "
            f"{skipped} tasks were not finite. Look for inputs that are not finite (`evaluate` "
            "names such tasks), or lower the inner learning rate.",
        )
        norm = logs["meta_gradient_norm"]
        usual = statistics.median([*self._norms, norm])
        self._norms.append(norm)
        self._observe(
            norm < 0.01 * usual,
            3,
            f"The meta-gradient has all but vanished: at meta-step {epoch + 1} its norm is "
            f"{norm:.2g}, and its median so far is {usual:.2g}. If the loss is not near its best, "
            "units of the model are dead: start again with a lower meta learning rate, or a bound "
            "on meta-updates such as SGD(global_clipnorm=...).",
        )
        if "distance_moved" not in logs:
            return
        moved, update = logs["distance_moved"], self._length_of_update()
        self._ratios.append(update / moved if moved else 0.0)
        self._observe(
            len(self._ratios) == _WINDOW and statistics.median(self._ratios) > 1.5,
            1,
            f"Meta-updates are too long: at meta-step {epoch + 1} the initialization moved by "
            f"{update:.2g}, and tasks move by {moved:.2g} on average. Lower the meta learning rate "
            "or leave meta_optimizer out. docs/tuning.md says what is healthy.",
        )
        here = logs["path_length"], logs["loss"]
        if len(self._first) < _WINDOW:
            self._first.append(here)
            return
        lengths, losses = zip(*self._first)
        self._observe(
            here[0] > max(lengths) and here[1] > max(losses),
            _WINDOW,
            f"Meta-training makes tasks harder: at meta-step {epoch + 1} path length and loss are "
            f"{here[0]:.3g} and {here[1]:.3g}, above the largest of the first ten meta-steps "
            f"({max(lengths):.3g} and {max(losses):.3g}). Lower the meta learning rate, or train "
            "on more tasks in a meta-step.",
        )

    def _length_of_update(self):
        pairs = zip(self.model.trainable_variables, self._before)
        return math.hypot(*(float(np.linalg.norm(each.numpy() - old)) for each, old in pairs))

    def _observe(self, shows, needed, message):
        """Warns once `shows` has been true in `needed` consecutive meta-steps."""
        sign = message.split(":", 1)[0]
        if self._in_a_row[sign] < needed:  # not announced yet
            self._in_a_row[sign] = self._in_a_row[sign] + 1 if shows else 0
            if self._in_a_row[sign] == needed:
                _LOGGER.warning("%s", message)


class _InOrder(keras.callbacks.Callback):
    """Makes Keras call all hooks immediately, instead of later on another thread."""

    def on_train_batch_end(self, batch, logs=None):
        pass

    def on_test_batch_end(self, batch, logs=None):
        pass


def checked_callbacks(callbacks: Any, learner_has_variables: bool) -> list:
    """Checks callbacks and returns them as a list.

    Mode "auto" becomes "min" or "max" if the monitored metric is one of `fit`.

    Raises:
        TypeError: an element is not a Keras callback.
        ValueError: a callback does not work in meta-training. The message names an alternative.
    """
    found: list = []
    for callback in keras.tree.flatten(callbacks):
        nested = isinstance(callback, keras.callbacks.CallbackList)
        found += callback.callbacks if nested else [callback]
    for callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(f"{callback!r} is no keras.callbacks.Callback.")
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise ValueError(f"{kind.__name__} cannot be used in meta-training. {reason}")
        if learner_has_variables and getattr(callback, "restore_best_weights", False):
            raise ValueError(
                "EarlyStopping can restore the best weights of the model, but not the variables "
                "that the learner learned with them. Set restore_best_weights=False."
            )
        if getattr(callback, "mode", None) == "auto":
            callback.mode = _MODES.get(callback.monitor.removeprefix("val_"), "auto")
    return found


def callback_list(
    callbacks: Sequence[keras.callbacks.Callback],
    model: keras.Model,
    *,
    epochs: int,
    steps: int,
    verbose: bool = False,
) -> keras.callbacks.CallbackList:
    """Returns a `CallbackList`, with a progress display if `verbose` and there is no other one.

    `epochs` are meta-steps, and `steps` the tasks in one of them.
    """
    has_bar = any(isinstance(each, keras.callbacks.ProgbarLogger) for each in callbacks)
    display = [ProgressDisplay()] if verbose and not has_bar else []
    params = {"epochs": epochs, "steps": steps, "verbose": int(verbose)}
    return keras.callbacks.CallbackList([*callbacks, *display, _InOrder()], model=model, **params)


def end_training(
    callbacks: keras.callbacks.CallbackList, logs: Mapping[str, Any], interrupted: bool
) -> None:
    """Calls `on_train_end` of all callbacks, but not of EarlyStopping if `fit` was interrupted.

    EarlyStopping would replace the weights, from which training continues, by the best ones.
    """
    if not interrupted:
        callbacks.on_train_end(logs)
        return
    for callback in callbacks.callbacks:
        if not isinstance(callback, keras.callbacks.EarlyStopping):
            callback.on_train_end(logs)


def with_batch_hooks(
    results: Iterable[Result],
    count: int,
    begin: Callable[..., None],
    end: Callable[..., None],
    logs: Callable[[Result], Mapping[str, float]] = lambda result: getattr(result, "metrics", {}),
) -> Iterator[Result]:
    """Yields results in order, and calls a hook before each and one after it.

    Both hooks get the index of a task, of which there are `count`. `end` also gets the `logs` of
    its result, by default its metrics, and nothing for a failure.
    """
    if count:
        begin(0)
    for index, result in enumerate(results):
        yield result
        end(index, dict(logs(result)))
        if index + 1 < count:
            begin(index + 1)


def save_callback_state(
    state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """Copies the state of Keras's stateful callbacks into the state of the training."""
    stateful = _stateful(callbacks)
    weights = [getattr(callback, "best_weights", None) or [] for callback, _ in stateful]
    state.progress.callbacks = [
        {name: _as_number(getattr(callback, name)) for name in names}
        | {"monitor": callback.monitor, "best_weights": len(best)}
        for (callback, names), best in zip(stateful, weights)
    ]
    state.best_weights.value = [array for best in weights for array in best] or None


def restore_callback_state(
    state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """Restores what `save_callback_state` saved; call it after `on_train_begin`."""
    weights = list(state.best_weights.value or [])
    for (callback, names), memory in zip(_stateful(callbacks), state.progress.callbacks):
        count = memory["best_weights"]
        best_weights, weights = weights[:count] or None, weights[count:]
        if callback.monitor != memory["monitor"] or not memory.keys() >= set(names):
            continue  # a callback with another monitor starts from its initial state
        for name in names:
            setattr(callback, name, memory[name])
        if isinstance(callback, keras.callbacks.EarlyStopping):
            callback.best_weights = best_weights


def _stateful(callbacks):
    return [
        (callback, names)
        for callback in callbacks
        for kind, names in _STATE.items()
        if isinstance(callback, kind)
    ]


def _as_number(value):
    return value if value is None or isinstance(value, int) else float(value)


@contextlib.contextmanager
def shown_as_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Lets Keras callbacks see the meta-optimizer as the model's, inside the block."""
    had_one, before = hasattr(model, "optimizer"), getattr(model, "optimizer", None)
    model.optimizer = optimizer
    try:
        yield
    finally:
        if had_one:
            model.optimizer = before
        else:
            del model.optimizer
