"""Keras variables that stand for tensors for a while.

A Keras model and its loss as one pure function of the model's variables.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


def scope_of(
    values: Iterable[tuple[keras.Variable, tf.Tensor]], collect_losses: bool = False
) -> keras.StatelessScope:
    """Returns a scope in which variables have other values, and assigning changes only these.

    Keras's own constructor wants each value to have its variable's shape. A head that has as many
    units as its task has classes does not.

    Args:
        values: variables and what they stand for, of their dtype.
        collect_losses: whether regularisation losses are collected.
    """
    scope = keras.StatelessScope(collect_losses=collect_losses)
    for variable, value in values:
        scope.add_update((variable, tf.convert_to_tensor(value, dtype=variable.dtype)))
    return scope


_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")

ErrorFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Batch(NamedTuple):
    """Inputs, targets and optional weights of some examples."""

    inputs: tf.Tensor
    targets: tf.Tensor
    sample_weight: tf.Tensor | None = None


class BatchResult(NamedTuple):
    """What a model does on a batch.

    Attributes:
        loss: its mean, a scalar.
        loss_weight: what that mean counts for in one over several batches, float32.
        errors: [n] float32, of each example.
        weights: [n] float32, how much each error counts.
        state: the state after it.
    """

    loss: tf.Tensor
    loss_weight: tf.Tensor
    errors: tf.Tensor
    weights: tf.Tensor
    state: list[tf.Tensor]

    @property
    def error(self) -> tf.Tensor:
        """The weighted mean of the errors; 0 where nothing counts."""
        return tf.math.divide_no_nan(
            tf.reduce_sum(self.errors * self.weights), tf.reduce_sum(self.weights)
        )


class FunctionalModel:
    """The loss of a Keras model as a function of its parameters and state.

    *Parameters* are the trainable variables. *State* is everything else a layer carries:
    running statistics of batch norm, seeds of dropout.

    Args:
        model: a built Keras model.
        loss: a Keras loss object.
        error: from targets and outputs to one number per example, the figure that curves and
            tables show. By default the share of wrong labels if `loss` is a cross-entropy,
            else the loss of each example.

    Raises:
        TypeError: `loss` is not a loss object.
        ValueError: the model is not built or has nothing to train, or `loss` is no mean.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: keras.losses.Loss,
        error: ErrorFunction | None = None,
    ):
        if not model.built:
            raise ValueError(
                "The model has no variables yet. Give it an Input layer, or call it once on a "
                "batch, before meta-learning it."
            )
        if not isinstance(loss, keras.losses.Loss):
            raise TypeError(
                f"loss must be a keras.losses.Loss, and is {loss!r}. Write for example "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
            )
        if loss.reduction not in _MEANS:
            raise ValueError(
                f"loss has reduction={loss.reduction!r}. A path needs one number a batch that does "
                "not depend on the batch's size: use the default, 'sum_over_batch_size'."
            )
        if not model.trainable_variables:
            raise ValueError("The model has no trainable variables, so there is nothing to learn.")
        self.model = model
        self.loss = loss
        self.error = error or default_error(self.loss)
        self._takes_training = "training" in inspect.signature(model.call).parameters
        self._seed_states = [
            index
            for index, variable in enumerate(model.non_trainable_variables)
            if variable.path.endswith("seed_generator_state")
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """The Keras variables behind the parameters, in order."""
        return self.model.trainable_variables

    @property
    def has_random_layers(self) -> bool:
        """Whether layers draw random numbers in training, such as dropout."""
        return bool(self._seed_states)

    def parameters(self) -> list[tf.Tensor]:
        """Returns the current values of the trainable variables."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables]

    def state(self, seed: int | tf.Tensor) -> list[tf.Tensor]:
        """Returns the current values of all other variables.

        Args:
            seed: what the random layers draw from, so that every task has its own dropout.
        """
        state = [
            tf.convert_to_tensor(variable.value) for variable in self.model.non_trainable_variables
        ]
        for order, index in enumerate(self._seed_states):
            draw = tf.random.stateless_uniform(
                (),
                seed=tf.stack([tf.cast(seed, tf.int64), order]),
                maxval=2**31 - 1,
                dtype=tf.int32,
            )
            state[index] = tf.cast(tf.stack([draw, 0]), state[index].dtype)
        return state

    def initial_values(
        self, seed: int | tf.Tensor, replaced: Mapping[int, tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the parameters and the state from which a task starts.

        Args:
            seed: of the random layers.
            replaced: from `id(variable)` to its value, for variables that do not start from their
                current values.
        """
        parameters, state = (
            [replaced.get(id(variable), value) for variable, value in zip(variables, values)]
            for variables, values in (
                (self.variables, self.parameters()),
                (self.model.non_trainable_variables, self.state(seed)),
            )
        )
        return parameters, state

    def evaluate(
        self,
        parameters: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        training: bool,
        penalties: bool | None = None,
    ) -> BatchResult:
        """Runs the model on a batch, the way Keras runs it in a train or test step.

        Args:
            parameters: values for the trainable variables.
            state: values for the other variables.
            batch: examples; the leading dimension is theirs.
            training: whether batch norm uses batch statistics and dropout drops.
            penalties: whether regularisers count; as in training by default.

        Returns:
            The mean loss in float32 or wider, the error of each example, the new state. Sample
            weights count in errors as in the loss, so examples of weight 0 are mere padding.
        """
        outputs, new_state, regularisers = self._call(parameters, state, batch.inputs, training)
        loss = self.loss(batch.targets, outputs, sample_weight=batch.sample_weight)
        if (training if penalties is None else penalties) and regularisers:
            loss += tf.add_n([tf.cast(penalty, loss.dtype) for penalty in regularisers])
        errors = tf.cast(self.error(batch.targets, outputs), tf.float32)
        weights = _weights_of(errors, batch.sample_weight)
        errors, weights = tf.reshape(errors, [-1]), tf.reshape(weights, [-1])
        by_weight = self.loss.reduction == "mean_with_sample_weight"
        return BatchResult(
            loss=loss,
            loss_weight=tf.reduce_sum(weights)
            if by_weight
            else tf.cast(tf.size(errors), tf.float32),
            errors=errors,
            weights=weights,
            state=[tf.convert_to_tensor(value) for value in new_state],
        )

    def predict(
        self,
        parameters: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        inputs: tf.Tensor,
        training: bool = False,
    ) -> tf.Tensor:
        """Returns the model's outputs for some inputs. Arguments as for `evaluate`."""
        outputs, _, _ = self._call(parameters, state, inputs, training)
        return outputs

    def _call(self, parameters, state, inputs, training):
        """Outputs, the other variables' new values, and the regularisers' penalties."""
        variables = [*self.variables, *self.model.non_trainable_variables]
        # Not `model.stateless_call`: it bypasses `__call__`, where Keras tells nested layers
        # that they are in training, and casts inputs.
        with scope_of(zip(variables, [*parameters, *state]), collect_losses=True) as scope:
            options = {"training": training} if self._takes_training else {}
            outputs = self.model(inputs, **options)
            regularisers = list(self.model.losses)
        new_state = [
            scope.get_current_value(variable) for variable in self.model.non_trainable_variables
        ]
        return outputs, new_state, regularisers


def _weights_of(errors, sample_weight):
    """Weights in the shape of the errors: Keras lets them have fewer dimensions, or one more."""
    if sample_weight is None:
        return tf.ones_like(errors)
    weights = tf.cast(sample_weight, errors.dtype)
    if weights.shape.rank == errors.shape.rank + 1:
        weights = tf.squeeze(weights, -1)
    while weights.shape.rank < errors.shape.rank:
        weights = weights[..., tf.newaxis]
    return tf.broadcast_to(weights, tf.shape(errors))


def unpack_batch(element) -> Batch:
    """Reads a `tf.data` element as (inputs, targets) or (inputs, targets, sample_weight).

    Raises:
        ValueError: the element has another form.
    """
    if isinstance(element, (tuple, list)) and len(element) in (2, 3):
        return Batch(*element)
    raise ValueError(
        "A task's data set must give (inputs, targets) or (inputs, targets, sample_weight), and "
        f"gives {tf.nest.map_structure(lambda tensor: tensor.shape, element)}."
    )


def default_error(loss: keras.losses.Loss) -> ErrorFunction:
    """Returns the error that people quote for a loss: wrong labels, else the loss itself."""
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return lambda targets, outputs: (
            1.0 - _as_float(keras.metrics.sparse_categorical_accuracy(targets, outputs))
        )
    if isinstance(loss, keras.losses.CategoricalCrossentropy):
        return lambda targets, outputs: (
            1.0 - _as_float(keras.metrics.categorical_accuracy(targets, outputs))
        )
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        threshold = 0.0 if loss.get_config().get("from_logits") else 0.5
        return lambda targets, outputs: (
            1.0 - _as_float(keras.metrics.binary_accuracy(targets, outputs, threshold=threshold))
        )

    def loss_of_each_example(targets, outputs):
        dtype = loss.dtype or outputs.dtype
        values = loss.call(tf.cast(targets, dtype), tf.cast(outputs, dtype))
        return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=-1)

    return loss_of_each_example


def _as_float(tensor):
    return tf.cast(tensor, tf.float32)
