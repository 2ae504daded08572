"""A Keras model and its loss as a pure function of the model's variables."""

import copy
import inspect
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import ArrayTask, check_no_text
from leap_tf.functional.checks import UnsupportedModelError, check_labels, check_training_rule
from leap_tf.functional.losses import ErrorFunction, TotalLoss, check_mean, counted, default_error
from leap_tf.tasks import Task, batches_of


class Batch(NamedTuple):
    """Inputs [n, ...], targets [n, ...] and optional weights [n] of n examples."""

    inputs: tf.Tensor
    targets: tf.Tensor
    sample_weight: tf.Tensor | None = None


class BatchResult(NamedTuple):
    """The outputs, the loss and the errors of a model on a batch."""

    outputs: Any  # a tensor, or a nest of tensors
    loss: tf.Tensor  # scalar, the mean over the batch; in training, with regularization
    loss_weight: tf.Tensor  # scalar, the weight of `loss` in a mean over several batches
    errors: tf.Tensor  # [n] float32, the error of each example
    weights: tf.Tensor  # [n] float32, the weight of each error
    state: list[tf.Tensor]  # the model's state after the batch

    @property
    def error(self) -> tf.Tensor:
        """The weighted mean of the errors; 0 if all weights are 0."""
        return tf.math.divide_no_nan(
            tf.reduce_sum(self.errors * self.weights), tf.reduce_sum(self.weights)
        )


