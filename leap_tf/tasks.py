"""What a task is, and what a distribution over tasks is. Two small protocols.

Anything with these attributes will do; nothing needs to inherit from here. A task must give
the same batches for the same seed, on any thread, and every task of a distribution gives
batches of the same structure and dtypes (the number of examples in a batch may differ).

A task over arrays in memory: shuffled once an epoch, batched, drawn by a seed.

A meta-learner opens tasks thousands of times. So the pipeline is traced once for all tasks
that prepare and batch alike, with arrays and seed as tensors, and opening one traces nothing.

Sinusoid regression: y = A sin(x + φ), one amplitude and phase a task.

Finn et al., "Model-Agnostic Meta-Learning", ICML 2017, section 5.1: A in [0.1, 5], φ in
[0, π], x in [−5, 5]. Small enough for tests and documentation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from leap_tf.errors import whole_number


class Task(Protocol):
    """One learning problem."""

    @property
    def name(self) -> str:
        """What messages and tables call the task."""

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns training batches, (inputs, targets) or (inputs, targets, sample_weight).

        Args:
            seed: decides order and augmentation. A meta-learner visits a task many times,
                each time with another seed.

        Returns:
            A data set that may be endless; the trainer takes as many batches as it needs.
        """

    def test_batches(self) -> tf.data.Dataset:
        """Returns all held-out examples once, in batches. None of them is ever trained on.

        Weights count in the mean loss and error, so examples of weight 0 are padding.
        """


class TaskDistribution(Protocol):
    """Where tasks come from."""

    def sample(self, count: int, rng: np.random.Generator) -> Sequence[Task]:
        """Draws the tasks of one meta-batch.

        Args:
            count: how many.
            rng: the only source of randomness that may be used.
        """


class FiniteTasks:
    """A fixed set of tasks: each meta-batch is a fresh shuffle of them.

    If the meta-batch is larger than the set, whole shuffles follow one another, so that no
    task is drawn twice as often as another (as in the original code).

    Args:
        tasks: at least one task.

    Raises:
        ValueError: `tasks` is empty.
    """

    def __init__(self, tasks: Sequence[Task]):
        if not tasks:
            raise ValueError("FiniteTasks needs at least one task to sample from.")
        self.tasks = list(tasks)

    def sample(self, count: int, rng: np.random.Generator) -> list[Task]:
        order: list[int] = []
        while len(order) < count:
            order.extend(rng.permutation(len(self.tasks)).tolist())
        return [self.tasks[index] for index in order[:count]]


@dataclasses.dataclass(frozen=True)
class TaskSplits:
    """Tasks to meta-train on, to validate on meanwhile, and to judge by in the end.

    No example that a validation or test task is judged by is one that another trains on.
    """

    train: TaskDistribution
    validation: Sequence[Task]
    test: Sequence[Task]


class ArrayTask:
    """A task whose training and held-out examples are arrays.

    Args:
        name: what messages and tables call the task.
        train: inputs and targets to train on; the first dimension counts the examples.
        test: inputs and targets held out.
        batch_size: examples in a training batch. Batches run on across epochs, so all have
            this size, and each example comes once an epoch.
        test_batch_size: examples in a held-out batch.
        prepare: from a batch of inputs to what the model takes, for example uint8 pixels to
            floats in [0, 1]; runs in the pipeline. Give all tasks the same function object,
            or each is traced anew.

    Raises:
        TypeError: a batch size is no whole number.
        ValueError: a part is empty, inputs and targets differ in number, or a batch has no room.
    """

    def __init__(
        self,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        batch_size: int = 20,
        *,
        test_batch_size: int = 100,
        prepare: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ):
        for part, (inputs, targets) in (("train", train), ("test", test)):
            if len(inputs) != len(targets) or not len(inputs):
                raise ValueError(
                    f"Task {name!r}: {part} has {len(inputs)} inputs and {len(targets)} targets. "
                    "Give as many of one as of the other, and at least one."
                )
        self.name = name
        self.train = train
        self.test = test
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.test_batch_size = whole_number("test_batch_size", test_batch_size, 1)
        self.prepare = prepare or tf.identity

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns endless batches, every epoch in a new order."""
        pipeline = _training_pipeline(self.batch_size, self.prepare, *_specs(self._train_tensors))
        # Of NumPy's: for every Python number it is given TensorFlow keeps a tensor, for good.
        return pipeline(*self._train_tensors, tf.constant(np.int64(seed)))

    def test_batches(self) -> tf.data.Dataset:
        """Returns the held-out examples once, in order."""
        specs = _specs(self._test_tensors)
        return _test_pipeline(self.test_batch_size, self.prepare, *specs)(*self._test_tensors)

    @functools.cached_property
    def _train_tensors(self):
        return tuple(tf.convert_to_tensor(array) for array in self.train)

    @functools.cached_property
    def _test_tensors(self):
        return tuple(tf.convert_to_tensor(array) for array in self.test)


def pixels_to_floats(pixels: tf.Tensor) -> tf.Tensor:
    """Scales uint8 pixels to float32 in [0, 1]."""
    # TensorFlow makes a division by a constant a multiplication in some graphs and not in others;
    # this one it leaves alone, so pixels are the same to the bit in pipelines and when served.
    return tf.math.divide_no_nan(tf.cast(pixels, tf.float32), 255.0)


def order_of_epoch(examples: tf.Tensor, seed: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the order in which an epoch visits the examples of a task.

    Args:
        examples: how many there are, int32.
        seed, epoch: int64 scalars.

    Returns:
        [examples] int32, a permutation.
    """
    return tf.random.experimental.stateless_shuffle(
        tf.range(examples), seed=tf.stack([seed, epoch])
    )


