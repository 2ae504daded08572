"""The memory of Keras's `EarlyStopping` and `ReduceLROnPlateau` across a restart.

Keras forgets it when training begins. It is a few numbers, and the best weights.
"""

from collections.abc import Sequence

import keras

from leap_tf.training.checkpoint import TrainingState

_NUMBERS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


def remember_callbacks(state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Copies what these callbacks remember into what a checkpoint saves."""
    remembering = _remembering(callbacks)
    state.progress.callbacks = [
        {name: _as_number(getattr(callback, name)) for name in names}
        | {"monitor": callback.monitor, "best_weights": len(_best_weights(callback))}
        for callback, names in remembering
    ]
    weights = [array for callback, _ in remembering for array in _best_weights(callback)]
    state.best_weights.value = weights or None


def recall_callbacks(state: TrainingState, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Puts back what `remember_callbacks` saved; call it after `on_train_begin`."""
    weights = list(state.best_weights.value or [])
    for (callback, names), memory in zip(_remembering(callbacks), state.progress.callbacks):
        count = memory["best_weights"]
        best_weights, weights = weights[:count] or None, weights[count:]
        if callback.monitor != memory["monitor"] or not memory.keys() >= set(names):
            continue  # another criterion, which starts from nothing
        for name in names:
            setattr(callback, name, memory[name])
        if isinstance(callback, keras.callbacks.EarlyStopping):
            callback.best_weights = best_weights


def refuse_restoring_weights(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Refuses to restore a model's best weights without what its learner learned with them.

    Raises:
        ValueError: an EarlyStopping is to restore the best weights.
    """
    if any(getattr(callback, "restore_best_weights", False) for callback in callbacks):
        raise ValueError(
            "EarlyStopping can restore the best weights of the model, but not the variables that "
            "the learner learned with them. Use restore_best_weights=False (no patience)."
        )


def _remembering(callbacks):
    return [
        (callback, names)
        for callback in callbacks
        for kind, names in _NUMBERS.items()
        if isinstance(callback, kind)
    ]


def _best_weights(callback):
    return getattr(callback, "best_weights", None) or []


def _as_number(value):
    return value if value is None or isinstance(value, int) else float(value)