class FunctionalModel:
    """The loss of a Keras model as a function of its parameters and state.

    The *parameters* are the trainable variables. The *state* is all other variables: running
    statistics of batch normalization and the seeds of random layers.

    Args:
        model: a built model.
        loss: a Keras loss whose reduction is a mean over the batch.
        error: a function of targets and outputs that returns the error of each example, [n] or with
            more dimensions, for curves and tables. By default, the share of wrong labels in an
            example if `loss` is a cross-entropy, else the loss of the example.

    Raises:
        TypeError: `loss` is not a loss object.
        ValueError: the model is not built or has no trainable variables, `loss` is not a mean over
            the batch, or the model has several outputs and `loss` is not a `TotalLoss`.
        UnsupportedModelError: see `check_training_rule`.
    """

    def __init__(
        self, model: keras.Model, loss: keras.losses.Loss, error: ErrorFunction | None = None
    ):
        if not model.built:
            raise ValueError(
                "The model has no variables yet. Give it an Input layer, or call it once on a "
                "batch, before meta-learning."
            )
        if not isinstance(loss, keras.losses.Loss):
            raise TypeError(
                f"loss must be a keras.losses.Loss. Received: {loss!r}. Use, for example, "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
            )
        check_mean(loss)
        if len(getattr(model, "outputs", None) or ()) > 1 and not isinstance(loss, TotalLoss):
            raise ValueError(
                f"The model has {len(model.outputs)} outputs {model.output_names}. Pass a loss for "
                "each: a list, or a dictionary if the model returns one."
            )
        if not model.trainable_variables:
            raise ValueError("The model has no trainable variables, so there is nothing to learn.")
        check_training_rule(model)
        self.model = model
        self._network = model  # the model to call; `without_randomness` replaces it
        self._trainable = [id(variable) for variable in model.trainable_variables]
        self.loss = loss
        self.error = error or default_error(self.loss)
        self._takes_training = "training" in inspect.signature(model.call).parameters
        self._seed_states = [
            index
            for index, variable in enumerate(model.non_trainable_variables)
            if _is_seed(variable)
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """The trainable variables, in the order of the parameters."""
        return self.model.trainable_variables

    def without_randomness(self) -> "FunctionalModel":
        """Returns this model with its random layers, such as dropout and noise, switched off.

        It has the same parameters and state, and all other layers follow `training` as before.

        Raises:
            UnsupportedModelError: the random layers cannot be found or separated from the others.
        """
        if not self._seed_states:
            return self
        quiet = copy.copy(self)
        quiet._network = _without_randomness(self.model)
        return quiet

    @property
    def units(self) -> int | None:
        """The last dimension of the output; None for subclassed models and several outputs."""
        shape = getattr(self.model, "output_shape", None)
        return shape[-1] if isinstance(shape, tuple) else None

    def parameters(self) -> list[tf.Tensor]:
        """Returns the current values of the trainable variables."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables]

    def state(self, seed: int | tf.Tensor) -> list[tf.Tensor]:
        """Returns the values of the non-trainable variables, with new seeds of random layers.

        Args:
            seed: decides the seeds of random layers.
        """
        state = [tf.convert_to_tensor(each.value) for each in self.model.non_trainable_variables]
        for order, index in enumerate(self._seed_states):
            seeds = tf.stack([tf.cast(seed, tf.int64), order])
            draw = tf.random.stateless_uniform((), seeds, maxval=2**31 - 1, dtype=tf.int32)
            state[index] = tf.cast(tf.stack([draw, 0]), state[index].dtype)
        return state

    def initial_values(
        self, seed: int | tf.Tensor, replaced: Mapping[int, tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the parameters and the state at the start of a task.

        `seed` is that of `state`. `replaced` has values by `id(variable)`, for variables that do
        not start from their current values. Layers that were frozen or unfrozen since this object
        was created are an UnsupportedModelError.
        """
        if [id(variable) for variable in self.variables] != self._trainable:
            raise UnsupportedModelError(
                f"Layers of {self.model.name!r} were frozen or unfrozen after the trainer was "
                "made. Set `trainable` first, then make the trainer."
            )

        def replace(variables, values):
            return [replaced.get(id(variable), value) for variable, value in zip(variables, values)]

        parameters = replace(self.variables, self.parameters())
        return parameters, replace(self.model.non_trainable_variables, self.state(seed))

    def evaluate(
        self,
        parameters: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        *,
        training: bool,
        penalties: bool | None = None,
    ) -> BatchResult:
        """Runs the model on a batch, as a Keras train or test step does.

        Errors are weighted by sample weights and masks, as the loss is. The loss includes
        regularization with `penalties`, by default only in training.

        Returns:
            The outputs, the loss in float32 or wider, the errors, and the state after the batch.

        Raises:
            UnsupportedModelError: calling the model assigns a trainable weight, or a variable that
                does not belong to it.
        """
        if tf.nest.is_nested(batch.sample_weight):
            raise ValueError("sample_weight must be one tensor, which all outputs share.")
        outputs, new_state, regularization = self._call(parameters, state, batch.inputs, training)
        loss = self.loss(batch.targets, outputs, sample_weight=batch.sample_weight)
        if (training if penalties is None else penalties) and regularization:
            loss += tf.add_n(
                [tf.reduce_sum(tf.cast(penalty, loss.dtype)) for penalty in regularization]
            )
        errors = tf.cast(self.error(batch.targets, outputs), tf.float32)
        if not errors.shape.rank:
            raise ValueError("error_fn must return one error for each example, not their mean.")
        mask = counted(self.loss, batch.targets, outputs)
        weights = _weights_of(errors, batch.sample_weight, mask)
        errors, weights = tf.reshape(errors, [-1]), tf.reshape(weights, [-1])
        if self.loss.reduction == "mean_with_sample_weight":
            loss_weight = tf.reduce_sum(weights)
        elif mask is not None:  # Keras divides by the number of outputs that are not masked
            loss_weight = tf.math.count_nonzero(mask, dtype=tf.float32)
        else:
            loss_weight = tf.cast(tf.size(errors), tf.float32)
        return BatchResult(
            outputs=outputs,
            loss=loss,
            loss_weight=loss_weight,
            errors=errors,
            weights=weights,
            state=[tf.convert_to_tensor(value) for value in new_state],
        )

    def predict(self, parameters: list, state: list, inputs: Any, training: bool = False) -> Any:
        """Returns the model's outputs."""
        return self._call(parameters, state, inputs, training)[0]

    def _call(self, parameters, state, inputs, training):
        """Returns outputs, new state and regularization losses."""
        variables = [*self.variables, *self.model.non_trainable_variables]
        # `model.stateless_call` would bypass `__call__`, which casts inputs and passes `training`
        # on to nested layers.
        values = zip(variables, [*parameters, *state])
        with _CALLING, scope_of(values, collect_losses=True) as scope:
            given = dict(scope.state_mapping)
            options = {"training": training} if self._takes_training else {}
            outputs = self._network(inputs, **options)
            regularization = list(self._network.losses)
        self._check_assignments(scope, given)
        state = [scope.get_current_value(each) for each in self.model.non_trainable_variables]
        return outputs, state, regularization

    def _check_assignments(self, scope, given):
        """Refuses a model whose call assigned variables other than those of the state."""
        for variable in self.variables:
            if scope.get_current_value(variable) is not given[id(variable)]:
                raise UnsupportedModelError(
                    f"The layer {_owner(self.model, variable)!r} assigns its trainable weight "
                    f"{variable.path!r} when it is called, which the functional task loop cannot "
                    "do. Use leap_tf.LeapOptimizer with model.fit, which trains such layers."
                )
        metrics = {id(variable) for variable in self.model.metrics_variables}
        if set(scope.state_mapping) - set(given) - metrics:
            raise UnsupportedModelError(
                f"When it is called, the model {self.model.name!r} changes a variable that it does "
                "not own, such as Keras's global seed. Make the variable an attribute of a layer, "
                "and give random functions a keras.random.SeedGenerator of the layer."
            )
        nodes = [] if tf.executing_eagerly() else tf.compat.v1.get_default_graph().get_operations()
        if wild := [node.type for node in nodes if _OWN_STATE.match(node.type)]:
            raise UnsupportedModelError(
                f"When it is called, the model {self.model.name!r} uses {wild[0]}, whose state is "
                "TensorFlow's. Use keras.random with a keras.random.SeedGenerator of the layer, "
                "keras.layers.Dropout, and variables from add_weight."
            )


_CALLING = threading.RLock()  # the losses of a call are collected in the layers, for all threads
# Operations with a state that belongs to no Keras variable: random numbers and raw variables.
_OWN_STATE = re.compile("Random|Rng|Truncated|Parameterized|Multinomial|Stateful|Assign.*Variable")


class _InInference(keras.layers.Layer):
    """A layer that is always called with `training=False`."""

    def __init__(self, layer: keras.Layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer
        self.supports_masking = True
        self.built = True

    def call(self, *args, **kwargs):
        return self.layer(*args, **(kwargs | {"training": False}))

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)


def _without_randomness(model: keras.Model) -> keras.Model:
    """Returns a model of the same layers and variables, with random layers in inference."""
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            "Transductive evaluation must switch off random layers, such as dropout, and cannot "
            f"find those of the subclassed model {model.name!r}. Build it with "
            "keras.Model(inputs, outputs) or keras.Sequential, or evaluate inductively."
        )

    def in_inference(layer):
        if not any(map(_is_seed, getattr(layer, "variables", ()))):
            return layer
        if layer.trainable and layer.non_trainable_weights:
            raise UnsupportedModelError(
                f"The layer {layer.name!r} both draws random numbers and has running statistics. "
                "Transductive evaluation must switch off the random numbers but use the statistics "
                "of the batch. Split the layer in two, or evaluate inductively."
            )
        return _InInference(layer)

    # The clone shares all layers with the model; random ones are wrapped.
    return keras.models.clone_model(model, clone_function=in_inference, recursive=True)


