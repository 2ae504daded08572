"""What surrounds the meta-update: its failure, and the optimizer that callbacks see."""

import contextlib
from collections.abc import Iterator

import keras


class MetaTrainingDivergedError(FloatingPointError):
    """A meta-step came to nothing finite; the last good initialization is kept."""


@contextlib.contextmanager
def shown_as_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Shows Keras callbacks the meta-optimizer as the model's, for the time of a `fit`."""
    had_one, before = hasattr(model, "optimizer"), getattr(model, "optimizer", None)
    model.optimizer = optimizer
    try:
        yield
    finally:
        if had_one:
            model.optimizer = before
        else:
            del model.optimizer
