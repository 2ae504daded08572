"""The signatures of an exported SavedModel.

    serving_default  inputs → outputs at the learned initialization
    adapt            a support set and query inputs → outputs of a model trained on the support set
    adapt_weights    a support set → the weights of that model

`adapt` is the adaptation of `MetaTrainer.evaluate`: it uses the same `InnerLoop`, the learner's
direction, and the optimizer and batch-norm policy of the run. The same seed gives the same batches.
A stop rule of the `EvaluationConfig` is ignored: all steps of the request are made. Copies of the
weights are trained, so the served variables never change and calls are independent.

If a model has several inputs or outputs, the name of a tensor ends in its dictionary key or its
position: `support_x_left`, `support_y_0`.

Some runtimes do not check shapes against the signature, so each input is checked in the graph
before it is used. All errors are `InvalidArgumentError`s whose text begins with the name of the
input.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from leap_tf.array_tasks import ordered_batches, spec_of
from leap_tf.functional import Batch, FunctionalModel, TotalLoss, all_finite
from leap_tf.serving.adapter import Adapter, resizable_head, weight_names
from leap_tf.training import SupervisedProblem

Prepare = Callable[[Any], Any]
Outputs = dict[str, tf.Tensor]

_CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


class Limits(NamedTuple):
    """Upper limits on the numbers in a request. They bound a server's time and memory.

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
        batch_size: examples in a training batch, int32. Batches are cut from consecutive shuffled
            epochs, so one batch may contain the end of an epoch and the start of the next.
        learning_rate: learning rate of the first step, float32. A schedule is scaled so that it
            starts at this rate.
        seed: seed of the batches, the values of task layers, and dropout, int64.
        num_classes: number of classes of the task, int32. Present only if targets are labels.
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
    losses: tf.Tensor  # [steps], the loss of each batch before the step on it
    support_error: tf.Tensor  # mean error of the adapted model on the support set
    queries: list[tf.Tensor]  # outputs for the queries, empty if there are none
    finite: tf.Tensor  # whether training and prediction produced only finite numbers


