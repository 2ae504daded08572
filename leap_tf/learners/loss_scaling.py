"""What a loss-scaling optimizer hides: the gradient of the loss itself, and skipped steps."""

from collections.abc import Sequence

import keras
import tensorflow as tf


def unscaled_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
    variables: Sequence[keras.Variable],
) -> list[tf.Tensor]:
    """Divides gradients by the scale that `optimizer` gave the loss.

    Args:
        optimizer: scales dynamically (`LossScaleOptimizer`), by a constant, or not at all.
        gradients: of the scaled loss; None where it does not depend on a variable.
        variables: what the gradients are of.

    Returns:
        Dense gradients of the loss, zero for None.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        scale = optimizer.dynamic_scale.value
    else:
        scale = optimizer.loss_scale_factor or 1.0
    return [
        tf.zeros(variable.shape, variable.dtype)
        if gradient is None
        else tf.convert_to_tensor(gradient) / tf.cast(scale, gradient.dtype)
        for gradient, variable in zip(gradients, variables)
    ]


def makes_step(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
) -> tf.Tensor | bool:
    """Returns whether `optimizer` will move the weights: dynamic scaling may skip a step."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return True
    return tf.reduce_all(
        [
            tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient)))
            for gradient in gradients
            if gradient is not None
        ]
    )
