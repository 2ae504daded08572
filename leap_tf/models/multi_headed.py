"""One encoder, a head for every task: the model that multi-headed finetuning trains."""

import keras
import tensorflow as tf

from leap_tf.models.chain import require_head
from leap_tf.models.reseeding import reseeded

_NO_CLASS = -1e9  # a logit; in float16 it is −∞, which is as good


@keras.saving.register_keras_serializable(package="leap_tf")
class OfKnownClasses(keras.layers.Layer):
    """Logits of −10⁹ for what is no class of the task; takes [logits, classes [batch]].

    They have no probability and get no gradient.
    """

    def call(self, inputs):
        logits, classes = inputs
        exists = tf.range(tf.shape(logits)[-1]) < classes[:, tf.newaxis]
        return tf.where(exists, logits, tf.constant(_NO_CLASS, logits.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable(package="leap_tf")
class HeadBank(keras.layers.Layer):
    """As many linear heads as tasks; every example is given to that of its task.

    Takes [features, number of the task, classes of the task], the last two [batch]. A task may
    have fewer classes than a head has units, see `OfKnownClasses`.

    Args:
        heads: how many.
        units: outputs of a head.
        kernel_initializer: how each head's kernel is drawn.
        **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, heads: int, units: int, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.of_known_classes = OfKnownClasses(dtype=self.dtype_policy)

    def build(self, input_shape):
        features = input_shape[0][-1]

        def each_head_for_itself(shape, dtype=None):
            return tf.stack(
                [
                    reseeded(self.kernel_initializer, head)(shape[1:], dtype)
                    for head in range(shape[0])
                ]
            )

        self.kernel = self.add_weight(
            shape=(self.heads, features, self.units),
            initializer=each_head_for_itself,
            name="kernel",
        )
        self.bias = self.add_weight(
            shape=(self.heads, self.units), initializer="zeros", name="bias"
        )

    def call(self, inputs):
        features, task, classes = inputs
        kernel, bias = tf.gather(self.kernel, task), tf.gather(self.bias, task)
        logits = tf.einsum("bf,bfu->bu", features, kernel) + bias
        return self.of_known_classes([logits, classes])

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def multi_headed(model: keras.Model, head: str, heads: int) -> keras.Model:
    """Builds a model with a bank of heads in the place of one; all other layers are shared.

    Training the new model trains the encoder of the old one.

    Args:
        model: a built functional or sequential model of one input and one output.
        head: name of its last layer, a Dense layer without activation on [batch, features].
        heads: how many heads the new model has.

    Returns:
        A model from (the inputs of `model`, int32 [batch] numbers of heads, int32 [batch] how many
        of the outputs are classes of the task) to its outputs.

    Raises:
        ValueError: the layer is not there, is not such a layer, or is not the last.
    """
    layer = require_head(model, head)
    task = keras.Input((), dtype="int32", name="task")
    classes = keras.Input((), dtype="int32", name="classes")
    bank = HeadBank(
        heads,
        layer.units,
        layer.kernel_initializer,
        dtype=layer.dtype_policy,
        name=f"{head}_bank",
    )
    return keras.Model(
        [model.inputs[0], task, classes],
        bank([layer.input, task, classes]),
        name=f"{model.name}_heads",
    )
