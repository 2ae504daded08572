"""Meta-SGD: MAML that also learns a learning rate for every parameter.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

    θ ← θ − α ∘ ∇f(θ),  meta-learned: θ⁰ and α
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.learners.maml import MAML


class MetaSGD(MAML):
    """MAML over the initialization and over factors on the inner learning rate.

    The inner optimizer is given α ∘ ∇f, so with SGD of rate λ the rate of a parameter is λα. Adam
    and its like, and clipping by norm, divide most of α out again: take SGD inside.
    All α start at 1; they may become negative, as in the paper. The meta-gradient has two
    parts, with respect to θ⁰ and to α.

    Args:
        query_batches: as for `MAML`.

    Raises:
        ValueError: `query_batches` is not positive.
    """

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [
            keras.Variable(tf.ones(variable.shape, variable.dtype), name=f"rate_of_{variable.name}")
            for variable in variables
        ]

    def direction(
        self, gradients: Sequence[tf.Tensor], own: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        return [rate * gradient for rate, gradient in zip(own, gradients, strict=True)]
