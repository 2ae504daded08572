"""Which tasks a meta-step has, and which seed each of them gets.

Both follow from the run's seed and the meta-step alone, so whoever has a replica of the study
draws the very same tasks again.
"""

from collections.abc import Iterable

import numpy as np

from leap_tf.learners import Learner
from leap_tf.tasks import Task, TaskDistribution, TaskSplits
from leap_tf.training.problem import SeededTask, TaskAddress

# Streams of random numbers, kept apart by the second word of their seed.
TRAINING, VALIDATION, EVALUATION = range(3)


class TaskDraws:
    """Draws tasks.

    Args:
        learner: the meta-learner, which may want them otherwise.
        steps_per_task: gradient steps on a task to train on.
        meta_batch_size: tasks in a meta-step.
        seed: decides everything random.
    """

    def __init__(self, learner: Learner, steps_per_task: int, meta_batch_size: int, seed: int):
        self._learner = learner
        self._steps_per_task = steps_per_task
        self._meta_batch_size = meta_batch_size
        self._seed = seed
        self._latest: tuple[int, list[SeededTask]] | None = None

    def meta_batch(self, distribution: TaskDistribution, meta_step: int) -> list[SeededTask]:
        """Returns the tasks to train on after `meta_step` meta-steps.

        Raises:
            ValueError: the distribution gives none.
        """
        rng = np.random.default_rng([self._seed, TRAINING, meta_step])
        count = self._meta_batch_size
        tasks = self._learner.draw_tasks(distribution, count, meta_step, rng)
        if not tasks:
            raise ValueError(f"{distribution!r} gave no tasks when asked for {count}.")
        steps = self._learner.training_steps(self._steps_per_task, count)
        return [
            SeededTask(
                task, int(rng.integers(2**31)), steps, TaskAddress("train", meta_step, index)
            )
            for index, task in enumerate(tasks)
        ]

    def judged(
        self, tasks: Iterable[Task], steps: int, stream: int, split: str
    ) -> list[SeededTask]:
        """Returns tasks as they are judged.

        Args:
            tasks: the tasks.
            steps: gradient steps on each.
            stream: of random numbers, VALIDATION or EVALUATION.
            split: the name of that list of tasks.

        Raises:
            ValueError: there are none.
        """
        seeded = [
            SeededTask(
                self._learner.judged_task(task),
                self.seed_of_judged(stream, index),
                steps,
                TaskAddress(split, 0, index),
            )
            for index, task in enumerate(tasks)
        ]
        if not seeded:
            raise ValueError("There are no tasks to evaluate.")
        return seeded

    def seed_of_judged(self, stream: int, index: int) -> int:
        """Returns the seed of the task at this place in the list of those that are judged."""
        return int(np.random.default_rng([self._seed, stream, index]).integers(2**31))

    def again(self, tasks: TaskSplits, address: TaskAddress, seed: int, steps: int) -> SeededTask:
        """Returns the task at an address.

        Args:
            tasks: all of the study.
            address: where it is.
            seed: of the visit.
            steps: gradient steps on it.

        Raises:
            ValueError: this study has other tasks.
        """
        if address.split == "train":
            if self._latest is None or self._latest[0] != address.meta_step:
                self._latest = address.meta_step, self.meta_batch(tasks.train, address.meta_step)
            drawn = self._latest[1]
            found = drawn[address.place] if address.place < len(drawn) else None
            if found is None or (found.seed, found.steps) != (seed, steps):
                raise ValueError(
                    f"{address} has other tasks, seeds or steps here. A worker's study must be "
                    "that of the driver, its seed included."
                )
            return found
        judged = getattr(tasks, address.split)
        if address.place >= len(judged):
            raise ValueError(
                f"There are {len(judged)} {address.split} tasks here, and number {address.place} "
                "was asked for. A worker judges the tasks of its own study only."
            )
        task = self._learner.judged_task(judged[address.place])
        return SeededTask(task, seed, steps, address)