class Signatures:
    """The three functions of an export. Their arguments and results are flat tensors.

    The problem holds the initialization and the settings of adaptation. `inputs` is the shape and
    dtype of the inputs of a request, with any number of examples: a `tf.TensorSpec`, or a nest of
    them. `prepare` converts a batch of such inputs to inputs of the model. `query_batch_size`
    examples are predicted together, which bounds memory; in transductive mode these share their
    batch statistics.

    Raises:
        ValueError: the number of losses differs from the number of outputs, or two inputs or
            outputs have the same name in a signature.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        inputs: Any,
        prepare: Prepare,
        query_batch_size: int,
        limits: Limits,
    ):
        self._model = _PreparedModel(prepare, problem.model, problem.loss, problem.error_fn)
        self._inputs = inputs
        self._outputs = _outputs_of(self._model, inputs)
        self._query_batch_size = query_batch_size
        self._limits = limits
        self._transductive = problem.evaluation.transductive is True
        self._predictor = self._model.without_randomness() if self._transductive else self._model
        loss = problem.loss
        losses = tf.nest.flatten(loss.losses) if isinstance(loss, TotalLoss) else [loss]
        specs, names = tf.nest.flatten(self._outputs), names_of("", self._outputs)
        if len(losses) != len(specs):
            raise ValueError(
                f"{problem.model.name!r} has {len(specs)} outputs, and {len(losses)} losses were "
                "given. Pass the trainer one loss for each output."
            )
        self._formats = [OutputFormat(*each) for each in zip(names, losses, specs)]
        # Requests contain the number of classes only if the single output is a vector of scores.
        self._learned_classes = self._formats[0].classes if len(specs) == 1 else None
        is_cross_entropy = len(specs) == 1 and isinstance(losses[0], _CROSS_ENTROPIES)
        self._counts_errors = is_cross_entropy and problem.error_fn is None
        task_layers = problem.evaluation_task_layers
        head = resizable_head(problem) if self._learned_classes else None
        adapter = functools.partial(Adapter, problem, self._model)
        self._adapter = adapter(task_layers, head if head in task_layers else None)
        # A meta-learned head serves its own number of classes. Others get a reinitialized head and
        # a separate graph, since a head of variable width differs in the last bits.
        self._with_other_head = None
        if head and head not in task_layers:
            self._with_other_head = adapter([*task_layers, head], head)
        self._any_classes = head is not None

    def specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the inputs of a function, in order."""
        if name == "serving_default":
            return self._examples("inputs")
        examples = [*self._examples("support_x"), *self._targets()]
        if name == "adapt":
            examples += self._examples("query_x")
        dtypes = (tf.int32, tf.int32, tf.float32, tf.int64, tf.int32)
        settings = [tf.TensorSpec((), *each) for each in zip(dtypes, Settings._fields)]
        return [*examples, *(settings if self._learned_classes else settings[:-1])]

    def serving_default(self, *inputs: tf.Tensor) -> Outputs:
        """Returns the outputs of the model at the learned initialization."""
        checked = self._pack(checked_examples(inputs, self._examples("inputs")))
        model = self._model
        return self._named(self._predict(model.parameters(), model.state(0), checked, False))

    def adapt(self, *request: tf.Tensor) -> Outputs:
        """Trains on a support set and predicts queries.

        The request has the tensors of `specs("adapt")`: support inputs, targets and query inputs,
        then `Settings`. Returns outputs for the queries; "losses" [steps], the loss of each batch
        before the step on it; and "support_accuracy" (or "support_error") of the adapted model.
        """
        specs = self._examples("query_x")
        place = len(specs) + len(self._formats)
        query_x = checked_examples(request[place : place + len(specs)], specs)
        support, settings = request[:place], request[place + len(specs) :]
        adapted = self._adapt(support, self._pack(query_x), Settings(*settings))
        with requiring_convergence(adapted):
            queries = [tf.identity(each) for each in adapted.queries]
            return self._named(queries) | self._figures(adapted)

    def adapt_weights(self, *request: tf.Tensor) -> Outputs:
        """Trains on a support set and returns the adapted weights, named by `weight_names`.

        The arguments are those of `adapt` without queries. Returns its other results too, and
        "order" [weights]: the positions in `model.weights` of the names in alphabetical order.
        """
        place = len(self._examples("support_x")) + len(self._formats)
        adapted = self._adapt(request[:place], None, Settings(*request[place:]))
        variables = [*self._model.variables, *self._model.model.non_trainable_variables]
        values = dict(zip(map(id, variables), [*adapted.parameters, *adapted.state]))
        names = weight_names(self._model.model)
        with requiring_convergence(adapted):
            named = {name: tf.identity(values[key]) for key, name in names.items()}
            order = [[*named].index(name) for name in sorted(named)]
            return named | self._figures(adapted) | {"order": tf.constant(order)}

    def _adapt(self, support, queries, settings) -> _Adapted:
        """Checks a request, trains on its support set, and predicts its queries, if any."""
        steps = checked_number(settings.steps, "steps", 0, self._limits.steps)
        batch_size = checked_number(settings.batch_size, "batch_size", 1, self._limits.batch_size)
        learning_rate = checked_rate(settings.learning_rate, "learning_rate")
        seed = tf.ensure_shape(settings.seed, (), name="seed")
        num_classes, learned_classes = settings.num_classes, self._learned_classes
        if learned_classes is not None:
            bounds = (1, self._limits.classes) if self._any_classes else 2 * (learned_classes,)
            num_classes = checked_number(num_classes, "num_classes", *bounds)
        specs = [*self._examples("support_x"), *self._targets()]
        tensors = checked_examples(support, specs)
        epochs = (steps + 1) * batch_size // tf.shape(tensors[0])[0]  # their orders are drawn first
        message = "steps and batch_size: they need more than 1,000,000 epochs of the support set:"
        with tf.control_dependencies([_require(epochs <= 1_000_000, message, epochs)]):
            steps = tf.identity(steps)
        place = len(specs) - len(self._formats)
        inputs = self._pack(tensors[:place])
        classes = [num_classes] if learned_classes else [each.classes for each in self._formats]
        labels = map(checked_labels, tensors[place:], specs[place:], classes)
        targets = tf.nest.pack_sequence_as(self._outputs, list(labels))
        # Losses get structures as from data sets, which have no lists.
        examples = tuple(tuple(e) if isinstance(e, list) else e for e in (inputs, targets))
        batches = ordered_batches(examples, steps + 1, batch_size, seed=seed)

        def adapt_with(adapter):
            end = adapter.train(
                batches, steps, learning_rate=learning_rate, seed=seed, num_classes=num_classes
            )
            variables, training = (end.parameters, end.state), self._transductive
            error, finite = self._error(*variables, inputs, targets)
            outputs = [] if queries is None else self._predict(*variables, queries, training)
            finite &= end.finite & all_finite(outputs)
            return _Adapted(*variables, end.losses, error, outputs, finite)

        if self._with_other_head is None:
            return adapt_with(self._adapter)
        return tf.cond(
            tf.equal(num_classes, learned_classes),
            lambda: adapt_with(self._adapter),
            lambda: adapt_with(self._with_other_head),
        )

    def _figures(self, adapted):
        error, losses = tf.identity(adapted.support_error), tf.identity(adapted.losses)
        if self._counts_errors:
            return {"losses": losses, "support_accuracy": 1.0 - error}
        return {"losses": losses, "support_error": error}

    def _named(self, outputs):
        named = (each.named(output) for each, output in zip(self._formats, outputs))
        return functools.reduce(dict.__or__, named)

    def _examples(self, name) -> list[tf.TensorSpec]:
        specs = zip(tf.nest.flatten(self._inputs), names_of(name, self._inputs))
        return [tf.TensorSpec(spec.shape, spec.dtype, each) for spec, each in specs]

    def _targets(self) -> list[tf.TensorSpec]:
        return [each.targets_spec("support_y") for each in self._formats]

    def _pack(self, inputs):
        return tf.nest.pack_sequence_as(self._inputs, inputs)

    def _predict(self, parameters, state, inputs, training) -> list[tf.Tensor]:
        """Returns the outputs for any number of inputs, in batches of `query_batch_size`."""
        count, size = tf.shape(tf.nest.flatten(inputs)[0])[0], self._query_batch_size

        def add_batch(start, *collected):
            batch = _rows(inputs, start, size)
            predicted = self._predictor.predict(parameters, state, batch, training=training)
            parts = zip(collected, tf.nest.flatten(predicted))
            return start + size, *(each.write(start // size, part) for each, part in parts)

        empty = [
            tf.TensorArray(each.spec.dtype, size=-(-count // size), infer_shape=False)
            for each in self._formats
        ]
        _, *collected = tf.while_loop(
            lambda start, *_: start < count,
            add_batch,
            (tf.constant(0), *empty),
            parallel_iterations=1,
        )
        shapes = [each.spec.shape for each in self._formats]
        if self._any_classes:
            shapes = [[*shapes[0][:-1], None]]
        return [tf.ensure_shape(each.concat(), shape) for each, shape in zip(collected, shapes)]

    def _error(self, parameters, state, inputs, targets) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean error of examples, and whether all their outputs are finite."""
        count, size = tf.shape(tf.nest.flatten(inputs)[0])[0], self._query_batch_size

        def add_batch(start, error, weight, finite):
            batch = Batch(*_rows((inputs, targets), start, size))
            result = self._predictor.evaluate(
                parameters, state, batch, training=self._transductive, penalties=False
            )
            error += tf.reduce_sum(result.errors * result.weights)
            weight += tf.reduce_sum(result.weights)
            return start + size, error, weight, finite & all_finite(tf.nest.flatten(result.outputs))

        _, error, weight, finite = tf.while_loop(
            lambda start, *_: start < count,
            add_batch,
            (tf.constant(0), tf.constant(0.0), tf.constant(0.0), tf.constant(True)),
            parallel_iterations=1,
        )
        return tf.math.divide_no_nan(error, weight), finite


class OutputFormat(NamedTuple):
    """The names and the meaning of one output and its targets, which depend on the loss."""

    suffix: str  # appended to names; empty if the model has one output
    loss: keras.losses.Loss
    spec: tf.TensorSpec  # shape and dtype of the output, for any number of examples

    @property
    def classes(self) -> int | None:
        """The number of classes, None if targets are not class numbers."""
        is_sparse = isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy)
        return self.spec.shape[-1] if is_sparse else None

    def targets_spec(self, name: str) -> tf.TensorSpec:
        """Returns the shape and dtype of the targets of a request."""
        if self.classes:
            return tf.TensorSpec(self.spec.shape[:-1], tf.int32, name + self.suffix)
        return tf.TensorSpec(self.spec.shape, tf.float32, name + self.suffix)

    def named(self, outputs: tf.Tensor) -> Outputs:
        """Returns "logits" and "probabilities" of a classifier, else "outputs"."""
        if not isinstance(self.loss, _CROSS_ENTROPIES):
            return {f"outputs{self.suffix}": outputs}
        binary = isinstance(self.loss, keras.losses.BinaryCrossentropy)
        if self.loss.get_config()["from_logits"]:
            logits, probabilities = outputs, (tf.math.sigmoid if binary else tf.nn.softmax)(outputs)
        else:
            log_complement = tf.math.log1p(-outputs) if binary else 0.0
            logits, probabilities = tf.math.log(outputs) - log_complement, outputs
        return {f"logits{self.suffix}": logits, f"probabilities{self.suffix}": probabilities}


class _PreparedModel(FunctionalModel):
    """A model that takes the inputs of requests, such as pixels in uint8."""

    def __init__(self, prepare, model, loss, error):
        super().__init__(model, loss, error)
        self._prepare = prepare

    def _call(self, parameters, state, inputs, training):
        return super()._call(parameters, state, self._prepare(inputs), training)


def _outputs_of(model: FunctionalModel, inputs: Any) -> Any:
    """Returns shapes and dtypes of the outputs, in the structure that the model returns."""

    def predict(batch):
        return model.predict(model.parameters(), model.state(0), batch)

    traced = tf.function(predict, autograph=False).get_concrete_function(inputs)
    return spec_of(traced.structured_outputs).element_spec


def names_of(name: str, nest: Any) -> list[str]:
    """Returns a name for each tensor of a nest: `name` followed by its keys or positions.

    Raises:
        ValueError: two names are equal, apart from case and punctuation.

    Example:

        >>> names_of("support_x", {"left": 1, "right": 2}), names_of("query_x", 1)
        (['support_x_left', 'support_x_right'], ['query_x'])
    """
    if len(tf.nest.flatten(nest)) == 1:
        return [name]
    paths = ([name, *path] for path, _ in keras.tree.flatten_with_path(nest))
    names = [re.sub(r"[^A-Za-z0-9]", "_", "_".join(map(str, path))) for path in paths]
    if len({each.lower() for each in names}) < len(names):
        raise ValueError(
            f"The names {names} differ in case or punctuation only, which the signatures of a "
            "SavedModel do not tell apart. Rename the inputs or outputs."
        )
    return names


def _rows(nest, start, size):
    return tf.nest.map_structure(lambda each: each[start : start + size], nest)


def checked_examples(
    tensors: Sequence[tf.Tensor], specs: Sequence[tf.TensorSpec]
) -> list[tf.Tensor]:
    """Checks the shapes of tensors and that floats are finite, and returns the tensors.

    The first dimension is the number of examples: at least one, and the same for all tensors.
    """
    tensors = [
        tf.ensure_shape(tensor, spec.shape, name=spec.name)
        for tensor, spec in zip(tensors, specs, strict=True)
    ]
    counts = [tf.shape(tensor)[0] for tensor in tensors]
    conditions = [_require(counts[0] > 0, f"{specs[0].name}: there must be at least one example")]
    for spec, count in zip(specs[1:], counts[1:]):
        message = f"{spec.name}: there must be one for each example, not"
        conditions.append(_require(tf.equal(count, counts[0]), message, count, counts[0]))
    for spec, tensor in zip(specs, tensors):
        if spec.dtype.is_floating:
            finite = tf.reduce_all(tf.math.is_finite(tensor))
            conditions.append(_require(finite, f"{spec.name}: all numbers must be finite"))
    with tf.control_dependencies(conditions):
        return [tf.identity(tensor) for tensor in tensors]


def checked_labels(
    targets: tf.Tensor, spec: tf.TensorSpec, classes: int | tf.Tensor | None
) -> tf.Tensor:
    """Returns targets after checking that labels are in [0, classes)."""
    if classes is None:
        return targets
    lowest, highest = tf.reduce_min(targets), tf.reduce_max(targets)
    message = f"{spec.name}: labels must lie in [0, number of classes), and the lowest, "
    message += "the highest and the number are"
    allowed = (lowest >= 0) & (highest < classes)
    with tf.control_dependencies([_require(allowed, message, lowest, highest, classes)]):
        return tf.identity(targets)


def checked_number(number: tf.Tensor, name: str, least: int, most: int) -> tf.Tensor:
    """Returns an integer scalar after checking that it is in [least, most]."""
    number = tf.ensure_shape(number, (), name=name)
    allowed = (number >= least) & (number <= most)
    message = f"{name}: must be at least {least} and at most {most}. Received:"
    with tf.control_dependencies([_require(allowed, message, number)]):
        return tf.identity(number)


def checked_rate(rate: tf.Tensor, name: str) -> tf.Tensor:
    """Returns a scalar after checking that it is positive and finite."""
    rate = tf.ensure_shape(rate, (), name=name)
    allowed = (rate > 0) & tf.math.is_finite(rate)
    with tf.control_dependencies([_require(allowed, f"{name}: must be positive. Received:", rate)]):
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
