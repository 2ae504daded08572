"""The signatures of an exported SavedModel.

    serving_default  inputs → outputs at the learned initialization
    adapt            a support set and query inputs → outputs of a model trained on the support set
    adapt_weights    a support set → the weights of that model

`adapt` is the adaptation of `MetaTrainer.evaluate`: it uses the same `InnerLoop`, the learner's
direction, and the optimizer and batch-norm policy of the run. The same seed gives the same batches.
It trains copies of the weights, so the served variables never change and calls are independent.

Some runtimes do not check shapes against the signature, so each input is checked in the graph
before it is used. All errors are `InvalidArgumentError`s whose text begins with the name of the
input.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional import ErrorFunction, FunctionalModel, all_finite
from leap_tf.serving.adapter import Adapter, resizable_head, support_batches
from leap_tf.training import SupervisedProblem

Prepare = Callable[[tf.Tensor], tf.Tensor]
Outputs = dict[str, tf.Tensor]

_CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


class Limits(NamedTuple):
    """The largest numbers that a request may contain, which bound a server's time and memory.

    Attributes:
        steps: gradient steps.
        batch_size: examples in a training batch.
        classes: units of a reinitialized head.
    """

    steps: int = 10_000
    batch_size: int = 1_024
    classes: int = 10_000


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
    """The result of training on a support set."""

    parameters: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor  # of each batch before the step on it
    support_error: tf.Tensor  # mean error of the adapted model on the support set
    queries: tf.Tensor | tuple[()]  # outputs for the queries, () if there are none
    finite: tf.Tensor  # whether all numbers of training and prediction are


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
        prepare: Prepare,
        query_batch_size: int,
        limits: Limits,
    ):
        self._model = _PreparedModel(prepare, problem.model, problem.loss, problem.error_fn)
        self._inputs = inputs
        self._query_batch_size = query_batch_size
        self._limits = limits
        self._transductive = problem.evaluation.transductive
        self._predictor = self._model.without_randomness() if self._transductive else self._model
        self._format = OutputFormat(
            problem.loss, tf.TensorShape(problem.model.output_shape), problem.error_fn
        )
        task_layers = problem.evaluation_task_layers
        head = resizable_head(problem) if self._format.has_labels else None
        adapter = functools.partial(Adapter, problem, self._model)
        self._adapter = adapter(task_layers, head if head in task_layers else None)
        # A meta-learned head serves tasks with its own number of classes. All others get a
        # reinitialized head, in a separate graph: fixed and variable widths differ in last bits.
        self._with_other_head = None
        if head and head not in task_layers:
            self._with_other_head = adapter([*task_layers, head], head)
        self._any_classes = head is not None

    def specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the inputs of a function, in order."""
        if name == "serving_default":
            return [self._examples("inputs")]
        examples = [self._examples("support_x"), self._format.targets_spec("support_y")]
        if name == "adapt":
            examples.append(self._examples("query_x"))
        dtypes = (tf.int32, tf.int32, tf.float32, tf.int64, tf.int32)
        settings = [tf.TensorSpec((), *each) for each in zip(dtypes, Settings._fields)]
        return [*examples, *(settings if self._format.has_labels else settings[:-1])]

    def serving_default(self, inputs: tf.Tensor) -> Outputs:
        """Returns the outputs of the model at the learned initialization."""
        inputs = checked_examples(inputs, self._examples("inputs"))
        model = self._model
        outputs = self._predict(model.parameters(), model.state(0), inputs, training=False)
        return self._format.named(outputs)

    def adapt(
        self, support_x: tf.Tensor, support_y: tf.Tensor, query_x: tf.Tensor, *settings: tf.Tensor
    ) -> Outputs:
        """Trains on the support set with `Settings`, and predicts the queries.

        Returns:
            Outputs for the queries, "losses" [steps] of each batch before the step on it, and
            "support_accuracy" (or "support_error") of the adapted model.
        """
        query_x = checked_examples(query_x, self._examples("query_x"))
        adapted = self._adapt(support_x, support_y, query_x, Settings(*settings))
        with requiring_convergence(adapted):
            return self._format.named(tf.identity(adapted.queries)) | self._figures(adapted)

    def adapt_weights(
        self, support_x: tf.Tensor, support_y: tf.Tensor, *settings: tf.Tensor
    ) -> Outputs:
        """Trains on the support set and returns the adapted weights, by the variables' paths.

        Arguments are those of `adapt`, whose other outputs are returned too.
        """
        adapted = self._adapt(support_x, support_y, None, Settings(*settings))
        model = self._model
        variables = [*model.variables, *model.model.non_trainable_variables]
        values = dict(zip(map(id, variables), [*adapted.parameters, *adapted.state]))
        weights = {each.path: values[id(each)] for each in model.model.weights}
        with requiring_convergence(adapted):
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
            any_number, learned = (1, self._limits.classes), (learned_classes, learned_classes)
            bounds = any_number if self._any_classes else learned
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
            queries = () if query_x is None else predict(query_x)
            finite = end.finite & all_finite([outputs, *tf.nest.flatten(queries)])
            return _Adapted(end.parameters, end.state, end.losses, error, queries, finite)

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
            batch = inputs[start : start + size]
            predicted = self._predictor.predict(parameters, state, batch, training=training)
            return start + size, outputs.write(start // size, predicted)

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
    """The names and meanings of a model's targets and outputs, which depend on its loss."""

    loss: keras.losses.Loss
    shape: tf.TensorShape  # of the model's outputs, with any number of examples
    error_fn: ErrorFunction | None  # None for that of the loss

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

    def __init__(self, prepare, model, loss, error):
        super().__init__(model, loss, error)
        self._prepare = prepare

    def _call(self, parameters, state, inputs, training):
        return super()._call(parameters, state, self._prepare(inputs), training)


def checked_examples(examples: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns examples after checking that they have the shape, are not empty and all finite."""
    examples = tf.ensure_shape(examples, spec.shape, name=spec.name)
    count = tf.shape(examples)[0]
    conditions = [_require(count > 0, f"{spec.name}: there must be at least one example")]
    if spec.dtype.is_floating:
        finite = tf.reduce_all(tf.math.is_finite(examples))
        conditions.append(_require(finite, f"{spec.name}: all numbers must be finite"))
    with tf.control_dependencies(conditions):
        return tf.identity(examples)


def checked_targets(
    targets: tf.Tensor, spec: tf.TensorSpec, inputs: tf.Tensor, classes: tf.Tensor | None
) -> tf.Tensor:
    """Returns targets after checking that there is one for each input, labels in [0, classes)."""
    targets = checked_examples(targets, spec)
    counts = tf.shape(targets)[0], tf.shape(inputs)[0]
    message = f"{spec.name}: there must be one for each example, not"
    conditions = [_require(tf.equal(*counts), message, *counts)]
    if classes is not None:
        lowest, highest = tf.reduce_min(targets), tf.reduce_max(targets)
        message = f"{spec.name}: labels must lie in [0, number of classes), and the lowest, "
        message += "the highest and the number are"
        allowed = (lowest >= 0) & (highest < classes)
        conditions.append(_require(allowed, message, lowest, highest, classes))
    with tf.control_dependencies(conditions):
        return tf.identity(targets)


def checked_number(number: tf.Tensor, name: str, least: int, most: int) -> tf.Tensor:
    """Returns an integer scalar after checking that it is in [least, most]."""
    number = tf.ensure_shape(number, (), name=name)
    allowed = (number >= least) & (number <= most)
    message = f"{name}: must be at least {least} and at most {most}, and is"
    with tf.control_dependencies([_require(allowed, message, number)]):
        return tf.identity(number)


def checked_rate(rate: tf.Tensor, name: str) -> tf.Tensor:
    """Returns a scalar after checking that it is positive and finite."""
    rate = tf.ensure_shape(rate, (), name=name)
    allowed = (rate > 0) & tf.math.is_finite(rate)
    with tf.control_dependencies([_require(allowed, f"{name}: must be positive, and is", rate)]):
        return tf.identity(rate)


@contextlib.contextmanager
def requiring_convergence(adapted: _Adapted) -> Iterator[None]:
    """Makes everything computed in the block fail if training has diverged."""
    message = "learning_rate: training diverged; use a smaller one, or fewer steps. "
    message += "The losses began as"
    with tf.control_dependencies([_require(adapted.finite, message, adapted.losses)]):
        yield


def _require(condition, message, *numbers):
    return tf.debugging.Assert(condition, [message, *numbers], summarize=10)
