"""Multi-headed finetuning: train one encoder on all tasks at once, then give it a new head.

The strong baseline of the paper. There is no inner and outer loop: the batches of all tasks of
a meta-batch are mixed and trained on one after the other, each with its own task's head. In
the terms of the protocol the mixture is one long task, and the meta-update goes to where it
ended; the meta-optimizer must therefore be plain SGD with rate 1.
"""

from collections.abc import Sequence

import keras
import numpy as np

from leap_tf.learners.joint_training import JointTraining
from leap_tf.models import head_name, multi_headed
from leap_tf.tasks import MixedTask, Task, TaskDistribution, number_of_each


class MultiHeadedFinetuning(JointTraining):
    """Joint training of a shared encoder with a head for every task.

    Needs `task_layers=[head]`, one Dense layer that is the model's output: in training every
    task has one of its own, kept from meta-step to meta-step; a held-out task gets a fresh one.
    A meta-step makes as many gradient steps as that of another learner would, over its tasks
    together. The inner optimizer starts anew with each meta-step. Where tasks have different
    numbers of classes, the model's head must have as many units as the largest.

    Args:
        heads: how many tasks there may be.

    Raises:
        ValueError: `heads` is not positive.
    """

    def __init__(self, heads: int = 50):
        if heads < 1:
            raise ValueError(f"heads must be at least 1, and is {heads}.")
        self.heads = heads

    def check(
        self,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        stopping: object | None,
    ) -> None:
        super().check(meta_optimizer, inner_optimizer, stopping)
        if stopping:
            raise ValueError(
                "MultiHeadedFinetuning trains a mixture of tasks, none of which can be stopped "
                "alone. Leave stopping out."
            )

    def training_models(self, model: keras.Model, task_layers: Sequence[str]) -> list[keras.Model]:
        return [multi_headed(model, head_name(task_layers, type(self).__name__), self.heads)]

    def draw_tasks(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        numbers = number_of_each(distribution, self.heads)
        drawn = distribution.sample(count, rng)
        return [MixedTask([(numbers[task.name], task) for task in drawn])]

    def training_steps(self, steps_per_task: int, meta_batch_size: int) -> int:
        return steps_per_task * meta_batch_size
