"""HAT, hard attention to the task: every task keeps the units of the network that it attends to.

Serrà, Surís, Miron and Karatzoglou, "Overcoming Catastrophic Forgetting with Hard Attention to the
Task", ICML 2018; revisits as in Flennerhag et al. 2019, appendix G. All that defines it is in the
model, `leap_tf.models.hard_attention`. Running statistics are no one's: every visit starts from
those of the initialization, as with all learners.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.learners.sequential import SequentialLearner
from leap_tf.models import HardAttentionModel, head_name
from leap_tf.tasks import NumberedTask, Task


class HAT(SequentialLearner):
    """One network in which every task owns the units it attends to.

    Needs `task_layers=[head]`. Where tasks have different numbers of classes, the head must have
    as many units as the largest. The original also clips gradients to a norm of 10⁴, which here
    would be the inner optimizer's to do.

    Attention is hard at the end of an epoch only, and evaluation is with hard attention: after a
    visit that ends in between, what was trained is not what is judged. So `steps_per_task`, and
    `every` of `stopping`, have to be multiples of `steps_per_epoch`. So should those of evaluation
    and of `judged_stopping`, which a learner does not see.

    Args:
        tasks: how many tasks there may be to train on.
        steps_per_epoch: gradient steps in which the sigmoid's scale rises to its largest.
        largest_scale: s_max.
        penalty: λ, the weight of the penalty on units that are newly attended to.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        tasks: int = 50,
        steps_per_epoch: int = 100,
        largest_scale: float = 400.0,
        penalty: float = 0.75,
    ):
        super().__init__(tasks)
        if steps_per_epoch < 2 or largest_scale < 1 or penalty < 0:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch} must be at least 2, "
                f"largest_scale={largest_scale} at least 1, and penalty={penalty} not negative."
            )
        self.steps_per_epoch = steps_per_epoch
        self.largest_scale = largest_scale
        self.penalty = penalty

    def check(
        self,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        stopping: object | None,
    ) -> None:
        super().check(meta_optimizer, inner_optimizer, stopping)
        every = getattr(stopping, "every", 0)
        if every % self.steps_per_epoch:
            raise ValueError(
                f"stopping judges every {every} gradient steps, and HAT's attention is hard at the "
                f"ends of epochs of {self.steps_per_epoch} steps only. Set `every` to a multiple "
                "of steps_per_epoch, in stopping and in judged_stopping."
            )

    def training_steps(self, steps_per_task: int, meta_batch_size: int) -> int:
        if steps_per_task % self.steps_per_epoch:
            raise ValueError(
                f"A visit of {steps_per_task} gradient steps ends within an epoch of "
                f"{self.steps_per_epoch}, while HAT's attention is still soft. Make steps_per_task "
                "a multiple of steps_per_epoch."
            )
        return super().training_steps(steps_per_task, meta_batch_size)

    def training_models(self, model: keras.Model, task_layers: Sequence[str]) -> list[keras.Model]:
        head = head_name(task_layers, type(self).__name__)
        return [HardAttentionModel(model, head, self.tasks + 1, self.largest_scale, self.penalty)]

    def judged_model(
        self, model: keras.Model, training_models: Sequence[keras.Model]
    ) -> keras.Model:
        return training_models[0]

    def lasting_state(self, training_models: Sequence[keras.Model]) -> list[keras.Variable]:
        return [training_models[0].visited]

    def numbered(self, number: int, task: Task) -> NumberedTask:
        return AnnealedTask(number, task, self.steps_per_epoch)


class AnnealedTask(NumberedTask):
    """A numbered task that adds how far its epoch has come, float32 [batch] in [0, 1], to inputs.

    Args:
        number: its number.
        task: the task.
        steps_per_epoch: batches from 0 to 1. Held-out batches have 1.
    """

    def __init__(self, number: int, task: Task, steps_per_epoch: int):
        super().__init__(number, task)
        self._last = steps_per_epoch - 1

    def train_batches(self, seed: int) -> tf.data.Dataset:
        batches = super().train_batches(seed)
        return batches.enumerate().map(
            lambda step, batch: self._with_progress(
                tf.cast(step % (self._last + 1), tf.float32) / self._last, *batch
            )
        )

    def _held_out(self, batches):
        return super()._held_out(batches).map(lambda *batch: self._with_progress(1.0, *batch))

    def _with_progress(self, progress, inputs, *rest):
        return (*inputs, tf.fill(tf.shape(inputs[-1]), progress)), *rest
