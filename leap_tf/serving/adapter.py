"""Training on a support set in the graph: the library's task loop, from where a task starts."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional import (
    FreshLayers,
    FunctionalModel,
    FunctionalOptimizer,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.task_layers import check_resizable
from leap_tf.learners.base import Adaptation
from leap_tf.tasks import order_of_epoch
from leap_tf.training import InnerLoop, InnerLoopResult, SupervisedProblem


class SupportBatches(NamedTuple):
    """The batches of some steps of training on a few examples.

    Attributes:
        inputs: [n, …].
        targets: [n, …].
        order: [steps + 1, batch_size] int32, which examples each step takes. The loop always
            looks one batch ahead.
    """

    inputs: tf.Tensor
    targets: tf.Tensor
    order: tf.Tensor

    def at(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the inputs and targets of a step, counted from 0."""
        indices = self.order[step]
        return tf.gather(self.inputs, indices), tf.gather(self.targets, indices)


def support_batches(
    inputs: tf.Tensor, targets: tf.Tensor, steps: tf.Tensor, batch_size: tf.Tensor, seed: tf.Tensor
) -> SupportBatches:
    """Draws the batches: all examples in a new order every epoch, batches running on across epochs.

    Args:
        inputs, targets: [n, …] each, n at least 1.
        steps: gradient steps, int32, at least 0.
        batch_size: examples in a batch, int32, at least 1; may be larger than n.
        seed: int64, decides the orders.
    """
    examples = tf.shape(inputs)[0]
    visits = (steps + 1) * batch_size
    epochs = tf.range(tf.cast((visits + examples - 1) // examples, tf.int64))
    orders = tf.map_fn(
        lambda epoch: order_of_epoch(examples, seed, epoch),
        epochs,
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )
    order = tf.reshape(tf.reshape(orders, [-1])[:visits], [steps + 1, batch_size])
    return SupportBatches(inputs, targets, order)


class Adapter:
    """Adapts a model to tasks, as the trainer does when it judges.

    Args:
        problem: holds the learned initialization, and how tasks are trained on.
        model: its model as a function.
        fresh_layers: names of layers that are drawn from the seed.
        head: name of the layer among them that has as many units as the task has classes.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        model: FunctionalModel,
        fresh_layers: Sequence[str],
        head: str | None,
    ):
        self._model = model
        self._head = head
        self._learner_variables = problem.learner_variables
        self._fresh_layers = FreshLayers(problem.model, fresh_layers)
        fixed = set(meta_learned_indices(problem.model, [head] if head else []))
        indices = range(len(model.variables))
        self._loop = InnerLoop(
            model,
            FunctionalOptimizer(problem.evaluation_optimizer, model.variables),
            Adaptation(
                problem.learner, meta_learned_indices(problem.model, problem.evaluation_task_layers)
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
    ) -> InnerLoopResult:
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
        parameters, state = self._model.initial_values(seed, fresh)
        return self._loop.train(
            batches,
            steps,
            parameters,
            state,
            learner_values=[tf.convert_to_tensor(each.value) for each in self._learner_variables],
            learning_rate=learning_rate,
        )


def resizable_head(problem: SupervisedProblem) -> str | None:
    """Returns the name of the output layer, if tasks may have any number of classes.

    It must be a Dense layer whose initializers and optimizer slots do not need to know how many
    units there are. If it is meta-learned, the learner must have learned nothing of its own about
    it, as Meta-SGD has.
    """
    head = output_layer(problem.model)
    if not isinstance(head, keras.layers.Dense):
        return None
    if problem.learner_variables and head.name not in problem.evaluation_task_layers:
        return None
    if not FunctionalOptimizer(
        problem.evaluation_optimizer, problem.model.trainable_variables
    ).resizes:
        return None
    try:
        for initializer in (head.kernel_initializer, head.bias_initializer):
            check_resizable(initializer, head.name)
    except ValueError:
        return None
    return head.name
