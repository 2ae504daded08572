"""One encoder, a head for every task: the model that multi-headed finetuning trains."""

import keras
import tensorflow as tf

_NO_CLASS = -1e9  # a logit; in float16 it is −∞, which is as good


@keras.saving.register_keras_serializable(package="leap_tf")
class HeadBank(keras.layers.Layer):
    """As many linear heads as tasks; every example is given to that of its task.

    Takes [features, number of the task, classes of the task]. A task that has fewer classes than
    a head has units gets logits of −10⁹ for the others: they have no probability and no gradient.

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

    def build(self, input_shape):
        features = input_shape[0][-1]

        def each_head_for_itself(shape, dtype=None):
            initializer = type(self.kernel_initializer)
            settings = self.kernel_initializer.get_config()
            heads = []
            for _ in range(shape[0]):
                if settings.get("seed") is not None:
                    settings = {**settings, "seed": settings["seed"] + 1}
                heads.append(initializer.from_config(settings)(shape[1:], dtype))
            return tf.stack(heads)

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
        exists = tf.range(self.units) < classes[:, tf.newaxis]
        return tf.where(exists, logits, tf.constant(_NO_CLASS, logits.dtype))

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
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"A multi-headed model is made of a functional or sequential one with one input and "
            f"one output, and {model.name!r} is a {type(model).__name__} of another form."
        )
    layer = next((layer for layer in model.layers if layer.name == head), None)
    if not isinstance(layer, keras.layers.Dense) or layer is not model.layers[-1]:
        raise ValueError(
            f"The head {head!r} must be the model's last layer, and a Dense layer; the model has "
            f"{[f'{type(layer).__name__} {layer.name!r}' for layer in model.layers]}."
        )
    if keras.activations.serialize(layer.activation) != "linear" or not layer.use_bias:
        raise ValueError(
            f"The head {head!r} must have a bias and no activation. Give the activation to the "
            "loss, as from_logits=True."
        )
    if any((layer.kernel_regularizer, layer.bias_regularizer, layer.kernel_constraint)):
        raise ValueError(f"The head {head!r} has a regularizer or constraint; banks have none.")
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
