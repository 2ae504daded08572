"""Learners without an inner and an outer loop: they train on one task after another.

In the terms of the protocol a meta-step is a visit to a task, and the meta-update goes to where it
ended. Tasks have numbers, which tell what in the model is theirs; the last number is kept for
the task that is judged, which is adapted to like all the others were.
"""

import keras
import numpy as np

from leap_tf.learners.joint_training import JointTraining
from leap_tf.tasks import NumberedTask, Task, TaskDistribution, number_of_each


class SequentialLearner(JointTraining):
    """Keeps one network that goes from task to task.

    Needs `meta_batch_size=1` and the meta-optimizer SGD(1.0). Weight decay is refused, since it
    would move what belongs to other tasks.

    Args:
        tasks: how many tasks there may be to train on.

    Raises:
        ValueError: `tasks` is not positive.
    """

    sequential = True

    def __init__(self, tasks: int = 50):
        if tasks < 1:
            raise ValueError(f"tasks must be at least 1, and is {tasks}.")
        self.tasks = tasks

    def check(
        self,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        stopping: object | None,
    ) -> None:
        super().check(meta_optimizer, inner_optimizer, stopping)
        if inner_optimizer.weight_decay:
            raise ValueError(
                f"inner_optimizer has weight_decay={inner_optimizer.weight_decay}, and would make "
                f"other tasks' weights smaller. {type(self).__name__} needs one without."
            )

    def draw_tasks(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        """Returns one task: all take turns, in their order, so that none is left out."""
        number_of_each(distribution, self.tasks)
        tasks = distribution.tasks  # type: ignore[attr-defined]
        number = meta_step % len(tasks)
        return [self.numbered(number, tasks[number])]

    def judged_task(self, task: Task) -> Task:
        return self.numbered(self.tasks, task)

    def numbered(self, number: int, task: Task) -> NumberedTask:
        """Returns a task as the models take it."""
        return NumberedTask(number, task)
