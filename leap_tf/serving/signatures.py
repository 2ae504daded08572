"""What a model's outputs and targets are called and mean, which the loss decides.

What a served model answers, as functions of tensors that a SavedModel can hold.

    serving_default  inputs → outputs at the learned initialization
    adapt            a support set and query inputs → outputs of a model trained on the support set
    adapt_weights    a support set → the weights of that model

`adapt` is the library's own adaptation to a held-out task: the same `InnerLoop`, the learner's
direction, the run's optimizer and batch-norm policy, and with the same seed the same batches. It
works on copies of the weights, so the served variables never change and calls are independent.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional import FunctionalModel
from leap_tf.functional.model import ErrorFunction
from leap_tf.serving.adapter import Adapter, resizable_head, support_batches
from leap_tf.serving.request_checks import (
    Limits,
    checked_examples,
    checked_number,
    checked_rate,
    checked_targets,
    requiring_convergence,
)
from leap_tf.training import SupervisedProblem

_CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


class Answers(NamedTuple):
    """How a model answers.

    Attributes:
        loss: the loss it was trained with.
        shape: of its outputs, the number of examples unknown.
        own_error: whether its error is another than the loss's own.
    """

    loss: keras.losses.Loss
    shape: tf.TensorShape
    own_error: ErrorFunction | None

    @property
    def has_labels(self) -> bool:
        """Whether targets are class numbers."""
        return isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy)

    @property
    def classes(self) -> int | None:
        """How many classes the model itself tells apart, None if targets are no class numbers."""
        return self.shape[-1] if self.has_labels else None

    def targets_spec(self, name: str) -> tf.TensorSpec:
        """Shape and dtype of targets as clients send them."""
        if self.has_labels:
            return tf.TensorSpec(self.shape[:-1], tf.int32, name)
        return tf.TensorSpec(self.shape, tf.float32, name)

    def named(self, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Outputs as clients get them: logits and probabilities of classes, else as they are."""
        if not isinstance(self.loss, _CROSS_ENTROPIES):
            return {"outputs": outputs}
        binary = isinstance(self.loss, keras.losses.BinaryCrossentropy)
        if self.loss.get_config()["from_logits"]:
            to_probabilities = tf.math.sigmoid if binary else tf.nn.softmax
            return {"logits": outputs, "probabilities": to_probabilities(outputs)}
        to_logits = (lambda p: tf.math.log(p) - tf.math.log1p(-p)) if binary else tf.math.log
        return {"logits": to_logits(outputs), "probabilities": outputs}

    def named_error(self, error: tf.Tensor) -> dict[str, tf.Tensor]:
        """The mean error on the support set: as accuracy, if the error is the share of mistakes."""
        if isinstance(self.loss, _CROSS_ENTROPIES) and self.own_error is None:
            return {"support_accuracy": 1.0 - error}
        return {"support_error": error}


Prepare = Callable[[tf.Tensor], tf.Tensor]
Outputs = dict[str, tf.Tensor]


class _Adapted(NamedTuple):
    """What training on a support set came to.

    Attributes:
        parameters, state: of the adapted model.
        losses: of each batch before the step it caused.
        support_error: mean error of the adapted model on the support set.
        queries: its outputs for the queries, nothing if there are none.
    """

    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor
    support_error: tf.Tensor
    queries: tf.Tensor | tuple[()]


