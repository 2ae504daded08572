"""What a task is, and what a distribution over tasks is. Two small protocols.

Anything with these attributes will do; nothing needs to inherit from here. A task must give
the same batches for the same seed, on any thread, and every task of a distribution gives
batches of the same structure and dtypes (the number of examples in a batch may differ).
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf


class Task(Protocol):
    """One learning problem."""

    @property
    def name(self) -> str:
        """What messages and tables call the task."""

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns training batches, (inputs, targets) or (inputs, targets, sample_weight).

        Args:
            seed: decides order and augmentation. A meta-learner visits a task many times,
                each time with another seed.

        Returns:
            A data set that may be endless; the trainer takes as many batches as it needs.
        """

    def test_batches(self) -> tf.data.Dataset:
        """Returns all held-out examples once, in batches. None of them is ever trained on.

        Weights count in the mean loss and error, so examples of weight 0 are padding.
        """


class TaskDistribution(Protocol):
    """Where tasks come from."""

    def sample(self, count: int, rng: np.random.Generator) -> Sequence[Task]:
        """Draws the tasks of one meta-batch.

        Args:
            count: how many.
            rng: the only source of randomness that may be used.
        """


class FiniteTasks:
    """A fixed set of tasks: each meta-batch is a fresh shuffle of them.

    If the meta-batch is larger than the set, whole shuffles follow one another, so that no
    task is drawn twice as often as another (as in the original code).

    Args:
        tasks: at least one task.

    Raises:
        ValueError: `tasks` is empty.
    """

    def __init__(self, tasks: Sequence[Task]):
        if not tasks:
            raise ValueError("FiniteTasks needs at least one task to sample from.")
        self.tasks = list(tasks)

    def sample(self, count: int, rng: np.random.Generator) -> list[Task]:
        order: list[int] = []
        while len(order) < count:
            order.extend(rng.permutation(len(self.tasks)).tolist())
        return [self.tasks[index] for index in order[:count]]


@dataclasses.dataclass(frozen=True)
class TaskSplits:
    """Tasks to meta-train on, to validate on meanwhile, and to judge by in the end.

    No example that a validation or test task is judged by is one that another trains on.
    """

    train: TaskDistribution
    validation: Sequence[Task]
    test: Sequence[Task]
