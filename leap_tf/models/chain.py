"""A model as a chain of blocks and a head: what HAT and Progressive Nets take apart.

A block is a layer with weights of units (convolution or dense) and all that follows it up to the
next such layer: normalization, pooling, activation. What only changes the shape before the head,
such as flattening, belongs to no block.
"""

from typing import NamedTuple

import keras

# Layers whose last dimension counts units.
WITH_UNITS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_OF_SHAPE = (
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)


class Chain(NamedTuple):
    """The layers of a model in order.

    Attributes:
        blocks: at least one, each a list of layers.
        shaping: layers between the last block and the head.
        head: the last layer, dense and linear.
    """

    blocks: list[list[keras.Layer]]
    shaping: list[keras.Layer]
    head: keras.layers.Dense


def chain_of(model: keras.Model, head: str) -> Chain:
    """Takes a model apart.

    Args:
        model: a built functional or sequential model, one layer after the other.
        head: name of its last layer.

    Raises:
        ValueError: the model is no chain, or its head is not a linear Dense layer, or a layer has
            a regularizer or constraint: they would move what belongs to other tasks.
    """
    last = require_head(model, head)
    layers = [each for each in model.layers if not isinstance(each, keras.layers.InputLayer)]
    for layer in layers:
        if _is_pulled(layer):
            raise ValueError(
                f"Layer {layer.name!r} has a regularizer or constraint, which would move weights "
                "that belong to other tasks. Build the model without."
            )
    if not isinstance(model, keras.Sequential):
        _require_one_after_the_other(model, layers)
    blocks: list[list[keras.Layer]] = []
    shaping: list[keras.Layer] = []
    for layer in layers[:-1]:
        if isinstance(layer, WITH_UNITS):
            if shaping:
                blocks[-1].extend(shaping)
                shaping = []
            blocks.append([layer])
        elif isinstance(layer, _OF_SHAPE) or shaping:
            shaping.append(layer)
        elif blocks:
            blocks[-1].append(layer)
        else:
            raise ValueError(
                f"{model.name!r} begins with {layer.name!r}, and must begin with a convolution or "
                "a dense layer. Prepare inputs in the tasks."
            )
    if not blocks:
        raise ValueError(f"{model.name!r} has no layer with units before its head {head!r}.")
    return Chain(blocks, shaping, last)


def _require_one_after_the_other(model, layers):
    value = model.inputs[0]
    for layer in layers:
        if len(layer._inbound_nodes) != 1 or layer.input is not value:
            raise ValueError(
                f"{model.name!r} is not one layer after the other: {layer.name!r} takes something "
                "else than the output of the layer before it, or is used twice."
            )
        value = layer.output


def require_head(model: keras.Model, head: str) -> keras.layers.Dense:
    """Returns the head, after checking that another can take its place.

    Raises:
        ValueError: the model has several inputs or outputs, or the head is not its last layer, or
            not linear with a bias, or has penalties.
    """
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"The model must be a functional or sequential one with one input and one output, and "
            f"{model.name!r} is a {type(model).__name__} of another form."
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
    if _is_pulled(layer):
        raise ValueError(f"The head {head!r} has a regularizer or constraint; banks have none.")
    return layer


def _is_pulled(layer):
    """Whether something else than the loss of the task moves a layer's variables."""
    return any(
        part.activity_regularizer
        or any(variable.regularizer or variable.constraint for variable in part.variables)
        for part in layer._flatten_layers()
    )


def head_name(task_layers, learner: str) -> str:
    """Returns the one name in `task_layers`.

    Raises:
        ValueError: there are several, or none.
    """
    if len(task_layers) != 1:
        raise ValueError(
            f"{learner} needs the name of the one layer that each task has for itself: "
            f"task_layers=['head'] or the like, and not {list(task_layers)}."
        )
    return task_layers[0]
