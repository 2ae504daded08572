"""Keras's `EarlyStopping` across a restart: its memory, saved and put back.

Keras forgets it when training begins. It is a few numbers and the best weights.
"""

from collections.abc import Sequence

import keras

from leap_tf.training.checkpoint import TrainingState

_NUMBERS = ("wait", "best", "best_epoch", "stopped_epoch")


def remember_stopping(state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Copies the memory of every `EarlyStopping` into what a checkpoint saves."""
    stoppers = _stoppers(callbacks)
    state.progress.stopping = [
        {name: _as_number(getattr(stopper, name)) for name in _NUMBERS}
        | {"monitor": stopper.monitor, "best_weights": len(stopper.best_weights or [])}
        for stopper in stoppers
    ]
    weights = [array for stopper in stoppers for array in stopper.best_weights or []]
    state.best_weights.value = weights or None


def recall_stopping(state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Puts back what `remember_stopping` saved; call it after `on_train_begin`."""
    weights = list(state.best_weights.value or [])
    for stopper, memory in zip(_stoppers(callbacks), state.progress.stopping):
        count = memory["best_weights"]
        best_weights, weights = weights[:count] or None, weights[count:]
        if stopper.monitor != memory["monitor"]:
            continue  # another criterion, which starts from nothing
        for name in _NUMBERS:
            setattr(stopper, name, memory[name])
        stopper.best_weights = best_weights


def refuse_restoring_weights(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Refuses to restore a model's best weights without what its learner learned with them.

    Raises:
        ValueError: an EarlyStopping is to restore the best weights.
    """
    if any(stopper.restore_best_weights for stopper in _stoppers(callbacks)):
        raise ValueError(
            "EarlyStopping can restore the best weights of the model, but not the variables that "
            "the learner learned with them. Use restore_best_weights=False (no patience)."
        )


def _stoppers(callbacks):
    return [item for item in callbacks if isinstance(item, keras.callbacks.EarlyStopping)]


def _as_number(value):
    return value if value is None or isinstance(value, int) else float(value)