def _is_seed(variable):
    return variable.path.endswith("seed_generator_state")


def unpack_batch(element) -> Batch:
    """Returns (inputs, targets) or (inputs, targets, sample_weight) as a `Batch`.

    Raises:
        ValueError: the element has another structure.
    """
    if isinstance(element, (tuple, list)) and len(element) in (2, 3):
        return Batch(*element)
    raise ValueError(
        "The data set of a task must give (inputs, targets) or (inputs, targets, sample_weight), "
        f"and gives {tf.nest.map_structure(lambda tensor: tensor.shape, element)}."
    )


def task_batches(task: Task, method: str, *arguments: Any) -> tf.data.Dataset:
    """Returns the batches of a task after a check of their structure.

    Raises:
        ValueError: an element is not a `Batch`, or targets are text.
    """
    batches = batches_of(task, method, *arguments)
    what = f"Task {task.name!r}, {method}()"
    try:
        targets = unpack_batch(batches.element_spec).targets
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    check_no_text(what, [spec.dtype for spec in tf.nest.flatten(targets)])
    return batches


def check_task_data(task: Task, inputs: Any, model: FunctionalModel, resized: bool) -> None:
    """Checks what can be checked of a task's data before anything is traced.

    `inputs` is the specification of its inputs, a `tf.TensorSpec` or a nest of them. `resized` says
    whether the model has as many outputs as the task has `classes`.

    Raises:
        ValueError: the shape of the inputs is not the model's, or labels of an `ArrayTask` are
            outside its outputs, or outside [0, 1] with a binary cross-entropy.
    """
    wanted = getattr(model.model, "input_shape", None)
    if isinstance(inputs, tf.TensorSpec) and isinstance(wanted, tuple):
        shape = inputs.shape
        if shape.rank == len(wanted) and not shape.is_compatible_with(wanted):
            raise ValueError(
                f"Task {task.name!r}: a batch of its inputs has the shape {tuple(shape)}, and the "
                f"model takes {wanted}."
            )
    if isinstance(task, ArrayTask) and isinstance(model.loss, keras.losses.BinaryCrossentropy):
        least, most = np.array(task.label_ranges).min(), np.array(task.label_ranges).max()
        if least < 0 or most > 1:
            raise ValueError(
                f"Task {task.name!r} has targets from {least} to {most}, and BinaryCrossentropy "
                "takes those from 0 to 1."
            )
    sparse = isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)
    if isinstance(task, ArrayTask) and sparse:
        units = model.units
        if resized and task.classes is not None:
            units = task.classes
        if units is not None:
            check_labels(task, units, model.loss.get_config().get("ignore_class"))


