"""Tasks that tell the model which of them they are, for models with parts of every task's own.

Tasks mixed into one stream, every batch with the number of its task.

Copies of one layer that do not start alike, even if its initializers have seeds.

One encoder, a head for every task: the model that multi-headed finetuning trains.

Learners that go to where training ended: the initialization is the network that is trained.

Multi-headed finetuning: train one encoder on all tasks at once, then give it a new head.

The strong baseline of the paper. There is no inner and outer loop: the batches of all tasks of
a meta-batch are mixed and trained on one after the other, each with its own task's head. In
the terms of the protocol the mixture is one long task, and the meta-update goes to where it
ended; the meta-optimizer must therefore be plain SGD with rate 1.
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.learners.base import (
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
    TrainingPlan,
    TrainingSetup,
)
from leap_tf.learners.reptile import displacement
from leap_tf.tasks import Task, TaskDistribution, one_thread_options


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


def is_pulled(layer):
    """Whether something else than the loss of the task moves a layer's variables."""
    return any(
        part.activity_regularizer
        or any(variable.regularizer or variable.constraint for variable in part.variables)
        for part in layer._flatten_layers()
    )


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
    if is_pulled(layer):
        raise ValueError(f"The head {head!r} has a regularizer or constraint; banks have none.")
    return layer


# What a task without a number of classes has: more than any model.
_ALL_CLASSES = 2**31 - 1


class NumberedTask:
    """A task whose inputs are (inputs, int32 [batch] its number, int32 [batch] its classes).

    Args:
        number: its number.
        task: the task.
    """

    def __init__(self, number: int, task: Task):
        self.number = number
        self.name = task.name
        self._task = task

    @property
    def validation_batches(self) -> Callable[[], tf.data.Dataset]:
        """That of the task; an AttributeError where it has none."""
        make_batches = self._task.validation_batches  # type: ignore[attr-defined]
        return lambda: self._held_out(make_batches())

    def train_batches(self, seed: int) -> tf.data.Dataset:
        return self._numbered(self._task.train_batches(seed))

    def test_batches(self) -> tf.data.Dataset:
        return self._held_out(self._task.test_batches())

    def _numbered(self, batches):
        return batches.map(numbering(self.number, self._task))

    def _held_out(self, batches):
        return self._numbered(batches)


def number_of_each(distribution: TaskDistribution, most: int) -> dict[str, int]:
    """Returns the number of each task, by its name.

    Raises:
        ValueError: the tasks are not a fixed list, or more than `most`, or share a name.
    """
    tasks = getattr(distribution, "tasks", None)
    if tasks is None:
        raise ValueError(
            f"{type(distribution).__name__} has no fixed list of tasks, so there cannot be "
            "something of its own for each. Use FiniteTasks."
        )
    if len(tasks) > most:
        raise ValueError(f"There are {len(tasks)} tasks, and the learner has room for {most}.")
    numbers = {task.name: number for number, task in enumerate(tasks)}
    if len(numbers) < len(tasks):
        raise ValueError("Each task needs a name of its own, which tells what in the model is its.")
    return numbers


def numbering(number: int, task: Task) -> Callable[..., tuple]:
    """Returns a function that adds a task's number and classes to the inputs of its batches."""
    classes = getattr(task, "classes", None) or _ALL_CLASSES

    def add_number(inputs, targets, *weights):
        size = tf.shape(tf.nest.flatten(inputs)[0])[:1]
        return (inputs, tf.fill(size, number), tf.fill(size, classes)), targets, *weights

    return add_number


