"""Multi-headed finetuning: train one encoder on all tasks at once, then give it a new head.

The strong baseline of the paper. There is no inner and outer loop: the batches of all tasks of
a meta-batch are mixed and trained on one after the other, each with its own task's head. In
the terms of the protocol the mixture is one long task, and the meta-update goes to where it
ended; the meta-optimizer must therefore be plain SGD with rate 1.
"""

from collections.abc import Sequence

import keras

from leap_tf.learners.learner import StatelessLearner, TaskEnd, TaskUpdate
from leap_tf.learners.reptile import displacement
from leap_tf.models import multi_headed
from leap_tf.tasks import MixedTasks, TaskDistribution


class MultiHeadedFinetuning(StatelessLearner):
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

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(displacement(end), metrics={})

    def check(self, meta_optimizer: keras.optimizers.Optimizer, stopping: object | None) -> None:
        settings = meta_optimizer.get_config()
        if type(meta_optimizer) is not keras.optimizers.SGD or (
            settings["learning_rate"] != 1.0 or settings["momentum"]
        ):
            raise ValueError(
                "MultiHeadedFinetuning goes to where joint training ended, so its meta_optimizer "
                "must be keras.optimizers.SGD(1.0). The learning rate is the inner optimizer's."
            )
        if stopping:
            raise ValueError(
                "MultiHeadedFinetuning trains a mixture of tasks, none of which can be stopped "
                "alone. Leave stopping out."
            )

    def training_models(self, model: keras.Model, task_layers: Sequence[str]) -> list[keras.Model]:
        if len(task_layers) != 1:
            raise ValueError(
                "MultiHeadedFinetuning needs the name of the one layer that each task has for "
                f"itself: task_layers=['head'] or the like, and not {list(task_layers)}."
            )
        return [multi_headed(model, task_layers[0], self.heads)]

    def training_tasks(self, distribution: TaskDistribution) -> TaskDistribution:
        return MixedTasks(distribution, self.heads)

    def training_steps(self, steps_per_task: int, meta_batch_size: int) -> int:
        return steps_per_task * meta_batch_size
