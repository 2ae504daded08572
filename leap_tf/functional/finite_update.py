"""An optimizer's update, or none at all where it would leave numbers that are not finite."""

from collections.abc import Sequence

import keras
import tensorflow as tf


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> bool:
    """Applies meta-gradients, unless a variable or a slot of the optimizer overflows.

    Finite gradients of tasks may have an infinite sum, and a finite mean may lead too far.

    Args:
        optimizer: the meta-optimizer, built on the variables.
        gradients: one for each variable.
        variables: what is meta-learned.

    Returns:
        Whether they were applied. If not, variables and optimizer are as they were.
    """
    touched = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in touched]
    optimizer.apply(gradients, variables)
    floats = [variable.value for variable in touched if variable.value.dtype.is_floating]
    if all(bool(tf.reduce_all(tf.math.is_finite(value))) for value in floats):
        return True
    for variable, value in zip(touched, before):
        variable.assign(value)
    return False
