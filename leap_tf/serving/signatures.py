"""The signatures of an exported SavedModel.

    serving_default  inputs → outputs at the learned initialization
    adapt            a support set and query inputs → outputs of a model trained on the support set
    adapt_weights    a support set → the weights of that model

`adapt` is the adaptation of `MetaTrainer.evaluate`: it uses the same `InnerLoop`, the learner's
direction, and the optimizer and batch-norm policy of the run. The same seed gives the same batches.
It trains copies of the weights, so the served variables never change and calls are independent.
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

Prepare = Callable[[tf.Tensor], tf.Tensor]
Outputs = dict[str, tf.Tensor]

_CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


class Settings(NamedTuple):
    """The scalar inputs of `adapt` and `adapt_weights`, in order.

    Attributes:
        steps: gradient steps, int32; with 0, the initialization itself predicts.
        batch_size: examples in a training batch, int32. Epochs are shuffled, and batches continue
            across epochs.
        learning_rate: learning rate of the first step, float32. A schedule is scaled to start
            there.
        seed: int64, decides the batches, the values of task layers, and dropout.
        num_classes: number of classes of the task, int32. Only if targets are labels.
    """

    steps: tf.Tensor
    batch_size: tf.Tensor
    learning_rate: tf.Tensor
    seed: tf.Tensor
    num_classes: tf.Tensor | None = None


class _Adapted(NamedTuple):
    """The result of training on a support set.

    Attributes:
        parameters, state: those of the adapted model.
        losses: loss of each batch before the step on it.
        support_error: mean error of the adapted model on the support set.
        queries: outputs for the queries, () if there are none.
    """

    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor
    support_error: tf.Tensor
    queries: tf.Tensor | tuple[()]


class Signatures:
    """The three functions of an export, for inputs of one dtype.

    Args:
        problem: holds the initialization and the settings of adaptation.
        inputs: shape and dtype of the inputs of a request, with any number of examples.
        prepare: from a batch of these to inputs of the model.
        query_batch_size: number of examples that are predicted together, which bounds memory. In
            transductive mode these share their batch statistics.
        limits: the largest numbers that a request may contain.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        inputs: tf.TensorSpec,
        *,
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
        self._format = OutputFormat(
            problem.loss, tf.TensorShape(problem.model.output_shape), problem.error_fn
        )
        task_layers = problem.evaluation_task_layers
        head = resizable_head(problem) if self._format.has_labels else None
        self._adapter = Adapter(problem, model, task_layers, head if head in task_layers else None)
        # A meta-learned head serves tasks with its own number of classes. All others get a
        # reinitialized head, in a separate graph: fixed and variable widths differ in last bits.
        self._with_other_head = (
            Adapter(problem, model, [*task_layers, head], head)
            if head and head not in task_layers
            else None
        )
        self._any_classes = head is not None

    def specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the inputs of a function, in order."""
        if name == "serving_default":
            return [self._examples("inputs")]
        examples = [self._examples("support_x"), self._format.targets_spec("support_y")]
        if name == "adapt":
            examples.append(self._examples("query_x"))
        settings = {
            "steps": tf.int32,
            "batch_size": tf.int32,
            "learning_rate": tf.float32,
            "seed": tf.int64,
        }
        if self._format.has_labels:
            settings["num_classes"] = tf.int32
        return [*examples, *(tf.TensorSpec((), dtype, each) for each, dtype in settings.items())]

    def serving_default(self, inputs: tf.Tensor) -> Outputs:
        """Returns the outputs of the model at the learned initialization."""
        inputs = checked_examples(inputs, self._examples("inputs"))
        model = self._model
        outputs = self._predict(model.parameters(), model.state(0), inputs, training=False)
        return self._format.named(outputs)

    def adapt(
        self, support_x: tf.Tensor, support_y: tf.Tensor, query_x: tf.Tensor, *settings: tf.Tensor
    ) -> Outputs:
        """Trains on the support set and predicts the queries.

        Args:
            support_x, support_y: examples to train on, one target for each input.
            query_x: examples to predict.
            *settings: see `Settings`.

        Returns:
            Outputs for the queries, "losses" [steps] of each batch before the step on it, and
            "support_accuracy" (or "support_error") of the adapted model.
        """
        query_x = checked_examples(query_x, self._examples("query_x"))
        adapted = self._adapt(support_x, support_y, query_x, Settings(*settings))
        with requiring_convergence(adapted.losses, [adapted.queries]):
            return self._format.named(tf.identity(adapted.queries)) | self._figures(adapted)

    def adapt_weights(
        self, support_x: tf.Tensor, support_y: tf.Tensor, *settings: tf.Tensor
    ) -> Outputs:
        """Trains on the support set and returns the adapted weights, by the variables' paths.

        Args: see `adapt`.

        Returns:
            The weights, "losses", and "support_accuracy" (or "support_error").
        """
        adapted = self._adapt(support_x, support_y, None, Settings(*settings))
        model = self._model
        variables = [*model.variables, *model.model.non_trainable_variables]
        values = dict(zip(map(id, variables), [*adapted.parameters, *adapted.state]))
        weights = {each.path: values[id(each)] for each in model.model.weights}
        with requiring_convergence(adapted.losses, list(weights.values())):
            named = {path: tf.identity(value) for path, value in weights.items()}
            return named | self._figures(adapted)

    def _adapt(self, support_x, support_y, query_x, settings) -> _Adapted:
        """Checks a request, trains on its support set, and predicts its queries, if any."""
        steps = checked_number(settings.steps, "steps", 0, self._limits.steps)
        batch_size = checked_number(settings.batch_size, "batch_size", 1, self._limits.batch_size)
        learning_rate = checked_rate(settings.learning_rate, "learning_rate")
        seed = tf.ensure_shape(settings.seed, (), name="seed")
        num_classes, learned_classes = settings.num_classes, self._format.classes
        if learned_classes is not None:
            bounds = (learned_classes, learned_classes)
            if self._any_classes:
                bounds = (1, self._limits.classes)
            num_classes = checked_number(num_classes, "num_classes", *bounds)
        inputs = checked_examples(support_x, self._examples("support_x"))
        targets = checked_targets(
            support_y, self._format.targets_spec("support_y"), inputs, num_classes
        )
        batches = support_batches(inputs, targets, steps, batch_size, seed=seed)

        def adapt_with(adapter):
            end = adapter.train(
                batches, steps, learning_rate=learning_rate, seed=seed, num_classes=num_classes
            )
            predict = functools.partial(
                self._predict, end.parameters, end.state, training=self._transductive
            )
            outputs = predict(inputs)
            error = tf.reduce_mean(tf.cast(self._model.error(targets, outputs), tf.float32))
            return _Adapted(
                parameters=end.parameters,
                state=end.state,
                losses=end.losses,
                support_error=error,
                queries=() if query_x is None else predict(query_x),
            )

        if self._with_other_head is None:
            return adapt_with(self._adapter)
        return tf.cond(
            tf.equal(num_classes, learned_classes),
            lambda: adapt_with(self._adapter),
            lambda: adapt_with(self._with_other_head),
        )

    def _figures(self, adapted):
        error = tf.identity(adapted.support_error)
        return {"losses": tf.identity(adapted.losses)} | self._format.named_error(error)

    def _examples(self, name):
        return tf.TensorSpec(self._inputs.shape, self._inputs.dtype, name)

    def _predict(self, parameters, state, inputs, training):
        """Returns the outputs for any number of inputs, in batches of `query_batch_size`."""
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
        width = None if self._any_classes else self._format.shape[-1]
        return tf.ensure_shape(collected.concat(), [*self._format.shape[:-1], width])


class OutputFormat(NamedTuple):
    """The names and meanings of a model's targets and outputs, which depend on its loss.

    Attributes:
        loss: the loss of the problem.
        shape: shape of the model's outputs, with any number of examples.
        error_fn: the error function of the problem, None for that of the loss.
    """

    loss: keras.losses.Loss
    shape: tf.TensorShape
    error_fn: ErrorFunction | None

    @property
    def has_labels(self) -> bool:
        """Whether targets are class numbers."""
        return isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy)

    @property
    def classes(self) -> int | None:
        """The model's number of classes, None if targets are not class numbers."""
        return self.shape[-1] if self.has_labels else None

    def targets_spec(self, name: str) -> tf.TensorSpec:
        """Returns the shape and dtype of the targets of a request."""
        if self.has_labels:
            return tf.TensorSpec(self.shape[:-1], tf.int32, name)
        return tf.TensorSpec(self.shape, tf.float32, name)

    def named(self, outputs: tf.Tensor) -> Outputs:
        """Returns "logits" and "probabilities" of a classifier, else "outputs"."""
        if not isinstance(self.loss, _CROSS_ENTROPIES):
            return {"outputs": outputs}
        binary = isinstance(self.loss, keras.losses.BinaryCrossentropy)
        if self.loss.get_config()["from_logits"]:
            to_probabilities = tf.math.sigmoid if binary else tf.nn.softmax
            return {"logits": outputs, "probabilities": to_probabilities(outputs)}
        to_logits = (lambda p: tf.math.log(p) - tf.math.log1p(-p)) if binary else tf.math.log
        return {"logits": to_logits(outputs), "probabilities": outputs}

    def named_error(self, error: tf.Tensor) -> Outputs:
        """Returns "support_accuracy" if the error is a share of wrong labels, else the error."""
        if isinstance(self.loss, _CROSS_ENTROPIES) and self.error_fn is None:
            return {"support_accuracy": 1.0 - error}
        return {"support_error": error}


class _PreparedModel(FunctionalModel):
    """A model that takes the inputs of requests, such as pixels in uint8."""

    def __init__(self, model, loss, error, prepare):
        super().__init__(model, loss, error)
        self._prepare = prepare

    def _call(self, parameters, state, inputs, training):
        return super()._call(parameters, state, self._prepare(inputs), training)
