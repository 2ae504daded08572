"""A multi-layer perceptron, as small problems use it."""

from collections.abc import Sequence

import keras


def mlp(
    inputs: int = 1, outputs: int = 1, hidden: Sequence[int] = (40, 40), activation: str = "relu"
) -> keras.Model:
    """Builds a multi-layer perceptron with a linear output layer named "head".

    Args:
        inputs: features of an example.
        outputs: units of the output layer.
        hidden: units of each hidden layer. The default is that of Finn et al. 2017.
        activation: of the hidden layers.

    Returns:
        A built Keras model from [batch, inputs] to [batch, outputs].
    """
    layers = [keras.layers.Dense(units, activation=activation) for units in hidden]
    return keras.Sequential(
        [keras.layers.Input((inputs,)), *layers, keras.layers.Dense(outputs, name="head")],
        name="mlp",
    )
