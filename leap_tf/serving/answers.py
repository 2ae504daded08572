"""What a model's outputs and targets are called and mean, which the loss decides."""

from typing import NamedTuple

import keras
import tensorflow as tf

from leap_tf.functional.model import ErrorFunction

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
