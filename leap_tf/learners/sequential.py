"""A model as a chain of blocks and a head: what HAT and Progressive Nets take apart.

A block is a layer with weights of units (convolution or dense) and all that follows it up to the
next such layer: normalization, pooling, activation. What only changes the shape before the head,
such as flattening, belongs to no block.

Learners without an inner and an outer loop: they train on one task after another.

In the terms of the protocol a meta-step is a visit to a task, and the meta-update goes to where it
ended. Tasks have numbers, which tell what in the model is theirs; the last number is kept for
the task that is judged, which is adapted to like all the others were.
"""

import dataclasses
from typing import NamedTuple

import keras
import numpy as np

from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import (
    EndpointLearner,
    NumberedTask,
    is_pulled,
    number_of_each,
    require_head,
)
from leap_tf.tasks import Task, TaskDistribution

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
        if is_pulled(layer):
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


class SequentialLearner(EndpointLearner):
    """Trains one network on one task after another.

    Tasks are numbered, and their number decides which part of the network is theirs. The last
    number belongs to the evaluation task. Needs `meta_batch_size=1` and the meta-optimizer
    SGD(1.0). Weight decay is refused, since it would move the weights of other tasks.

    Args:
        tasks: the largest number of training tasks.

    Raises:
        ValueError: `tasks` is below 1.
    """

    def __init__(self, tasks: int = 50):
        if tasks < 1:
            raise ValueError(f"tasks must be at least 1, and is {tasks}.")
        self.tasks = tasks

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        name = type(self).__name__
        if setup.meta_batch_size != 1:
            raise ValueError(
                f"{name} trains on one task after another, each from where the last one ended. Set "
                f"meta_batch_size to 1; it is {setup.meta_batch_size}."
            )
        plan = super().plan(setup)
        decay = setup.inner_optimizer.weight_decay
        if decay:
            raise ValueError(
                f"inner_optimizer has weight_decay={decay}, which would shrink other tasks' "
                f"weights. {name} needs an optimizer without it."
            )
        return dataclasses.replace(
            plan,
            sample_tasks=self._next_task,
            evaluation_task=lambda task: self.numbered(self.tasks, task),
            trains_parts=True,
        )

    def numbered(self, number: int, task: Task) -> NumberedTask:
        """Returns a task in the form that the models take."""
        return NumberedTask(number, task)

    def _next_task(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        """Returns one task. All tasks take turns in their order, so none is left out."""
        number_of_each(distribution, self.tasks)
        tasks = distribution.tasks  # type: ignore[attr-defined]
        number = meta_step % len(tasks)
        return [self.numbered(number, tasks[number])]
