"""Learners that train one network on one task after another, and the model blocks they work on.

HAT and Progressive Nets have no inner and outer loop. A meta-step trains on one task, and the
meta-update moves the network to the end of that training. Tasks are numbered, and the number
selects the part of the network that belongs to the task. The last number is that of the evaluation
task.
"""

import dataclasses
from typing import NamedTuple

import keras
import numpy as np

from leap_tf.errors import whole_number
from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import (
    EndpointLearner,
    NumberedTask,
    check_head,
    has_penalty,
    task_numbers,
)
from leap_tf.tasks import Task, TaskDistribution

# Layers whose last output dimension counts units.
UNIT_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_RESHAPING_LAYERS = (
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)


class SequentialLearner(EndpointLearner):
    """Trains one network on one task after another. There are at most `tasks` training tasks."""

    def __init__(self, tasks: int = 50):
        self.tasks = whole_number("tasks", tasks, 1)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        name = type(self).__name__
        if setup.meta_batch_size != 1:
            raise ValueError(
                f"{name} trains on one task after another, each from the end of the last one. Set "
                f"meta_batch_size to 1; it is {setup.meta_batch_size}."
            )
        plan = super().plan(setup)
        if decay := setup.inner_optimizer.weight_decay:
            raise ValueError(
                f"inner_optimizer has weight_decay={decay}, which would shrink the weights of "
                f"other tasks. {name} needs an optimizer without weight decay."
            )
        return dataclasses.replace(
            plan,
            sample_tasks=self._next_task,
            evaluation_task=lambda task: self.numbered_task(self.tasks, task),
            trains_parts=True,
        )

    def numbered_task(self, number: int, task: Task) -> NumberedTask:
        """Returns a task with the inputs that the learner's model takes."""
        return NumberedTask(number, task)

    def _next_task(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        """Returns one task; the tasks take turns in their order."""
        task_numbers(distribution, self.tasks)  # checks the distribution
        tasks = distribution.tasks  # type: ignore[attr-defined]
        number = meta_step % len(tasks)
        return [self.numbered_task(number, tasks[number])]


class ModelBlocks(NamedTuple):
    """The layers of a model in order, as blocks and a head.

    A block begins with a convolution or dense layer and includes all layers up to the next one:
    normalization, pooling, activation. The layers between the last block and the head begin with
    one that only changes the shape: flattening, global pooling.
    """

    blocks: list[list[keras.Layer]]
    reshaping: list[keras.Layer]
    head: keras.layers.Dense


def split_into_blocks(model: keras.Model, head: str) -> ModelBlocks:
    """Splits the layers of a built model into blocks and a head.

    Raises:
        ValueError: the model is not a chain, does not begin with a convolution or dense layer, has
            no head (see `check_head`), or a layer has a regularizer or constraint.
    """
    last = check_head(model, head)
    layers = [each for each in model.layers if not isinstance(each, keras.layers.InputLayer)]
    for layer in layers:
        if has_penalty(layer):
            raise ValueError(
                f"Layer {layer.name!r} has a regularizer or constraint, which would change weights "
                "that belong to other tasks. Build the model without them."
            )
    value = model.inputs[0]
    for layer in [] if isinstance(model, keras.Sequential) else layers:
        if len(layer._inbound_nodes) != 1 or layer.input is not value:
            raise ValueError(
                f"{model.name!r} is not one layer after the other: the input of {layer.name!r} is "
                "not the output of the layer before it, or the layer is used twice."
            )
        value = layer.output
    blocks: list[list[keras.Layer]] = []
    reshaping: list[keras.Layer] = []
    for layer in layers[:-1]:
        if isinstance(layer, UNIT_LAYERS):
            if reshaping:
                blocks[-1] += reshaping
                reshaping = []
            blocks.append([layer])
        elif isinstance(layer, _RESHAPING_LAYERS) or reshaping:
            reshaping.append(layer)
        elif blocks:
            blocks[-1].append(layer)
        else:
            raise ValueError(
                f"{model.name!r} begins with {layer.name!r}, and must begin with a convolution or "
                "a dense layer. Prepare the inputs in the tasks instead."
            )
    if not blocks:
        raise ValueError(f"{model.name!r} has no layer with units before its head {head!r}.")
    return ModelBlocks(blocks, reshaping, last)
