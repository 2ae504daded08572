"""Metrics as JSON lines, one per meta-step, that stay right across restarts."""

import json
import math
import os
import pathlib
import time

import keras


class MetricsLog(keras.callbacks.Callback):
    """Appends `{"meta_step": …, "seconds": …, metrics}` to a file after every meta-step.

    What is not finite becomes null, since JSON has no other word for it.

    A run that is started again may repeat meta-steps made after its last checkpoint; their
    old lines are removed first, so that each meta-step is in the file once.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path = pathlib.Path(path)

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
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        partial.replace(self._path)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Returns the entries of a metrics file; a last line cut short by a kill is left out."""
    entries = []
    for line in pathlib.Path(path).read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("meta_step"), int):
            break
        entries.append(entry)
    return entries