class Signatures:
    """The three functions of an export, for inputs of one dtype.

    Args:
        problem: holds the learned initialization, and how tasks are trained on.
        inputs: shape and dtype of inputs as clients send them, the number of examples unknown.
        prepare: from a batch of those to what the model takes.
        query_batch_size: examples that are judged at a time, which bounds memory. With
            transductive batch norm, those that share their statistics.
        limits: the largest numbers a request may have.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        inputs: tf.TensorSpec,
        prepare: Prepare,
        query_batch_size: int,
        limits: Limits,
    ):
        model = _PreparedModel(problem.model, problem.loss, problem.error_fn, prepare)
        self._model = model
        self._inputs = inputs
        self._query_batch_size = query_batch_size
        self._limits = limits
        self._transductive = problem.evaluation.transductive
        self._answers = Answers(
            problem.loss, tf.TensorShape(problem.model.output_shape), problem.error_fn
        )
        fresh = problem.evaluation_task_layers
        head = resizable_head(problem) if self._answers.has_labels else None
        self._adapter = Adapter(problem, model, fresh, head if head in fresh else None)
        # A learned head serves tasks with as many classes as it was learned with. All others get
        # a fresh one, in a graph of its own: arithmetic of known widths is not the same to the bit.
        self._with_other_head = (
            Adapter(problem, model, [*fresh, head], head) if head and head not in fresh else None
        )
        self._any_classes = head is not None

    def specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the inputs of a function, in order."""
        if name == "serving_default":
            return [self._examples("inputs")]
        support = [self._examples("support_x"), self._answers.targets_spec("support_y")]
        numbers = [
            tf.TensorSpec((), tf.int32, "steps"),
            tf.TensorSpec((), tf.int32, "batch_size"),
            tf.TensorSpec((), tf.float32, "learning_rate"),
            tf.TensorSpec((), tf.int64, "seed"),
        ]
        if self._answers.has_labels:
            numbers.append(tf.TensorSpec((), tf.int32, "num_classes"))
        queries = [self._examples("query_x")] if name == "adapt" else []
        return [*support, *queries, *numbers]

    def serving_default(self, inputs: tf.Tensor) -> Outputs:
        """Returns the outputs of the model at the learned initialization."""
        inputs = checked_examples(inputs, self._examples("inputs"))
        model = self._model
        outputs = self._predict(model.parameters(), model.state(0), inputs, training=False)
        return self._answers.named(outputs)

    def adapt(
        self,
        support_x: tf.Tensor,
        support_y: tf.Tensor,
        query_x: tf.Tensor,
        steps: tf.Tensor,
        batch_size: tf.Tensor,
        learning_rate: tf.Tensor,
        seed: tf.Tensor,
        num_classes: tf.Tensor | None = None,
    ) -> Outputs:
        """Trains on the support set and predicts the queries.

        Args:
            support_x, support_y: examples to train on, as many of one as of the other.
            query_x: examples to predict.
            steps: gradient steps; with 0, the initialization itself predicts.
            batch_size: examples in a training batch. All examples come once an epoch, in a new
                order, and batches run on across epochs.
            learning_rate: of the inner optimizer, at the first step if it has a schedule.
            seed: decides the batches, fresh heads and dropout.
            num_classes: of the task; only if targets are class numbers.

        Returns:
            Outputs for the queries, "losses" [steps] of each batch before the step it caused,
            and "support_accuracy" (or "support_error") of the adapted model.
        """
        query_x = checked_examples(query_x, self._examples("query_x"))
        adapted = self._adapt(
            support_x, support_y, query_x, steps, batch_size, learning_rate, seed, num_classes
        )
        with requiring_convergence(adapted.losses, [adapted.queries]):
            return self._answers.named(tf.identity(adapted.queries)) | self._figures(adapted)

    def adapt_weights(
        self,
        support_x: tf.Tensor,
        support_y: tf.Tensor,
        steps: tf.Tensor,
        batch_size: tf.Tensor,
        learning_rate: tf.Tensor,
        seed: tf.Tensor,
        num_classes: tf.Tensor | None = None,
    ) -> Outputs:
        """Trains on the support set and returns the adapted weights, by the variables' paths.

        Arguments as for `adapt`; "losses" and the figure on the support set are returned, too.
        """
        adapted = self._adapt(
            support_x, support_y, None, steps, batch_size, learning_rate, seed, num_classes
        )
        model = self._model
        variables = [*model.variables, *model.model.non_trainable_variables]
        values = dict(zip(map(id, variables), [*adapted.parameters, *adapted.state]))
        weights = {each.path: values[id(each)] for each in model.model.weights}
        with requiring_convergence(adapted.losses, list(weights.values())):
            named = {path: tf.identity(value) for path, value in weights.items()}
            return named | self._figures(adapted)

    def _adapt(
        self, support_x, support_y, query_x, steps, batch_size, learning_rate, seed, num_classes
    ) -> _Adapted:
        """Checks what every adaptation is given, and makes it."""
        steps = checked_number(steps, "steps", 0, self._limits.steps)
        batch_size = checked_number(batch_size, "batch_size", 1, self._limits.batch_size)
        learning_rate = checked_rate(learning_rate, "learning_rate")
        seed = tf.ensure_shape(seed, (), name="seed")
        own = self._answers.classes
        if own is not None:
            bounds = (1, self._limits.classes) if self._any_classes else (own, own)
            num_classes = checked_number(num_classes, "num_classes", *bounds)
        inputs = checked_examples(support_x, self._examples("support_x"))
        targets = checked_targets(
            support_y, self._answers.targets_spec("support_y"), inputs, num_classes
        )
        batches = support_batches(inputs, targets, steps, batch_size, seed)

        def adapted_by(adapter):
            end = adapter.train(batches, steps, learning_rate, seed, num_classes)
            predict = functools.partial(
                self._predict, end.parameters, end.state, training=self._transductive
            )
            outputs = predict(inputs)
            error = tf.reduce_mean(tf.cast(self._model.error(targets, outputs), tf.float32))
            queries = () if query_x is None else predict(query_x)
            return _Adapted(end.parameters, end.state, end.losses, error, queries)

        if self._with_other_head is None:
            return adapted_by(self._adapter)
        return tf.cond(
            tf.equal(num_classes, own),
            lambda: adapted_by(self._adapter),
            lambda: adapted_by(self._with_other_head),
        )

    def _figures(self, adapted):
        error = tf.identity(adapted.support_error)
        return {"losses": tf.identity(adapted.losses)} | self._answers.named_error(error)

    def _examples(self, name):
        return tf.TensorSpec(self._inputs.shape, self._inputs.dtype, name)

    def _predict(self, parameters, state, inputs, training):
        """The outputs for any number of inputs, some at a time."""
        count, size = tf.shape(inputs)[0], self._query_batch_size

        def add_batch(start, outputs):
            batch = self._model.predict(
                parameters, state, inputs[start : start + size], training=training
            )
            return start + size, outputs.write(start // size, batch)

        collected = tf.TensorArray(
            self._model.model.outputs[0].dtype, size=-(-count // size), infer_shape=False
        )
        _, collected = tf.while_loop(
            lambda start, _: start < count,
            add_batch,
            (tf.constant(0), collected),
            parallel_iterations=1,
        )
        width = None if self._any_classes else self._answers.shape[-1]
        return tf.ensure_shape(collected.concat(), [*self._answers.shape[:-1], width])


class _PreparedModel(FunctionalModel):
    """A model that takes inputs as clients send them, such as pixels in uint8."""

    def __init__(self, model, loss, error, prepare):
        super().__init__(model, loss, error)
        self._prepare = prepare

    def _call(self, parameters, state, inputs, training):
        return super()._call(parameters, state, self._prepare(inputs), training)
