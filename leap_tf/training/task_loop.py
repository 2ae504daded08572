"""Training on one task, as a traced function of tensors.

    (batches, steps, θ⁰, state) → (θᴷ, state, loss and error of every step, meta-gradient)

One trace serves all tasks and all threads, because nothing in it is shared: parameters,
optimizer slots and the learner's memory travel through a `tf.while_loop`.

Forward and backward pass are a function of their own that is never inlined. TensorFlow's
oneDNN rewrite matches an operation's gradient with the operation it belongs to by walking
the graph in order, and in the cyclic graph of an inlined loop that order is a lottery: the
gradient of max-pooling is many times slower in some processes than in others. A function body
has no cycles.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from leap_tf.functional import Batch, FunctionalModel, FunctionalOptimizer, unpack_batch
from leap_tf.geometry import PathPoint
from leap_tf.learners import Learner, TaskUpdate


class TaskResult(NamedTuple):
    """What training on a task came to.

    Attributes:
        parameters: θᴷ.
        state: the model's other variables after the last step.
        losses: [K] float32, loss of each batch before the step it caused.
        errors: [K] float32, mean error on each batch before the step it caused.
        update: the learner's meta-gradient and metrics.
        finite: whether every loss and all of the meta-gradient is finite.
    """

    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor
    errors: tf.Tensor
    update: TaskUpdate
    finite: tf.Tensor


class HeldOut(NamedTuple):
    """Mean loss and error over held-out examples, and how many there were."""

    loss: tf.Tensor
    error: tf.Tensor
    examples: tf.Tensor


class _LoopState(NamedTuple):
    """What travels through the loop."""

    step: tf.Tensor
    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    slots: list[tf.Tensor]
    memory: Any
    losses: tf.TensorArray
    errors: tf.TensorArray


class TaskLoop:
    """Trains a model on tasks and lets a learner watch.

    Args:
        model: the model and its loss.
        optimizer: the inner optimizer.
        learner: the meta-learner.
        meta_indices: which of the model's parameters are meta-learned.
    """

    def __init__(
        self,
        model: FunctionalModel,
        optimizer: FunctionalOptimizer,
        learner: Learner,
        meta_indices: Sequence[int],
    ):
        self._model = model
        self._optimizer = optimizer
        self._learner = learner
        self._meta_indices = list(meta_indices)
        self._gradient = tf.function(
            self._gradient_of_batch,
            reduce_retracing=True,
            experimental_attributes={"_noinline": True},
        )
        self.train = tf.function(self._train, reduce_retracing=True)
        self.evaluate = tf.function(self._evaluate, reduce_retracing=True)

    def _train(self, iterator, max_steps, parameters, state) -> TaskResult:
        """Trains for `max_steps` batches, or until the iterator ends."""
        initialization = self._meta_learned(parameters)
        start = _LoopState(
            step=tf.constant(0),
            parameters=parameters,
            state=state,
            slots=self._optimizer.initial_slots(),
            memory=self._learner.begin_task(initialization),
            losses=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
            errors=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
        )
        # The next batch travels along as an optional: an iterator tells its end only when asked.
        _, end = tf.while_loop(
            lambda batch, now: (now.step < max_steps) & batch.has_value(),
            lambda batch, now: (
                iterator.get_next_as_optional(),
                self._step(unpack_batch(batch.get_value()), now),
            ),
            (iterator.get_next_as_optional(), start),
            parallel_iterations=1,
        )
        update = self._learner.end_task(
            end.memory, initialization, self._meta_learned(end.parameters)
        )
        losses, errors = end.losses.stack()[: end.step], end.errors.stack()[: end.step]
        return TaskResult(
            parameters=end.parameters,
            state=end.state,
            losses=losses,
            errors=errors,
            update=update,
            finite=_all_finite([losses, *update.meta_gradient, *update.metrics.values()]),
        )

    def _step(self, batch: Batch, now: _LoopState) -> _LoopState:
        loss, error, state, gradients = self._gradient(now.parameters, now.state, batch)
        point = PathPoint(
            position=self._meta_learned(now.parameters),
            loss=loss,
            gradient=[
                tf.zeros_like(parameter)
                if gradient is None
                else tf.ensure_shape(gradient, parameter.shape)
                for parameter, gradient in zip(
                    self._meta_learned(now.parameters), self._meta_learned(gradients)
                )
            ],
        )
        memory = self._learner.observe(now.memory, point)
        # The learner looks first: what it lets go of makes room for the optimizer's step.
        with tf.control_dependencies(tf.nest.flatten(memory)):
            parameters, slots = self._optimizer.apply(gradients, now.parameters, now.slots)
        # Batches whose shape is not known beforehand leave these without a shape of their own.
        for new, old in ((parameters, now.parameters), (state, now.state), (slots, now.slots)):
            for tensor, reference in zip(new, old):
                tensor.set_shape(reference.shape)
        return _LoopState(
            step=now.step + 1,
            parameters=parameters,
            state=state,
            slots=slots,
            memory=memory,
            losses=now.losses.write(now.step, tf.cast(loss, tf.float32)),
            errors=now.errors.write(now.step, error),
        )

    def _gradient_of_batch(self, parameters, state, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            result = self._model.evaluate(parameters, state, batch, training=True)
        gradients = [
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(result.loss, parameters)
        ]
        return result.loss, tf.reduce_mean(result.errors), result.state, gradients

    def _evaluate(self, iterator, parameters, state) -> HeldOut:
        """Evaluates with the state that training left behind (inductive), nothing updated."""

        def add_batch(element, loss_sum, error_sum, examples):
            batch = unpack_batch(element.get_value())
            result = self._model.evaluate(parameters, state, batch, training=False)
            size = tf.shape(result.errors)[0]
            return (
                iterator.get_next_as_optional(),
                loss_sum + tf.cast(result.loss, tf.float32) * tf.cast(size, tf.float32),
                error_sum + tf.reduce_sum(result.errors),
                examples + size,
            )

        _, loss_sum, error_sum, examples = tf.while_loop(
            lambda element, *_: element.has_value(),
            add_batch,
            (iterator.get_next_as_optional(), tf.constant(0.0), tf.constant(0.0), tf.constant(0)),
            parallel_iterations=1,
        )
        count = tf.cast(tf.maximum(examples, 1), tf.float32)
        return HeldOut(loss=loss_sum / count, error=error_sum / count, examples=examples)

    def _meta_learned(self, tensors):
        return [tensors[index] for index in self._meta_indices]


def _all_finite(tensors):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
