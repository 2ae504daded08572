"""Tasks that tell the model which of them they are, for models with parts of every task's own."""

from collections.abc import Callable

import tensorflow as tf

from leap_tf.tasks.task import Task, TaskDistribution

# What a task without a number of classes has: more than any model.
_ALL_CLASSES = 2**31 - 1


class NumberedTask:
    """A task whose inputs are (inputs, int32 [batch] its number, int32 [batch] its classes).

    Args:
        number: its number.
        task: the task.
    """

    def __init__(self, number: int, task: Task):
        self.number = number
        self.name = task.name
        self._task = task

    @property
    def validation_batches(self) -> Callable[[], tf.data.Dataset]:
        """That of the task; an AttributeError where it has none."""
        make_batches = self._task.validation_batches  # type: ignore[attr-defined]
        return lambda: self._held_out(make_batches())

    def train_batches(self, seed: int) -> tf.data.Dataset:
        return self._numbered(self._task.train_batches(seed))

    def test_batches(self) -> tf.data.Dataset:
        return self._held_out(self._task.test_batches())

    def _numbered(self, batches):
        return batches.map(numbering(self.number, self._task))

    def _held_out(self, batches):
        return self._numbered(batches)


def number_of_each(distribution: TaskDistribution, most: int) -> dict[str, int]:
    """Returns the number of each task, by its name.

    Raises:
        ValueError: the tasks are not a fixed list, or more than `most`, or share a name.
    """
    tasks = getattr(distribution, "tasks", None)
    if tasks is None:
        raise ValueError(
            f"{type(distribution).__name__} has no fixed list of tasks, so there cannot be "
            "something of its own for each. Use FiniteTasks."
        )
    if len(tasks) > most:
        raise ValueError(f"There are {len(tasks)} tasks, and the learner has room for {most}.")
    numbers = {task.name: number for number, task in enumerate(tasks)}
    if len(numbers) < len(tasks):
        raise ValueError("Each task needs a name of its own, which tells what in the model is its.")
    return numbers


def numbering(number: int, task: Task) -> Callable[..., tuple]:
    """Returns a function that adds a task's number and classes to the inputs of its batches."""
    classes = getattr(task, "classes", None) or _ALL_CLASSES

    def add_number(inputs, targets, *weights):
        size = tf.shape(tf.nest.flatten(inputs)[0])[:1]
        return (inputs, tf.fill(size, number), tf.fill(size, classes)), targets, *weights

    return add_number
