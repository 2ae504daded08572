"""Training on one task, as a traced function of tensors.

    (batches, steps, θ⁰, state, …) → (θᴷ, state, loss and error of every step, meta-gradient)

One trace serves all tasks and all threads, because nothing in it is shared: parameters,
optimizer slots and the learner's state travel through a `tf.while_loop`.

The forward and backward passes are a tf.function that is never inlined. TensorFlow's oneDNN
rewrite matches the gradient of an operation with the operation by walking the graph in order. In
the cyclic graph of an inlined loop that order is arbitrary, and the gradient of max-pooling is many
times slower in some processes than in others. A function body has no cycles.

A second-order learner needs derivatives through the steps. The steps are then unrolled under an
outer tape, so memory and the size of the graph grow with their number.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional import (
    Batch,
    FunctionalModel,
    FunctionalOptimizer,
    all_finite,
    check_no_stopped_gradients_in,
    unpack_batch,
)
from leap_tf.geometry import PathPoint
from leap_tf.learners import Learner, TaskEnd, TaskUpdate
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import HeldOutResult, evaluate_held_out


class InnerLoopResult(NamedTuple):
    """The result of training on a task for K steps."""

    parameters: list[tf.Tensor]  # θᴷ
    state: list[tf.Tensor]  # the model's non-trainable variables after the last step
    losses: tf.Tensor  # [K] float32; loss i is that of batch i before gradient step i
    errors: tf.Tensor  # [K] float32, the mean errors of the same batches before the same steps
    update: TaskUpdate  # the learner's meta-gradient and metrics
    # True if the losses and all numbers above but the errors are finite. Losses can be finite while
    # weights in front of a ReLU are NaN.
    finite: tf.Tensor


class _LoopState(NamedTuple):
    """Loop variables of the inner loop."""

    step: tf.Tensor
    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    slots: list[tf.Tensor]
    learner_state: Any
    stop_state: Sequence[tf.Tensor]
    losses: tf.TensorArray
    errors: tf.TensorArray


def inner_step(
    learner: Learner,
    optimizer: FunctionalOptimizer,
    meta_indices: Sequence[int],
    loss: tf.Tensor,
    gradients: Sequence[tf.Tensor | None],
    parameters: Sequence[tf.Tensor],
    slots: Sequence[tf.Tensor],
    learner_state: Any,
    learner_values: Sequence[tf.Tensor],
    step: tf.Tensor,
    trains_parts: bool = False,
) -> tuple[list[tf.Tensor], list[tf.Tensor], Any]:
    """Makes one gradient step on a task and lets the learner observe it.

    The learner sees the parameters at `meta_indices` only. A gradient is None if the loss does not
    depend on the parameter. With `trains_parts` this is expected, and Keras does not warn of it.
    `step` counts from 0. Returns parameters, slots and the learner's state after the step.
    """
    position = [parameters[index] for index in meta_indices]
    # The learner observes zero for a missing gradient. The optimizer skips that parameter.
    observed = observed_gradients(gradients, parameters, meta_indices)
    learner_state = learner.observe(learner_state, PathPoint(position, loss, observed))
    directions = learner.direction(observed, learner_values, step)
    skips = trains_parts or any(direction is None for direction in directions)
    applied = list(gradients)
    for index, direction in zip(meta_indices, directions, strict=True):
        if applied[index] is not None:
            applied[index] = direction
    # Update the learner's state first: its old value can be freed before the optimizer allocates.
    with tf.control_dependencies(tf.nest.flatten(learner_state)), warnings.catch_warnings():
        if skips:
            warnings.filterwarnings("ignore", "Gradients do not exist")
        parameters, slots = optimizer.apply(applied, parameters, slots)
    return parameters, slots, learner_state


def observed_gradients(
    gradients: Sequence[tf.Tensor | None],
    parameters: Sequence[tf.Tensor],
    meta_indices: Sequence[int],
) -> list[tf.Tensor]:
    """Returns the gradients of the meta-learned parameters, zero for missing ones."""
    return [
        tf.zeros_like(parameters[index])
        if gradients[index] is None
        else tf.ensure_shape(gradients[index], parameters[index].shape)
        for index in meta_indices
    ]


class InnerLoop:
    """Trains a model on tasks while a learner observes.

    Args:
        model, optimizer, learner: the model with its loss, the inner optimizer, the meta-learner.
        meta_indices: which of the model's parameters are meta-learned.
        stopping: the rule that ends a task early, or None.
        transductive: whether `evaluate` can be transductive: batch norm then uses the statistics of
            the held-out batch instead of the running statistics of the task. Random layers are
            inactive in both cases.
        resizable: indices of the parameters whose last dimension differs between tasks.
        trains_parts: whether tasks are expected to leave variables without a gradient.
        metrics: Keras metrics of held-out examples. Their variables are not changed.

    Attributes:
        train: the traced `_train`, which returns an `InnerLoopResult`.
        evaluate: the traced `_evaluate`, which returns a `HeldOutResult`.

    Raises:
        ValueError: a second-order learner has no query batches.
        UnsupportedModelError: evaluation is transductive, and the model's random layers cannot be
            switched off separately.
    """

    def __init__(
        self,
        model: FunctionalModel,
        optimizer: FunctionalOptimizer,
        learner: Learner,
        meta_indices: Sequence[int],
        *,
        stopping: StopRule | None = None,
        transductive: bool = False,
        resizable: Sequence[int] = (),
        trains_parts: bool = False,
        metrics: Sequence[keras.metrics.Metric] = (),
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
        self._transductive_model = model.without_randomness() if transductive else model
        self._resizable = frozenset(resizable)
        self._trains_parts = trains_parts
        self._metrics = list(metrics)
        options = {"reduce_retracing": True, "experimental_attributes": {"_noinline": True}}
        self._gradient = tf.function(self._gradient_of_batch, **options)
        self._error = tf.function(self._error_of_batch, **options)
        # TensorFlow warns of frequent retracing, and counts traces of a method over all instances
        # of the class. Each partial has its own count.
        self.train = tf.function(functools.partial(self._train), reduce_retracing=True)
        self.evaluate = tf.function(functools.partial(self._evaluate), reduce_retracing=True)

    def _train(
        self,
        batches,
        max_steps,
        parameters,
        state,
        learner_values=(),
        stop_batches=None,
        queries=None,
        learning_rate=None,
        second_order=False,
        multi_step=None,
    ) -> InnerLoopResult:
        """Trains for `max_steps` batches, or until the iterator ends or the stop rule says so.

        Args:
            batches: an iterator over training batches; or `OrderedBatches`: those of the steps, and
                the query batches that follow them or at least one more.
            max_steps: an int32 tensor. A second-order learner takes a Python number of steps.
            parameters, state, learner_values: values of the model's and the learner's variables.
            stop_batches: an endless iterator over the batches that the stop rule evaluates.
            queries: an iterator over query batches; by default, the batches after the last step.
            learning_rate: the rate of the first step; the optimizer's own by default.
            second_order: whether the query gradient is taken through the steps, a Python bool.
            multi_step: the factor 1 − m/M of `MAML`. None: only the last query loss counts.

        Raises:
            OutOfRangeError: there are too few batches for the query batches or a second-order
                learner.
            WrongSecondDerivativesError: second-order training, but the model stops gradients.
        """
        parameters = self._of_any_width(parameters)
        initialization = self._meta_learned(parameters)
        start = _LoopState(
            step=tf.constant(0),
            parameters=parameters,
            state=state,
            slots=self._optimizer.initial_slots(parameters, learning_rate),
            learner_state=self._learner.begin_task(initialization),
            stop_state=self._stopping.start() if self._stopping else [],
            losses=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
            errors=tf.TensorArray(tf.float32, size=max_steps, element_shape=()),
        )
        values = list(learner_values)
        if second_order:
            end, query_gradient = self._recorded_steps(
                batches, queries, max_steps, start, values, multi_step
            )
        else:
            end, query_gradient = self._steps(
                batches, stop_batches, queries, max_steps, start, values
            )
        task_end = TaskEnd(initialization, self._meta_learned(end.parameters), query_gradient)
        update = self._learner.end_task(end.learner_state, task_end)
        losses, errors = end.losses.stack()[: end.step], end.errors.stack()[: end.step]
        found = [*end.parameters, *end.state, *update.meta_gradient, *update.metrics.values()]
        finite = all_finite([losses, *found])
        return InnerLoopResult(end.parameters, end.state, losses, errors, update, finite)

    def _steps(self, batches, stop_batches, queries, max_steps, start, learner_values):
        """Runs the steps as a loop. Returns the final state and ∇f(θᴷ) on the query batches."""
        # The loop carries the next batch as an optional, since an iterator reports its end only
        # when another element is requested.
        next_batch, end = tf.while_loop(
            lambda batch, now: (now.step < max_steps) & self._continues(now) & batch.has_value(),
            lambda batch, now: (
                _batch_of_step(batches, now.step + 1),
                self._step(unpack_batch(batch.get_value()), stop_batches, now, learner_values),
            ),
            (_batch_of_step(batches, start.step), start),
            parallel_iterations=1,
        )
        if not self._learner.query_batches:
            return end, []
        count = self._learner.query_batches
        if queries is None and not hasattr(batches, "at"):
            # The loop has fetched the first. If the data set is exhausted, get_next raises an
            # OutOfRangeError.
            first = tf.cond(next_batch.has_value(), next_batch.get_value, batches.get_next)
            query_batches = [unpack_batch(first), *_next_batches(batches, 0, count - 1)]
        else:
            source, step = (batches, end.step) if queries is None else (queries, 0)
            query_batches = _next_batches(source, step, count)
        gradients = [
            observed_gradients(
                self._gradient(end.parameters, end.state, batch)[-1],
                end.parameters,
                self._meta_indices,
            )
            for batch in query_batches
        ]
        mean = [tf.add_n(parts) / len(query_batches) for parts in zip(*gradients)]
        if self._learner.second_order:
            # A first-order meta-step of a second-order learner leaves its own variables unchanged.
            mean += [tf.zeros_like(value) for value in learner_values]
        return end, mean

    def _recorded_steps(self, batches, queries, steps, start, learner_values, multi_step):
        """Unrolls the steps. Returns the final state and the query gradient through the steps."""
        sources = [*self._meta_learned(start.parameters), *learner_values]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            path, now = [], start
            for batch in _next_batches(batches, 0, steps):
                now = self._step(batch, None, now, learner_values)
                path.append(now)
            source, step = (batches, steps) if queries is None else (queries, 0)
            query_batches = _next_batches(source, step, self._learner.query_batches)

            def loss_after(each):
                losses = [
                    self._model.evaluate(each.parameters, each.state, batch, training=True).loss
                    for batch in query_batches
                ]
                return tf.add_n(losses) / len(query_batches)

            objective = loss_after(now)
            if multi_step is not None and steps > 1:
                share = tf.cast(multi_step, objective.dtype) / steps
                earlier = tf.add_n([loss_after(each) for each in path[:-1]])
                objective = share * earlier + (1.0 - share * (steps - 1)) * objective
        gradients = tape.gradient(
            objective, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return now, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _step(self, batch: Batch, stop_batches, now: _LoopState, learner_values) -> _LoopState:
        loss, error, state, gradients = self._gradient(now.parameters, now.state, batch)
        parameters, slots, learner_state = inner_step(
            self._learner,
            self._optimizer,
            self._meta_indices,
            loss=loss,
            gradients=gradients,
            parameters=now.parameters,
            slots=now.slots,
            learner_state=now.learner_state,
            learner_values=learner_values,
            step=now.step,
            trains_parts=self._trains_parts,
        )
        # If the static shape of a batch is unknown, the new tensors lose theirs, which
        # tf.while_loop needs.
        for new, old in ((parameters, now.parameters), (state, now.state), (slots, now.slots)):
            for tensor, reference in zip(new, old):
                tensor.set_shape(reference.shape)
        return _LoopState(
            step=now.step + 1,
            parameters=parameters,
            state=state,
            slots=slots,
            learner_state=learner_state,
            stop_state=self._observe_error(now, stop_batches, parameters, state),
            losses=now.losses.write(now.step, tf.cast(loss, tf.float32)),
            errors=now.errors.write(now.step, error),
        )

    def _gradient_of_batch(self, parameters, state, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            result = self._model.evaluate(parameters, state, batch, training=True)
        if self._learner.second_order:
            check_no_stopped_gradients_in(tf.compat.v1.get_default_graph())
        gradients = [
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(result.loss, parameters)
        ]
        return result.loss, result.error, result.state, gradients

    def _observe_error(self, now, stop_batches, parameters, state):
        """Returns the stop rule's state after a step."""
        if not self._stopping:
            return now.stop_state

        def observe():
            error = self._error(parameters, state, unpack_batch(stop_batches.get_next()))
            return self._stopping.observe(now.stop_state, error)

        if self._stopping.every == 1:
            return observe()
        is_due = (now.step + 1) % self._stopping.every == 0
        return tf.cond(is_due, observe, lambda: now.stop_state)

    def _continues(self, now):
        return not self._stopping or tf.logical_not(self._stopping.is_over(now.stop_state))

    def _error_of_batch(self, parameters, state, batch):
        return self._model.evaluate(parameters, state, batch, training=False).error

    def _evaluate(self, iterator, parameters, state, transductive=False) -> HeldOutResult:
        """Evaluates held-out batches, see `evaluate_held_out`."""
        return evaluate_held_out(
            self._transductive_model if transductive else self._model,
            iterator,
            self._of_any_width(parameters),
            state,
            training=transductive,
            metrics=self._metrics,
        )

    def _of_any_width(self, parameters):
        """Hides the last dimension of resizable parameters, so that one trace serves all tasks."""
        return [
            tf.compat.v1.placeholder_with_default(value, [*value.shape[:-1], None])
            if index in self._resizable and value.shape[-1] != 1  # losses fit targets [n] to it
            else value
            for index, value in enumerate(parameters)
        ]

    def _meta_learned(self, tensors):
        return [tensors[index] for index in self._meta_indices]


def _batch_of_step(batches, step) -> tf.experimental.Optional:
    """Returns the batch of a step as an optional, empty at the end of an iterator.

    An iterator keeps its own position, so `step` is ignored.
    """
    if hasattr(batches, "at"):
        return tf.experimental.Optional.from_value(batches.at(step))
    return batches.get_next_as_optional()


def _next_batches(batches, first, count) -> list[Batch]:
    """Returns `count` batches, those from step `first` on; an iterator keeps its own position."""
    if hasattr(batches, "at"):
        return [unpack_batch(batches.at(first + index)) for index in range(count)]
    return [unpack_batch(batches.get_next()) for _ in range(count)]
