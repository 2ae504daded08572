"""Training on a support set in the graph: the library's task loop, from where a task starts."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.functional import (
    FreshLayers,
    FunctionalModel,
    FunctionalOptimizer,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.task_layers import refuse_unknown_shapes
from leap_tf.learners import AlongDirection
from leap_tf.training import MetaTrainer, TaskLoop, TaskResult
from leap_tf.training.inner_loop import SupportBatches


class Adapter:
    """Adapts a model to tasks, as the trainer does when it judges.

    Args:
        trainer: holds the learned initialization, and how tasks are trained on.
        model: its model as a function.
        fresh_layers: names of layers that are drawn from the seed.
        head: name of the layer among them that has as many units as the task has classes.
    """

    def __init__(
        self,
        trainer: MetaTrainer,
        model: FunctionalModel,
        fresh_layers: Sequence[str],
        head: str | None,
    ):
        self._model = model
        self._head = head
        self._own = trainer.learner_variables
        self._fresh_layers = FreshLayers(trainer.model, fresh_layers)
        fixed = set(meta_learned_indices(trainer.model, [head] if head else []))
        indices = range(len(model.variables))
        self._loop = TaskLoop(
            model,
            FunctionalOptimizer(trainer.judged_optimizer, model.variables),
            AlongDirection(
                trainer.learner, meta_learned_indices(trainer.model, trainer.judged_task_layers)
            ),
            indices,
            resizable=[index for index in indices if index not in fixed],
        )

    def train(
        self,
        batches: SupportBatches,
        steps: tf.Tensor,
        learning_rate: tf.Tensor,
        seed: tf.Tensor,
        num_classes: tf.Tensor | None,
    ) -> TaskResult:
        """Trains from the learned initialization.

        Args:
            batches: for as many steps.
            steps: gradient steps.
            learning_rate: of the first step.
            seed: int64; decides fresh layers and dropout.
            num_classes: units of the head, if there is one.
        """
        units = {self._head: num_classes} if self._head else {}
        fresh = self._fresh_layers.draw(seed, units)
        model = self._model
        parameters, state = (
            [fresh.get(id(variable), value) for variable, value in zip(variables, values)]
            for variables, values in (
                (model.variables, model.parameters()),
                (model.model.non_trainable_variables, model.state(seed)),
            )
        )
        own = [tf.convert_to_tensor(variable.value) for variable in self._own]
        return self._loop.train(batches, steps, parameters, state, own, learning_rate=learning_rate)


def resizable_head(trainer: MetaTrainer) -> str | None:
    """Returns the name of the output layer, if tasks may have any number of classes.

    It must be a Dense layer whose initializers and optimizer slots do not need to know how many
    units there are. If it is meta-learned, the learner must have learned nothing of its own about
    it, as Meta-SGD has.
    """
    head = output_layer(trainer.model)
    if not isinstance(head, keras.layers.Dense):
        return None
    if trainer.learner_variables and head.name not in trainer.judged_task_layers:
        return None
    if not FunctionalOptimizer(trainer.judged_optimizer, trainer.model.trainable_variables).resizes:
        return None
    try:
        for initializer in (head.kernel_initializer, head.bias_initializer):
            refuse_unknown_shapes(initializer, head.name)
    except ValueError:
        return None
    return head.name
