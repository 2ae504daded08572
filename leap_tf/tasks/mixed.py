"""Tasks mixed into one stream, every batch with the number of its task."""

from collections.abc import Sequence

import tensorflow as tf

from leap_tf.tasks.arrays import one_thread_options
from leap_tf.tasks.numbered import numbering
from leap_tf.tasks.task import Task


class MixedTask:
    """Batches of several tasks in turns, in an order that is shuffled anew every round.

    Inputs become (inputs, int32 [batch] number of the task, int32 [batch] its classes).

    Args:
        members: from each task's number to the task.
    """

    def __init__(self, members: Sequence[tuple[int, Task]]):
        self.members = members
        self.name = f"mixture of {len(members)} tasks"

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns one batch of each member a round, until a member has no more."""
        count = len(self.members)

        def order_of_round(number):
            return tf.random.experimental.stateless_shuffle(
                tf.range(count, dtype=tf.int64),
                seed=tf.stack([tf.constant(seed, tf.int64), number]),
            )

        streams = [
            task.train_batches(seed + position).map(numbering(number, task))
            for position, (number, task) in enumerate(self.members)
        ]
        turns = tf.data.Dataset.counter().map(order_of_round).unbatch()
        mixture = tf.data.Dataset.choose_from_datasets(streams, turns, stop_on_empty_dataset=True)
        return mixture.with_options(one_thread_options())

    def test_batches(self) -> tf.data.Dataset:
        """Raises NotImplementedError: a mixture is only ever trained on."""
        raise NotImplementedError("A mixture of tasks has no held-out examples; its members have.")
