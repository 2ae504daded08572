"""Training batches out of tensors, in the graph: what a served model is sent instead of a task.

Given the same examples, batch size and seed, they are the batches of `ArrayTask.train_batches`,
so a model that adapts in a SavedModel sees what it sees in evaluation.

Training on one task, as a traced function of tensors.

    (batches, steps, θ⁰, state, own) → (θᴷ, state, loss and error of every step, meta-gradient)

where own are the learner's own variables, such as Meta-SGD's learning rates.

One trace serves all tasks and all threads, because nothing in it is shared: parameters,
optimizer slots and the learner's memory travel through a `tf.while_loop`.

Forward and backward pass are a function of their own that is never inlined. TensorFlow's
oneDNN rewrite matches an operation's gradient with the operation it belongs to by walking
the graph in order, and in the cyclic graph of an inlined loop that order is a lottery: the
gradient of max-pooling is many times slower in some processes than in others. A function body
has no cycles.

A learner of second order needs derivatives through the steps. They are then unrolled under an
outer tape, which costs memory and graph in proportion to their number.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from leap_tf.functional import Batch, FunctionalModel, FunctionalOptimizer, unpack_batch
from leap_tf.functional.second_order import refuse_stopped_gradients_in
from leap_tf.geometry import PathPoint
from leap_tf.learners import Learner, TaskEnd, TaskUpdate
from leap_tf.tasks import order_of_epoch
from leap_tf.training.early_stopping import StopRule


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
    """Means of loss and error over held-out examples, and how many there were, padding aside."""

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
    stop_memory: Sequence[tf.Tensor]  # what the stop rule remembers
    losses: tf.TensorArray
    errors: tf.TensorArray


class TaskLoop:
    """Trains a model on tasks and lets a learner watch.

    Args:
        model: the model and its loss.
        optimizer: the inner optimizer.
        learner: the meta-learner.
        meta_indices: which of the model's parameters are meta-learned.
        stopping: when to end a task early; None never does.
        transductive: whether held-out examples are judged with the statistics of their own
            batch in batch norm, and not with the running ones of the task's training.
        resizable: which of the parameters have another last dimension on other tasks.

    Raises:
        ValueError: a learner of second order has no query batches.
    """

    def __init__(
        self,
        model: FunctionalModel,
        optimizer: FunctionalOptimizer,
        learner: Learner,
        meta_indices: Sequence[int],
        stopping: StopRule | None = None,
        transductive: bool = False,
        resizable: Sequence[int] = (),
    ):
        if learner.second_order and not learner.query_batches:
            raise ValueError(
                f"{type(learner).__name__} has second_order=True and query_batches=0: there is no "
                "loss to differentiate. Set query_batches to at least 1."
            )
        self._model = model
        self._optimizer = optimizer
        self._learner = learner
        self._meta_indices = list(meta_indices)
        self._stopping = stopping
        self._transductive = transductive
        self._resizable = frozenset(resizable)
        self._gradient = tf.function(
            self._gradient_of_batch,
            reduce_retracing=True,
            experimental_attributes={"_noinline": True},
        )
        self._judge = tf.function(
            self._judge_batch, reduce_retracing=True, experimental_attributes={"_noinline": True}
        )
        self.traced_training = tf.function(self._train, reduce_retracing=True)
        self.evaluate = tf.function(self._evaluate, reduce_retracing=True)

    def train(
        self,
        batches,
        max_steps: int,
        parameters,
        state,
        own=(),
        held_out=None,
        queries=None,
        learning_rate=None,
    ) -> TaskResult:
        """Trains for `max_steps` batches, or until the iterator ends or the stop rule says so.

        Args:
            batches: iterator over training batches, or `SupportBatches` for as many steps.
            max_steps: gradient steps at most; a learner of second order makes all of them.
            parameters, state: values of the model's variables.
            own: values of the learner's own variables.
            held_out: endless iterator over held-out batches, for `stopping`.
            queries: iterator over query batches; by default they are the next of `batches`.
            learning_rate: of the first step; the optimizer's own by default.
        """
        # Unrolled steps are counted while the graph is built.
        steps = max_steps if self._learner.second_order else tf.convert_to_tensor(max_steps)
        return self.traced_training(
            batches, steps, parameters, state, list(own), held_out, queries, learning_rate
        )

    def _train(
        self, batches, max_steps, parameters, state, own, held_out, queries, learning_rate
    ) -> TaskResult:
        parameters = self._of_any_width(parameters)
        initialization = self._meta_learned(parameters)
        start = _LoopState(
            step=tf.constant(0),
            parameters=parameters,
            state=state,
            slots=self._optimizer.initial_slots(parameters, learning_rate),
            memory=self._learner.begin_task(initialization),
            stop_memory=self._stopping.start() if self._stopping else [],
            losses=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
            errors=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
        )
        if self._learner.second_order:
            end, query_gradient = self._recorded_steps(batches, queries, max_steps, start, own)
        else:
            end, query_gradient = self._steps(batches, held_out, queries, max_steps, start, own)
        task_end = TaskEnd(initialization, self._meta_learned(end.parameters), query_gradient)
        update = self._learner.end_task(end.memory, task_end)
        losses, errors = end.losses.stack()[: end.step], end.errors.stack()[: end.step]
        return TaskResult(
            parameters=end.parameters,
            state=end.state,
            losses=losses,
            errors=errors,
            update=update,
            finite=_all_finite([losses, *update.meta_gradient, *update.metrics.values()]),
        )

    def _steps(self, batches, held_out, queries, max_steps, start, own):
        """All steps as a loop, and ∇f(θᴷ) on the query batches."""
        # The next batch travels along as an optional: an iterator tells its end only when asked.
        following, end = tf.while_loop(
            lambda batch, now: (now.step < max_steps) & self._goes_on(now) & batch.has_value(),
            lambda batch, now: (
                _batch_of_step(batches, now.step + 1),
                self._step(unpack_batch(batch.get_value()), held_out, now, own),
            ),
            (_batch_of_step(batches, start.step), start),
            parallel_iterations=1,
        )
        if not self._learner.query_batches:
            return end, []
        if queries is None:
            # If the stream has ended, asking it again says so by name.
            next_batch = tf.cond(following.has_value(), following.get_value, batches.get_next)
            judged = [unpack_batch(next_batch)]
            judged += self._next_batches(batches, self._learner.query_batches - 1)
        else:
            judged = self._next_batches(queries, self._learner.query_batches)
        gradients = [
            self._meta_learned_gradient(end, self._gradient(end.parameters, end.state, batch)[-1])
            for batch in judged
        ]
        return end, [tf.add_n(parts) / len(judged) for parts in zip(*gradients)]

    def _recorded_steps(self, batches, queries, steps, start, own):
        """All steps unrolled, and the gradient of the query loss through them."""
        sources = [*self._meta_learned(start.parameters), *own]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            now = start
            for batch in self._next_batches(batches, steps):
                now = self._step(batch, None, now, own)
            judged = self._next_batches(queries or batches, self._learner.query_batches)
            losses = [
                self._model.evaluate(now.parameters, now.state, batch, training=True).loss
                for batch in judged
            ]
            objective = tf.add_n(losses) / len(judged)
        gradients = tape.gradient(
            objective, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return now, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _step(self, batch: Batch, held_out, now: _LoopState, own) -> _LoopState:
        loss, error, state, gradients = self._gradient(now.parameters, now.state, batch)
        meta_gradients = self._meta_learned_gradient(now, gradients)
        point = PathPoint(self._meta_learned(now.parameters), loss, meta_gradients)
        memory = self._learner.observe(now.memory, point)
        directions = self._learner.direction(meta_gradients, own)
        left_alone = self._learner.sequential or any(each is None for each in directions)
        for index, direction in zip(self._meta_indices, directions, strict=True):
            if gradients[index] is not None:
                gradients[index] = direction
        # The learner looks first: what it lets go of makes room for the optimizer's step.
        with tf.control_dependencies(tf.nest.flatten(memory)), warnings.catch_warnings():
            if left_alone:  # on purpose, so Keras need not warn of it
                warnings.filterwarnings("ignore", "Gradients do not exist")
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
            stop_memory=self._observe_held_out(now, held_out, parameters, state),
            losses=now.losses.write(now.step, tf.cast(loss, tf.float32)),
            errors=now.errors.write(now.step, error),
        )

    def _gradient_of_batch(self, parameters, state, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            result = self._model.evaluate(parameters, state, batch, training=True)
        if self._learner.second_order:
            refuse_stopped_gradients_in(tf.compat.v1.get_default_graph())
        gradients = [
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(result.loss, parameters)
        ]
        return result.loss, result.error, result.state, gradients

    def _observe_held_out(self, now, held_out, parameters, state):
        if not self._stopping:
            return now.stop_memory

        def observe():
            error = self._judge(parameters, state, unpack_batch(held_out.get_next()))
            return self._stopping.observe(now.stop_memory, error)

        is_due = (now.step + 1) % self._stopping.every == 0
        return (
            observe()
            if self._stopping.every == 1
            else tf.cond(is_due, observe, lambda: now.stop_memory)
        )

    def _goes_on(self, now):
        if not self._stopping:
            return True
        return tf.logical_not(self._stopping.is_over(now.stop_memory))

    def _judge_batch(self, parameters, state, batch):
        result = self._model.evaluate(parameters, state, batch, training=False)
        return result.error

    def _next_batches(self, batches, count) -> list[Batch]:
        return [unpack_batch(batches.get_next()) for _ in range(count)]

    def _meta_learned_gradient(self, now, gradients):
        """Gradients of the meta-learned parameters, zero where the loss does not depend on one."""
        return [
            tf.zeros_like(parameter)
            if gradient is None
            else tf.ensure_shape(gradient, parameter.shape)
            for parameter, gradient in zip(
                self._meta_learned(now.parameters), self._meta_learned(gradients)
            )
        ]

    def _evaluate(self, iterator, parameters, state) -> HeldOut:
        """Evaluates with the state that training left behind, nothing updated."""
        parameters = self._of_any_width(parameters)

        def add_batch(element, loss_sum, loss_weight, error_sum, weight, examples):
            batch = unpack_batch(element.get_value())
            result = self._model.evaluate(
                parameters, state, batch, training=self._transductive, penalties=False
            )
            return (
                iterator.get_next_as_optional(),
                loss_sum + tf.cast(result.loss, tf.float32) * result.loss_weight,
                loss_weight + result.loss_weight,
                error_sum + tf.reduce_sum(result.errors * result.weights),
                weight + tf.reduce_sum(result.weights),
                examples + tf.math.count_nonzero(result.weights, dtype=tf.int32),
            )

        zero = tf.constant(0.0)
        _, loss_sum, loss_weight, error_sum, weight, examples = tf.while_loop(
            lambda element, *_: element.has_value(),
            add_batch,
            (iterator.get_next_as_optional(), zero, zero, zero, zero, tf.constant(0)),
            parallel_iterations=1,
        )
        return HeldOut(
            loss=tf.math.divide_no_nan(loss_sum, loss_weight),
            error=tf.math.divide_no_nan(error_sum, weight),
            examples=examples,
        )

    def _of_any_width(self, parameters):
        """Forgets the last dimension of those that are resizable, so one trace serves all tasks."""
        return [
            tf.compat.v1.placeholder_with_default(value, [*value.shape[:-1], None])
            if index in self._resizable
            else value
            for index, value in enumerate(parameters)
        ]

    def _meta_learned(self, tensors):
        return [tensors[index] for index in self._meta_indices]


def _batch_of_step(batches, step) -> tf.experimental.Optional:
    """The batch of a step; an iterator has its own count of them, and may be at its end."""
    if isinstance(batches, SupportBatches):
        return tf.experimental.Optional.from_value(batches.at(step))
    return batches.get_next_as_optional()


def _all_finite(tensors):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