def _specs(tensors):
    """Signatures of arrays with any number of examples, all else as it is."""
    return [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors]


@functools.lru_cache
def _training_pipeline(batch_size, prepare, inputs_spec, targets_spec):
    @tf.function(input_signature=[inputs_spec, targets_spec, tf.TensorSpec((), tf.int64)])
    def pipeline(inputs, targets, seed):
        def order(epoch):
            return order_of_epoch(tf.shape(inputs)[0], seed, epoch)

        batches = tf.data.Dataset.counter().map(order).rebatch(batch_size)
        batches = batches.map(lambda indices: tf.ensure_shape(indices, [batch_size]))
        batches = batches.map(_gather(inputs, targets, prepare))
        return batches.prefetch(2).with_options(one_thread_options())

    return pipeline


@functools.lru_cache
def _test_pipeline(batch_size, prepare, inputs_spec, targets_spec):
    @tf.function(input_signature=[inputs_spec, targets_spec])
    def pipeline(inputs, targets):
        indices = tf.data.Dataset.range(tf.shape(inputs, out_type=tf.int64)[0]).batch(batch_size)
        batches = indices.map(_gather(inputs, targets, prepare))
        return batches.prefetch(2).with_options(one_thread_options())

    return pipeline


def _gather(inputs, targets, prepare):
    return lambda indices: (prepare(tf.gather(inputs, indices)), tf.gather(targets, indices))


def one_thread_options() -> tf.data.Options:
    """Returns options that keep pipelines of parallel tasks from fighting for cores."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False
    return options


@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """An endless family of regression tasks from R to R.

    Args:
        examples: training examples of a task, and as many held-out ones.
        batch_size: examples in a training batch.
    """

    examples: int = 100
    batch_size: int = 10

    def sample(self, count: int, rng: np.random.Generator) -> list[ArrayTask]:
        return [self._draw(rng) for _ in range(count)]

    def _draw(self, rng):
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        inputs = rng.uniform(-5.0, 5.0, size=(2, self.examples, 1)).astype(np.float32)
        targets = (amplitude * np.sin(inputs + phase)).astype(np.float32)
        return ArrayTask(
            name=f"{amplitude:.2f} sin(x + {phase:.2f})",
            train=(inputs[0], targets[0]),
            test=(inputs[1], targets[1]),
            batch_size=self.batch_size,
        )


def sinusoid_splits(
    seed: int = 0,
    data_dir: str | None = None,
    examples: int = 100,
    batch_size: int = 10,
    validation_tasks: int = 20,
    test_tasks: int = 50,
) -> TaskSplits:
    """Makes a distribution of sinusoids and fixed tasks to validate and judge by.

    Args:
        seed: decides the fixed tasks.
        data_dir: unused, since nothing is read; every `splits` function takes it.
        examples, batch_size: as for `Sinusoids`.
        validation_tasks, test_tasks: how many fixed tasks of each kind.
    """
    family = Sinusoids(examples, batch_size)
    rng = np.random.default_rng([seed, 0])
    return TaskSplits(
        train=family,
        validation=family.sample(validation_tasks, rng),
        test=family.sample(test_tasks, rng),
    )
