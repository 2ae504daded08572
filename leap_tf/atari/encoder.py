"""The network of Mnih et al. 2013, and the actor-critic that stands on it.

The encoder is meta-learned and shared by all games. The heads belong to a game, since games
differ in their number of actions.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

# Heads, and the gain of their first weights. The policy's is small, so that odds are nearly equal.
_GAINS = {"policy": 0.01, "value": 1.0}


@keras.saving.register_keras_serializable("leap_tf")
class PixelConvolution(keras.layers.Conv2D):
    """A convolution of pixels 0–255 that sees them as 0–1.

    It divides its kernel by 255 and not the screens, which are two hundred times as many numbers.
    """

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel / 255.0)


def mnih_2013(
    image_size: int = 84, filters: Sequence[int] = (16, 32), units: int = 256
) -> keras.Model:
    """Builds the encoder of "Playing Atari with Deep Reinforcement Learning", section 4.1.

    8×8 convolution with stride 4, 4×4 with stride 2, a dense layer; all with ReLU.

    Args:
        image_size: height and width of the screens.
        filters: of the two convolutions.
        units: of the dense layer.

    Returns:
        A built model from screens, [batch, image_size, image_size, 3] pixels 0–255, to features
        [batch, units].
    """
    layers = keras.layers
    screens = keras.Input((image_size, image_size, 3))
    features = PixelConvolution(filters[0], 8, 4, activation="relu", name="conv1")(screens)
    features = layers.Conv2D(filters[1], 4, 2, activation="relu", name="conv2")(features)
    features = layers.Flatten(name="flatten")(features)
    features = layers.Dense(units, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")


def actor_critic(encoder: keras.Model, actions: int) -> keras.Model:
    """Builds linear heads "policy" and "value" on an encoder, whose variables are shared.

    It draws nothing from global generators, so other threads may be at work.

    Args:
        encoder: a built model from screens to [batch, features], without other state than its
            trainable variables.
        actions: how many the game has.

    Returns:
        A model from screens to logits [batch, actions] and values [batch].

    Raises:
        ValueError: the encoder has other state, such as that of batch norm.
    """
    if encoder.non_trainable_variables:
        names = [variable.path for variable in encoder.non_trainable_variables]
        raise ValueError(
            f"The encoder has state that is not trained, which the agent would not carry along: "
            f"{names}. Use one without batch norm and dropout."
        )
    features = encoder(encoder.inputs[0])
    logits, values = (
        keras.layers.Dense(
            units, kernel_initializer=_initializer(name, 0, _GAINS[name]), name=name
        )(features)
        for name, units in (("policy", int(actions)), ("value", 1))
    )
    values = keras.layers.Reshape((), name="scalar")(values)
    return keras.Model(encoder.inputs[0], [logits, values], name="actor_critic")


def agent_of(encoder: keras.Model, parameters: Sequence[tf.Tensor]) -> keras.Model:
    """Builds an actor-critic that shares nothing with the encoder and has these values.

    Args:
        encoder: which has the architecture.
        parameters: one per variable of `trained_variables`.
    """
    *_, policy_bias, _, _ = parameters
    model = actor_critic(keras.models.clone_model(encoder), policy_bias.shape[-1])
    for variable, value in zip(trained_variables(model), parameters, strict=True):
        variable.assign(value)
    return model


def encoder_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of an actor-critic that all games share, in order."""
    (encoder,) = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return list(encoder.trainable_variables)


def trained_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables of an actor-critic: those of the encoder, then those of the heads."""
    heads = [variable for name in _GAINS for variable in model.get_layer(name).trainable_variables]
    return [*encoder_variables(model), *heads]


def fresh_heads(
    model: keras.Model, seed: int, value_gain: float = _GAINS["value"]
) -> list[tf.Tensor]:
    """Draws new values for the heads of an actor-critic.

    Args:
        model: of `actor_critic`; it is not changed.
        seed: the same seed gives the same values, on any thread.
        value_gain: Euclidean norm of the value head's first weights.

    Returns:
        One per variable of the heads, in the order of `trained_variables`.
    """
    values = []
    for name, gain in (_GAINS | {"value": value_gain}).items():
        kernel, bias = model.get_layer(name).trainable_variables
        values += [
            tf.convert_to_tensor(_initializer(name, seed, gain)(kernel.shape)),
            tf.zeros(bias.shape),
        ]
    return values


def forward(
    model: keras.Model, parameters: Sequence[tf.Tensor], screens: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs an actor-critic with other values for its variables.

    Args:
        model: of `actor_critic`.
        parameters: one per variable of `trained_variables`.
        screens: [batch, height, width, 3] uint8.

    Returns:
        Logits [batch, actions] and values [batch].
    """
    mapping = list(zip(trained_variables(model), parameters, strict=True))
    with keras.StatelessScope(state_mapping=mapping):
        return model(tf.cast(screens, tf.float32))


def _initializer(name, seed, gain):
    stream = np.random.default_rng([seed, list(_GAINS).index(name)])
    return keras.initializers.Orthogonal(gain, seed=int(stream.integers(2**31)))
