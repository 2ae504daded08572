"""Ordinary training: the learner that learns nothing across tasks.

On a fresh initialization it is the "no pretraining" of the paper: every task starts from the
same random weights, is trained, and then judged.
"""

import tensorflow as tf

from leap_tf.learners.learner import StatelessLearner, TaskEnd, TaskUpdate


class PlainTraining(StatelessLearner):
    """Trains on the task and leaves the initialization where it is."""

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate([tf.zeros_like(tensor) for tensor in end.initialization], metrics={})
