"""Keras variables that stand for tensors for a while."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def scope_of(
    values: Iterable[tuple[keras.Variable, tf.Tensor]], collect_losses: bool = False
) -> keras.StatelessScope:
    """Returns a scope in which variables have other values, and assigning changes only these.

    Keras's own constructor wants each value to have its variable's shape. A head that has as many
    units as its task has classes does not.

    Args:
        values: variables and what they stand for, of their dtype.
        collect_losses: whether regularisation losses are collected.
    """
    scope = keras.StatelessScope(collect_losses=collect_losses)
    for variable, value in values:
        scope.add_update((variable, tf.convert_to_tensor(value, dtype=variable.dtype)))
    return scope