class MixedTask:
    """Batches of several tasks in turns, in an order that is shuffled anew every round.

    Inputs become (inputs, int32 [batch] number of the task, int32 [batch] its classes).

    Args:
        members: from each task's number to the task.
    """

    def __init__(self, members: Sequence[tuple[int, Task]]):
        self.members = members
        self.name = f"mixture of {len(members)} tasks"

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns one batch of each member a round, until a member has no more."""
        count = len(self.members)

        def order_of_round(number):
            return tf.random.experimental.stateless_shuffle(
                tf.range(count, dtype=tf.int64),
                seed=tf.stack([tf.constant(seed, tf.int64), number]),
            )

        streams = [
            task.train_batches(seed + position).map(numbering(number, task))
            for position, (number, task) in enumerate(self.members)
        ]
        turns = tf.data.Dataset.counter().map(order_of_round).unbatch()
        mixture = tf.data.Dataset.choose_from_datasets(streams, turns, stop_on_empty_dataset=True)
        return mixture.with_options(one_thread_options())

    def test_batches(self) -> tf.data.Dataset:
        """Raises NotImplementedError: a mixture is only ever trained on."""
        raise NotImplementedError("A mixture of tasks has no held-out examples; its members have.")


def reseeded(
    initializer: keras.initializers.Initializer, *place: int
) -> keras.initializers.Initializer:
    """Returns an initializer that draws as the given one does, but other numbers at every place.

    Args:
        initializer: one without a seed draws anew anyway.
        *place: which copy it is for, not negative. The same place has the same numbers.
    """
    settings = initializer.get_config()
    if isinstance(settings.get("seed"), int):
        sequence = np.random.SeedSequence([settings["seed"], *place])
        settings = {**settings, "seed": int(sequence.generate_state(1)[0] >> 1)}
    return type(initializer).from_config(settings)


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


class EndpointLearner(StatelessLearner):
    """Moves the initialization to where training ended.

    The meta-gradient is θ⁰ − θᴷ and the meta-optimizer must be SGD(1.0), so the initialization
    becomes θᴷ: there is one network, and no inner and outer loop.
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(displacement(end), metrics={})

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        meta_optimizer = setup.meta_optimizer
        plain = keras.optimizers.SGD(1.0, name=meta_optimizer.name).get_config()
        if type(meta_optimizer) is not keras.optimizers.SGD or meta_optimizer.get_config() != plain:
            raise ValueError(
                f"{type(self).__name__} moves the initialization to where training ended, so its "
                "meta_optimizer must be keras.optimizers.SGD(1.0) without momentum, clipping or "
                "decay. The learning rate is the inner optimizer's."
            )
        return super().plan(setup)


class JointTraining(EndpointLearner):
    """Joint training of a shared encoder with a head for every task.

    The paper calls it multi-headed finetuning: train one encoder on all tasks at once, then give
    it a new head. It is the strong baseline of the paper. The batches of all tasks of a meta-batch
    are mixed and trained on one after another, each with the head of its task.

    Needs `task_layers=[head]`, one Dense layer that is the model's output. In training every task
    has a head of its own, kept from meta-step to meta-step; an evaluation task gets a new one.
    A meta-step makes as many gradient steps as that of another learner would over its tasks
    together. The inner optimizer is reset at every meta-step. Where tasks have different numbers
    of classes, the model's head must have as many units as the largest.

    Args:
        heads: the largest number of training tasks.

    Raises:
        ValueError: `heads` is below 1.
    """

    def __init__(self, heads: int = 50):
        if heads < 1:
            raise ValueError(f"heads must be at least 1, and is {heads}.")
        self.heads = heads

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        if setup.stopping:
            raise ValueError(
                "JointTraining trains on a mixture of tasks, none of which can be stopped alone. "
                "Leave stopping out."
            )
        head = head_name(setup.task_layers, type(self).__name__)
        return dataclasses.replace(
            super().plan(setup),
            models=[multi_headed(setup.model, head, self.heads)],
            steps=setup.steps_per_task * setup.meta_batch_size,
            sample_tasks=self._mixture,
        )

    def _mixture(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        numbers = number_of_each(distribution, self.heads)
        drawn = distribution.sample(count, rng)
        return [MixedTask([(numbers[task.name], task) for task in drawn])]
