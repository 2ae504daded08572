"""Reptile, and ordinary training without meta-learning.

Source: Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018.
"""

import tensorflow as tf

from leap_tf.geometry import accumulator_dtype
from leap_tf.learners.base import StatelessLearner, TaskEnd, TaskUpdate


class Reptile(StatelessLearner):
    """Moves the initialization towards the parameters at the end of training.

    The meta-gradient of a task is θ⁰ − θᴷ. With SGD of rate ε as the meta-optimizer, the
    initialization becomes θ⁰ + ε (mean θᴷ − θ⁰).

    θᴷ is the point after the last step, as in the paper. The original Leap code uses θᴷ⁻¹ instead:
    θ⁰ − θᴷ⁻¹ is the meta-gradient of Leap with distance="energy" and include_loss=False.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(1.0)
        >>> learner = leap_tf.Reptile()
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(), "mse", inner, meta, learner=learner)
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        displacement = [
            tf.cast(start, accumulator_dtype(start.dtype))
            - tf.cast(last, accumulator_dtype(last.dtype))
            for start, last in zip(end.initialization, end.parameters)
        ]
        return TaskUpdate(displacement, metrics={})


class NoMetaLearning(StatelessLearner):
    """Leaves the initialization unchanged.

    With a random initialization this is the baseline without pretraining of Flennerhag et al.
    (2019): every task starts from the same random weights.

    Example:

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.SGD(1.0)
        >>> learner = leap_tf.NoMetaLearning()
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(), "mse", inner, meta, learner=learner)
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([tf.zeros_like(tensor) for tensor in end.initialization], metrics={})