def scope_of(
    values: Iterable[tuple[keras.Variable, tf.Tensor]], collect_losses: bool = False
) -> keras.StatelessScope:
    """Returns a scope in which variables take given values and assignments do not reach them.

    Unlike in the constructor of `keras.StatelessScope`, a value may have another shape than its
    variable: heads have as many units as a task has classes.
    """
    scope = keras.StatelessScope(collect_losses=collect_losses)
    for variable, value in values:
        scope.add_update((variable, tf.convert_to_tensor(value, dtype=variable.dtype)))
    return scope


def _weights_of(errors, sample_weight, mask):
    """Returns the weights of the errors, in their shape.

    Keras allows sample weights with fewer dimensions, or one more. Errors of masked outputs have
    weight 0; an error over several outputs counts if at least one of them is not masked.
    """
    weights = tf.ones_like(errors)
    if sample_weight is not None:
        given = tf.cast(sample_weight, errors.dtype)
        if given.shape.rank == errors.shape.rank + 1:
            if given.shape[-1] != 1:
                raise ValueError(
                    f"sample_weight has the shape {given.shape}, and there is one error for each "
                    "example. Give one weight for each, or an error_fn with as many errors."
                )
            given = tf.squeeze(given, -1)
        weights *= _with_rank(given, errors.shape.rank)
    if mask is not None:
        extra = range(errors.shape.rank, mask.shape.rank)
        counts = tf.cast(tf.reduce_any(mask, axis=list(extra)), errors.dtype)
        weights *= _with_rank(counts, errors.shape.rank)
    return weights


def _with_rank(tensor, rank):
    """Appends dimensions of size one."""
    return tensor[(..., *[tf.newaxis] * (rank - tensor.shape.rank))]


def _owner(model, variable):
    """Returns the name of the outermost layer, not a model, that has a variable."""
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    owners = [each for each in layers if any(weight is variable for weight in each.weights)]
    return (owners or [model])[0].name
