"""Joint training: one encoder trained on all tasks at once, with a head for each task.

The module also has the layers and tasks that joint training shares with HAT and Progressive Nets.
Models with parts for single tasks take (inputs, number of the task, classes of the task).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import ArrayTask, one_thread_options
from leap_tf.errors import whole_number
from leap_tf.functional.checks import check_labels
from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.leap import Reptile
from leap_tf.tasks import Task, TaskDistribution, batches_of, listed_tasks

_UNKNOWN_CLASSES = 2**31 - 1  # for a task that does not state its number of classes
_NO_CLASS = -1e9  # a logit; −∞ in float16, with the same effect


class EndpointLearner(Reptile):
    """Moves the initialization to the parameters at the end of training.

    This is Reptile with the required meta-optimizer SGD(1.0), which sets the initialization to θᴷ.
    Training therefore continues on one network, without an inner and an outer loop.
    """

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        meta_optimizer = setup.meta_optimizer
        plain = keras.optimizers.SGD(1.0, name=meta_optimizer.name).get_config()
        if type(meta_optimizer) is not keras.optimizers.SGD or meta_optimizer.get_config() != plain:
            raise ValueError(
                f"{type(self).__name__} moves the initialization to the end of training, so its "
                "meta_optimizer must be keras.optimizers.SGD(1.0) without momentum, clipping or "
                "decay. Set the learning rate on the inner_optimizer."
            )
        return super().plan(setup)

    def _head(self, setup):
        """Returns the only name in `task_layers`."""
        if len(setup.task_layers) != 1:
            raise ValueError(
                f"{type(self).__name__} makes a copy of the output layer for every task and needs "
                "the name of that layer, for example task_layers=['head']. Received: "
                f"{list(setup.task_layers)}."
            )
        return setup.task_layers[0]


class JointTraining(EndpointLearner):
    """Trains a shared encoder on all tasks together, with a head for every task.

    This is the baseline "multi-headed finetuning" of Flennerhag et al. (2019). The batches of the
    tasks of a meta-batch are mixed, and each is trained on with the head of its task. A meta-step
    makes as many gradient steps as another learner would on all its tasks together. The inner
    optimizer is reset at every meta-step. Training heads are kept from meta-step to meta-step; an
    evaluation task gets a new head.

    Requires the default meta-optimizer SGD(1.0), and `task_layers=[head]`, the name of a Dense
    layer that is the model's output. If tasks differ in their number of classes, the head must have
    as many units as the largest task. Without `task_layers`, all tasks share the whole model, head
    included, and evaluation starts from it.

    Args:
        heads: the number of heads, which is the largest number of training tasks.

    Raises:
        TypeError, ValueError: `heads` is not a whole number, or below 1.

    Example:

        >>> import keras, leap_tf
        >>> model = leap_tf.conv_net((8, 8, 1), classes=3, blocks=2)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> options = {"learner": leap_tf.JointTraining(heads=20), "task_layers": ["head"]}
        >>> trainer = leap_tf.MetaTrainer(model, loss, keras.optimizers.SGD(0.1), **options)
    """

    def __init__(self, heads: int = 50):
        self.heads = whole_number("heads", heads, 1)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        if setup.stopping:
            raise ValueError(
                "JointTraining trains on a mixture of tasks and cannot stop one of them early. "
                "Leave stopping out."
            )
        heads = self.heads if setup.task_layers else None
        plan = dataclasses.replace(
            super().plan(setup),
            steps=setup.steps_per_task * setup.meta_batch_size,
            sample_tasks=functools.partial(_sample_mixture, heads=heads),
        )
        if heads is None:
            return plan
        model = multi_headed(setup.model, self._head(setup), heads)
        return dataclasses.replace(plan, models=[model])


def _sample_mixture(distribution, count, meta_step, rng, heads):
    """Samples a mixture of tasks, which are numbered if there are heads for them."""
    if heads is None:
        return [MixedTask(distribution.sample(count, rng))]
    numbers = task_numbers(distribution, heads)
    tasks = distribution.sample(count, rng)
    return [MixedTask([NumberedTask(numbers[task.name], task) for task in tasks])]


def multi_headed(model: keras.Model, head: str, heads: int) -> keras.Model:
    """Builds a model with many heads in place of one, that shares all other layers.

    Its inputs are those of `model`, int32 [batch] number of the head, and int32 [batch] classes of
    the task. For the name of the head, see `check_head`.
    """
    layer = check_head(model, head)
    task = keras.Input((), dtype="int32", name="task")
    classes = keras.Input((), dtype="int32", name="classes")
    options = {"dtype": layer.dtype_policy, "name": f"{head}_per_task"}
    task_heads = TaskHeads(heads, layer.units, layer.kernel_initializer, **options)
    logits = task_heads([layer.input, task, classes])
    return keras.Model([model.inputs[0], task, classes], logits, name=f"{model.name}_heads")


@keras.saving.register_keras_serializable(package="leap_tf")
class KnownClassesMask(keras.layers.Layer):
    """Sets logits beyond the classes of a task to −10⁹: probability zero, and no gradient.

    Inputs are [logits, int32 [batch] classes of the task].
    """

    def call(self, inputs):
        logits, classes = inputs
        exists = tf.range(tf.shape(logits)[-1]) < classes[:, tf.newaxis]
        return tf.where(exists, logits, tf.constant(_NO_CLASS, logits.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable(package="leap_tf")
class TaskHeads(keras.layers.Layer):
    """A linear head for every task; each example passes through the head of its task.

    Inputs are [features, int32 [batch] number of the task, int32 [batch] classes of the task]. A
    task may have fewer classes than a head has units, see `KnownClassesMask`. Heads start with
    different values even if `kernel_initializer` has a seed.
    """

    def __init__(self, heads: int, units: int, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.mask = KnownClassesMask(dtype=self.dtype_policy)

    def build(self, input_shape):
        def draw_kernels(shape, dtype=None):
            initializers = [reseeded(self.kernel_initializer, head) for head in range(shape[0])]
            return tf.stack([draw(shape[1:], dtype) for draw in initializers])

        shape = (self.heads, input_shape[0][-1], self.units)
        self.kernel = self.add_weight(shape=shape, initializer=draw_kernels, name="kernel")
        self.bias = self.add_weight((self.heads, self.units), "zeros", name="bias")

    def call(self, inputs):
        features, task, classes = inputs
        kernel, bias = tf.gather(self.kernel, task), tf.gather(self.bias, task)
        logits = tf.einsum("bf,bfu->bu", features, kernel) + bias
        return self.mask([logits, classes])

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class MixedTask:
    """Batches of several tasks, one of each in every round, in an order shuffled every round."""

    def __init__(self, members: Sequence[Task]):
        self.members = members
        self.name = f"mixture of {len(members)} tasks"

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns endless mixed batches. A member whose batches end is repeated."""
        count = len(self.members)

        def round_order(number):
            round_seed = tf.stack([tf.constant(seed, tf.int64), number])
            positions = tf.range(count, dtype=tf.int64)
            return tf.random.experimental.stateless_shuffle(positions, round_seed)

        streams = [
            batches_of(task, "train_batches", seed + position).repeat()
            for position, task in enumerate(self.members)
        ]
        turns = tf.data.Dataset.counter().map(round_order).unbatch()
        mixture = tf.data.Dataset.choose_from_datasets(streams, turns, stop_on_empty_dataset=True)
        return mixture.with_options(one_thread_options())

    def test_batches(self) -> tf.data.Dataset:
        """Raises NotImplementedError: mixtures are only for training."""
        raise NotImplementedError("A mixture of tasks has no held-out examples; its members do.")


