"""Losses of tasks, and the errors and metrics that belong to them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

ErrorFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_ACCURACIES: dict[type, tuple[Any, Any]] = {
    keras.losses.SparseCategoricalCrossentropy: (
        keras.metrics.sparse_categorical_accuracy,
        keras.metrics.SparseCategoricalAccuracy,
    ),
    keras.losses.CategoricalCrossentropy: (
        keras.metrics.categorical_accuracy,
        keras.metrics.CategoricalAccuracy,
    ),
    keras.losses.BinaryCrossentropy: (keras.metrics.binary_accuracy, keras.metrics.BinaryAccuracy),
}


class TotalLoss(keras.losses.Loss):
    """The sum of the losses of a model's outputs.

    They are a list in the order of the outputs, or a dictionary if the model returns one.

    Raises:
        ValueError: a loss is not a mean over the batch, or ignores a class.
    """

    def __init__(self, losses: Sequence[keras.losses.Loss] | Mapping[str, keras.losses.Loss]):
        super().__init__(name="total")
        self.losses = losses
        for loss in tf.nest.flatten(losses):
            check_mean(loss)
            if _ignored_class(loss) is not None:
                raise ValueError("ignore_class is not supported in models with several outputs.")

    def __call__(self, y_true, y_pred, sample_weight=None):
        parts = zip(*self.by_output(y_true, y_pred))
        return tf.add_n([loss(*pair, sample_weight=sample_weight) for loss, *pair in parts])

    def by_output(self, targets: Any, outputs: Any) -> tuple[list, list, list]:
        """Returns losses, targets and outputs as lists with an entry for every output.

        Raises:
            ValueError: the targets or the losses do not have the structure of the outputs.
        """
        for what, nest in (("loss", self.losses), ("targets of a task", targets)):
            expected = sorted(outputs) if isinstance(outputs, Mapping) else len(outputs)
            given = sorted(nest) if isinstance(nest, Mapping) else len(nest)
            if given != expected:
                raise ValueError(
                    f"The {what} must have an entry for every output of the model. Expected: "
                    f"{expected}. Received: {given}."
                )
        return tuple(tf.nest.flatten(nest) for nest in (self.losses, targets, outputs))

    def get_config(self):
        return {"losses": tf.nest.map_structure(keras.losses.serialize, self.losses)}


def as_loss(loss: Any) -> Any:
    """Returns a loss object for a name such as "mse" or "MeanSquaredError", or a nest of losses.

    Other values are returned as they are.

    Raises:
        ValueError: Keras has no loss of this name, or see `TotalLoss`.
    """
    if isinstance(loss, (Mapping, list, tuple)):
        return TotalLoss(tf.nest.map_structure(as_loss, loss))
    if not isinstance(loss, str):
        return loss
    found = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss):
        return found
    for cls in vars(keras.losses).values():
        if isinstance(cls, type) and cls is not keras.losses.Loss:
            instance = cls()
            if getattr(instance, "fn", None) is found:
                return instance
    raise ValueError(f"Keras has no loss class for {loss!r}. Pass a keras.losses.Loss.")


def default_error(loss: keras.losses.Loss) -> ErrorFunction:
    """Returns the usual error of a loss: the share of wrong labels, otherwise the loss itself.

    With several outputs it is the mean over them.
    """
    if isinstance(loss, TotalLoss):
        return functools.partial(_mean_error, loss)
    for accuracy, _, options in _accuracies(loss):
        correct = functools.partial(accuracy, **options)
        return lambda targets, outputs: 1.0 - tf.cast(correct(targets, outputs), tf.float32)
    return functools.partial(_example_losses, loss)


def default_metrics(loss: keras.losses.Loss) -> list[keras.metrics.Metric]:
    """Returns Keras's metric of the labels that `default_error` counts as right, if it does."""
    return [metric("accuracy", **options) for _, metric, options in _accuracies(loss)]


def _accuracies(loss):
    """Returns the function, the metric and the options of a cross-entropy's accuracy, if any."""
    binary = isinstance(loss, keras.losses.BinaryCrossentropy)
    threshold = 0.0 if binary and loss.get_config().get("from_logits") else 0.5
    options = {"threshold": threshold} if binary else {}
    return [(*each, options) for kind, each in _ACCURACIES.items() if isinstance(loss, kind)]


def _example_losses(loss, targets, outputs):
    """The loss of each example, over the outputs that are not masked.

    Raises:
        ValueError: targets would be broadcast to the single output of an example.
    """
    mask = mask_of(outputs)
    shapes = [tf.TensorShape(each.shape) for each in (targets, outputs)]
    if shapes[0].rank == shapes[1].rank and shapes[1][-1] == 1 and shapes[0][-1] not in (1, None):
        raise ValueError(f"targets are {shapes[0]}, and the model's outputs {shapes[1]}")
    if shapes[1].rank == 1:  # a loss takes the mean over the last dimension
        targets, outputs = (tf.reshape(each, [-1, 1]) for each in (targets, outputs))
    dtype = loss.dtype or outputs.dtype
    values = loss.call(tf.cast(targets, dtype), tf.cast(outputs, dtype))
    if not values.shape.rank:
        raise ValueError(f"{type(loss).__name__}.call() must return one loss for each example")
    return _mean_of_example(values, mask)


def _mean_of_example(values, mask):
    """Returns the mean over all dimensions but the first, where the mask, if any, is true."""
    values = tf.reshape(values, [tf.shape(values)[0], -1])
    if mask is None:
        return tf.reduce_mean(values, axis=-1)
    counts = tf.cast(tf.reshape(mask, [tf.shape(values)[0], -1]), values.dtype)
    counts = tf.broadcast_to(counts, tf.shape(values))
    return tf.math.divide_no_nan(
        tf.reduce_sum(values * counts, axis=-1), tf.reduce_sum(counts, axis=-1)
    )


def _mean_error(total, targets, outputs):
    """The mean over the outputs of the error of an example."""
    errors = []
    for loss, target, output in zip(*total.by_output(targets, outputs)):
        error = default_error(loss)(target, output)
        errors.append(_mean_of_example(error, mask_of(output) if error.shape.rank > 1 else None))
    return tf.add_n(errors) / len(errors)


def check_mean(loss):
    if loss.reduction not in _MEANS:
        raise ValueError(
            f"loss has reduction={loss.reduction!r}. It must be a mean over the batch, so that it "
            "does not depend on the batch size. Use the default, 'sum_over_batch_size'."
        )


def mask_of(outputs):
    """Returns which outputs count, as booleans, if the model's layers computed a mask."""
    mask = getattr(outputs, "_keras_mask", None)
    return None if mask is None else tf.cast(mask, tf.bool)


def counted(loss: keras.losses.Loss, targets: Any, outputs: Any) -> tf.Tensor | None:
    """Returns which outputs count in a loss, by the model's mask and by `ignore_class`, if any."""
    mask, ignored = mask_of(outputs), _ignored_class(loss)
    if ignored is None:
        return mask
    valid = tf.reshape(targets != tf.cast(ignored, targets.dtype), tf.shape(outputs)[:-1])
    return valid if mask is None else mask & valid


def _ignored_class(loss):
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    return loss.get_config().get("ignore_class") if sparse else None
