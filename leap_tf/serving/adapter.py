"""Training on a support set in the graph, with the inner loop of the library."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    TaskLayers,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.task_layers import check_resizable
from leap_tf.learners.base import Adaptation
from leap_tf.tasks import order_of_epoch
from leap_tf.training import InnerLoop, InnerLoopResult, SupervisedProblem


class SupportBatches(NamedTuple):
    """The batches of some steps of training on a support set.

    Attributes:
        inputs: [n, …].
        targets: [n, …].
        order: [steps + 1, batch_size] int32, the indices of the examples of each step. The inner
            loop always fetches one batch in advance.
    """

    inputs: tf.Tensor
    targets: tf.Tensor
    order: tf.Tensor

    def at(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the inputs and targets of a step, counted from 0."""
        indices = self.order[step]
        return tf.gather(self.inputs, indices), tf.gather(self.targets, indices)


def support_batches(
    inputs: tf.Tensor,
    targets: tf.Tensor,
    steps: tf.Tensor,
    batch_size: tf.Tensor,
    *,
    seed: tf.Tensor,
) -> SupportBatches:
    """Returns batches in the order of `leap_tf.ArrayTask`: shuffled epochs, one after the other.

    Args:
        inputs, targets: [n, …] each, n at least 1.
        steps: gradient steps, int32, at least 0.
        batch_size: examples in a batch, int32, at least 1; may be larger than n.
        seed: int64, decides the order.
    """
    examples = tf.shape(inputs)[0]
    needed = (steps + 1) * batch_size
    epochs = tf.range(tf.cast((needed + examples - 1) // examples, tf.int64))
    orders = tf.map_fn(
        lambda epoch: order_of_epoch(examples, seed, epoch),
        epochs,
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )
    order = tf.reshape(tf.reshape(orders, [-1])[:needed], [steps + 1, batch_size])
    return SupportBatches(inputs, targets, order)


class Adapter:
    """Adapts a model to tasks as `MetaTrainer.evaluate` does.

    Args:
        problem: holds the initialization and the settings of adaptation.
        model: the model of the problem as a function.
        task_layers: names of the layers that are reinitialized for every request.
        head: name of the layer among them that gets as many units as the task has classes.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        model: FunctionalModel,
        task_layers: Sequence[str],
        head: str | None,
    ):
        self._model = model
        self._head = head
        self._learner_variables = problem.learner_variables
        self._task_layers = TaskLayers(problem.model, task_layers)
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
        *,
        learning_rate: tf.Tensor,
        seed: tf.Tensor,
        num_classes: tf.Tensor | None,
    ) -> InnerLoopResult:
        """Trains from the learned initialization.

        Args:
            batches: batches of at least `steps` steps.
            steps: number of gradient steps.
            learning_rate: learning rate of the first step.
            seed: int64; decides the values of task layers, and dropout.
            num_classes: units of the head, if it is resized.
        """
        units = {self._head: num_classes} if self._head else {}
        parameters, state = self._model.initial_values(seed, self._task_layers.draw(seed, units))
        return self._loop.train(
            batches,
            steps,
            parameters,
            state,
            learner_values=[tf.convert_to_tensor(each.value) for each in self._learner_variables],
            learning_rate=learning_rate,
        )


def resizable_head(problem: SupervisedProblem) -> str | None:
    """Returns the name of the output layer if tasks may have any number of classes, else None.

    The layer must be a Dense layer. Its initializers and optimizer slots must not need the number
    of units in advance. If it is meta-learned, there must be no learner variables for it, such as
    the rates of Meta-SGD.
    """
    head = output_layer(problem.model)
    if not isinstance(head, keras.layers.Dense):
        return None
    if problem.learner_variables and head.name not in problem.evaluation_task_layers:
        return None
    optimizer = problem.evaluation_optimizer
    if not FunctionalOptimizer(optimizer, problem.model.trainable_variables).resizes:
        return None
    try:
        for initializer in (head.kernel_initializer, head.bias_initializer):
            check_resizable(initializer, head.name)
    except ValueError:
        return None
    return head.name
