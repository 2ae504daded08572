"""Training batches out of tensors, in the graph: what a served model is sent instead of a task.

Given the same examples, batch size and seed, they are the batches of `ArrayTask.train_batches`,
so a model that adapts in a SavedModel sees what it sees in evaluation.
"""

from typing import NamedTuple

import tensorflow as tf

from leap_tf.tasks.arrays import order_of_epoch


class SupportBatches(NamedTuple):
    """The batches of some steps of training on a few examples.

    Attributes:
        inputs: [n, …].
        targets: [n, …].
        order: [steps + 1, batch_size] int32, which examples each step takes. The loop always
            looks one batch ahead.
    """

    inputs: tf.Tensor
    targets: tf.Tensor
    order: tf.Tensor

    def at(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the inputs and targets of a step, counted from 0."""
        indices = self.order[step]
        return tf.gather(self.inputs, indices), tf.gather(self.targets, indices)


def support_batches(
    inputs: tf.Tensor, targets: tf.Tensor, steps: tf.Tensor, batch_size: tf.Tensor, seed: tf.Tensor
) -> SupportBatches:
    """Draws the batches: all examples in a new order every epoch, batches running on across epochs.

    Args:
        inputs, targets: [n, …] each, n at least 1.
        steps: gradient steps, int32, at least 0.
        batch_size: examples in a batch, int32, at least 1; may be larger than n.
        seed: int64, decides the orders.
    """
    examples = tf.shape(inputs)[0]
    visits = (steps + 1) * batch_size
    epochs = tf.range(tf.cast((visits + examples - 1) // examples, tf.int64))
    orders = tf.map_fn(
        lambda epoch: order_of_epoch(examples, seed, epoch),
        epochs,
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )
    order = tf.reshape(tf.reshape(orders, [-1])[:visits], [steps + 1, batch_size])
    return SupportBatches(inputs, targets, order)