class NumberedTask:
    """A task whose inputs become (inputs, number, classes), the last two int32 [batch]."""

    def __init__(self, number: int, task: Task):
        self.number = number
        self.name = task.name
        self._task = task
        if (
            isinstance(task, ArrayTask)
            and task.classes
            and np.asarray(task.train[1]).dtype.kind in "iu"
        ):
            check_labels(task, task.classes, -1)  # losses can ignore the label −1

    @property
    def validation_batches(self) -> Callable[[], tf.data.Dataset]:
        """The method of the task; an AttributeError if the task has none."""
        _ = self._task.validation_batches  # type: ignore[attr-defined]  # may raise AttributeError
        return lambda: self._held_out("validation_batches")

    def train_batches(self, seed: int) -> tf.data.Dataset:
        return self._numbered("train_batches", seed)

    def test_batches(self) -> tf.data.Dataset:
        return self._held_out("test_batches")

    def _held_out(self, method):
        return self._numbered(method)

    def _numbered(self, method, *arguments):
        classes = getattr(self._task, "classes", None) or _UNKNOWN_CLASSES

        def add(inputs, targets, *weights):
            size = tf.shape(tf.nest.flatten(inputs)[0])[:1]
            return (inputs, tf.fill(size, self.number), tf.fill(size, classes)), targets, *weights

        return batches_of(self._task, method, *arguments).map(add)


def task_numbers(distribution: TaskDistribution, most: int) -> dict[str, int]:
    """Returns the number of each task of a distribution, by the name of the task.

    Raises:
        ValueError: the distribution has no task list, over `most` tasks, or two of the same name.
    """
    tasks = listed_tasks(distribution)
    if tasks is None:
        raise ValueError(
            f"{type(distribution).__name__} has no fixed list of tasks, so the model cannot hold a "
            "part for each of them. Use FiniteTasks."
        )
    if len(tasks) > most:
        raise ValueError(f"There are {len(tasks)} tasks, and the learner can hold at most {most}.")
    numbers = {task.name: number for number, task in enumerate(tasks)}
    if len(numbers) < len(tasks):
        raise ValueError("Two tasks have the same name. Give every task a different one.")
    return numbers


def check_head(model: keras.Model, head: str) -> keras.layers.Dense:
    """Returns the head of a model if heads for single tasks can replace it.

    Raises:
        ValueError: the model has several inputs or outputs, or the head is not its last layer,
            not a linear Dense layer with a bias that starts at 0, or is regularized or constrained.
    """
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "The model must be functional or sequential with one input and one output; "
            f"{model.name!r} is a {type(model).__name__} of another form."
        )
    layer = next((layer for layer in model.layers if layer.name == head), None)
    if not isinstance(layer, keras.layers.Dense) or layer is not model.layers[-1]:
        raise ValueError(
            f"The head {head!r} must be the model's last layer, and a Dense layer; the model has "
            f"{[f'{type(layer).__name__} {layer.name!r}' for layer in model.layers]}."
        )
    zeros = layer.use_bias and isinstance(layer.bias_initializer, keras.initializers.Zeros)
    if keras.activations.serialize(layer.activation) != "linear" or not zeros:
        raise ValueError(
            f"The head {head!r} must have a bias that starts at zero, and no activation. Move the "
            "activation into the loss with from_logits=True."
        )
    if has_penalty(layer):
        raise ValueError(
            f"The head {head!r} has a regularizer or constraint, which heads of single tasks "
            "cannot have. Build the model without them."
        )
    return layer


def has_penalty(layer: keras.Layer) -> bool:
    """Returns whether a regularizer or constraint acts on the layer, in addition to the loss."""
    return any(
        part.activity_regularizer
        or any(variable.regularizer or variable.constraint for variable in part.variables)
        for part in layer._flatten_layers()
    )


def reseeded(
    initializer: keras.initializers.Initializer, *indices: int
) -> keras.initializers.Initializer:
    """Returns a copy of an initializer. A fixed seed is replaced by one for these indices."""
    settings = initializer.get_config()
    if isinstance(settings.get("seed"), int):
        sequence = np.random.SeedSequence([settings["seed"], *indices])
        settings = {**settings, "seed": int(sequence.generate_state(1)[0] >> 1)}
    return type(initializer).from_config(settings)
