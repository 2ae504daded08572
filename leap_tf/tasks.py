"""Tasks and distributions over tasks: two protocols, tasks from arrays, and sinusoids."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from leap_tf.errors import whole_number


class Task(Protocol):
    """One learning problem; any object with these members is one.

    A task must give the same batches for the same seed on any thread. All tasks of a distribution
    must give batches of the same structure and dtypes; the number of examples may differ.
    """

    @property
    def name(self) -> str:
        """The name of the task in messages and tables."""

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns training batches, (inputs, targets) or (inputs, targets, sample_weight).

        Args:
            seed: decides order and augmentation. A task is trained on many times, each time with
                another seed.

        Returns:
            A data set that may be endless; the trainer takes as many batches as it needs.
        """

    def test_batches(self) -> tf.data.Dataset:
        """Returns batches of all held-out examples once. None may be a training example.

        Sample weights apply to loss and error, so examples of weight 0 are padding.
        """


class TaskDistribution(Protocol):
    """A distribution over tasks; any object with this method is one."""

    def sample(self, count: int, rng: np.random.Generator) -> Sequence[Task]:
        """Samples the `count` tasks of a meta-batch; `rng` is the only source of randomness."""


@dataclasses.dataclass(frozen=True)
class TaskSplits:
    """The tasks of a study: a distribution to meta-train on, and lists to evaluate.

    The held-out examples of validation and test tasks must not be training examples of any task.
    """

    train: TaskDistribution
    validation: Sequence[Task]
    test: Sequence[Task]


class ArrayTask:
    """A task whose training and held-out examples are arrays in memory.

    The input pipeline is traced once for all tasks with the same shapes, dtypes and options; a
    new iterator traces nothing.

    Args:
        name: the name of the task in messages and tables.
        train: inputs and targets to train on, with the examples along the first dimension.
        test: held-out inputs and targets.
        batch_size: examples in a training batch. Batches continue across epochs, so all have
            this size, and each example occurs once an epoch.
        test_batch_size: examples in a held-out batch.
        prepare: from a batch of inputs to inputs of the model, for example uint8 pixels to
            floats in [0, 1]. It runs in the pipeline. Pass the same function object to all tasks:
            each function is traced separately.

    Raises:
        TypeError: a batch size is not a whole number.
        ValueError: a batch size is below 1, there are no examples, or inputs and targets differ
            in number.

    Example:

        >>> import leap_tf, numpy as np
        >>> inputs, targets = np.zeros((8, 2), "float32"), np.arange(8)
        >>> task = leap_tf.ArrayTask("zeros", (inputs, targets), (inputs, targets), batch_size=4)
        >>> next(iter(task.train_batches(seed=0)))[0].shape
        TensorShape([4, 2])
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
                    "There must be a target for each input, and at least one."
                )
        self.name = name
        self.train = train
        self.test = test
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.test_batch_size = whole_number("test_batch_size", test_batch_size, 1)
        self.prepare = prepare or tf.identity

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns endless batches, in a new order every epoch."""
        pipeline = _training_pipeline(self.batch_size, self.prepare, *_specs(self._train_tensors))
        # A NumPy number, since TensorFlow keeps a tensor for every Python number it receives.
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


class FiniteTasks:
    """A distribution over a fixed list of tasks, sampled without replacement.

    A meta-batch larger than the list takes every task before it repeats one, as in the original
    code.

    Raises:
        ValueError: `tasks` is empty.

    Example:

        >>> import leap_tf, numpy as np
        >>> tasks = leap_tf.FiniteTasks(leap_tf.sinusoid_splits(test_tasks=3).test)
        >>> len({task.name for task in tasks.sample(3, np.random.default_rng(0))})
        3
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
class Sinusoids:
    """Sinusoid regression: y = A sin(x + φ), with another amplitude and phase for every task.

    A is uniform in [0.1, 5], φ in [0, π], x in [−5, 5].

    Source: Finn et al., "Model-Agnostic Meta-Learning", ICML 2017, section 5.1.

    Args:
        examples: number of training examples of a task, and of held-out examples.
        batch_size: examples in a training batch.

    Example:

        >>> import leap_tf, numpy as np
        >>> [task] = leap_tf.Sinusoids(examples=30).sample(1, np.random.default_rng(0))
        >>> task.train[0].shape
        (30, 1)
    """

    examples: int = 100
    batch_size: int = 10

    def sample(self, count: int, rng: np.random.Generator) -> list[ArrayTask]:
        return [self._sample_one(rng) for _ in range(count)]

    def _sample_one(self, rng):
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
    *,
    validation_tasks: int = 20,
    test_tasks: int = 50,
) -> TaskSplits:
    """Returns a distribution of sinusoids, and fixed tasks for validation and test.

    Args:
        seed: decides the fixed tasks.
        data_dir: unused; all functions that return `TaskSplits` have it.
        examples, batch_size: see `Sinusoids`.
        validation_tasks, test_tasks: number of fixed tasks.
    """
    sinusoids = Sinusoids(examples, batch_size)
    rng = np.random.default_rng([seed, 0])
    return TaskSplits(
        train=sinusoids,
        validation=sinusoids.sample(validation_tasks, rng),
        test=sinusoids.sample(test_tasks, rng),
    )


def pixels_to_floats(pixels: tf.Tensor) -> tf.Tensor:
    """Scales uint8 pixels to float32 in [0, 1]."""
    # TensorFlow replaces an ordinary division by a constant in some graphs only. This division
    # gives the same bits in pipelines and in served models.
    return tf.math.divide_no_nan(tf.cast(pixels, tf.float32), 255.0)


def order_of_epoch(examples: tf.Tensor, seed: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the order of int32 `examples` in an epoch, from int64 scalars `seed` and `epoch`."""
    return tf.random.experimental.stateless_shuffle(
        tf.range(examples), seed=tf.stack([seed, epoch])
    )


def _specs(tensors):
    """Specs of the tensors with any number of examples."""
    return [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors]


@functools.lru_cache
def _training_pipeline(batch_size, prepare, inputs_spec, targets_spec):
    # TensorFlow counts traces of a function over all its closures, and of each partial by itself.
    signature = [inputs_spec, targets_spec, tf.TensorSpec((), tf.int64)]

    def pipeline(inputs, targets, seed):
        def order(epoch):
            return order_of_epoch(tf.shape(inputs)[0], seed, epoch)

        batches = tf.data.Dataset.counter().map(order).rebatch(batch_size)
        batches = batches.map(lambda indices: tf.ensure_shape(indices, [batch_size]))
        batches = batches.map(_gather(inputs, targets, prepare))
        return batches.prefetch(2).with_options(one_thread_options())

    return tf.function(functools.partial(pipeline), input_signature=signature)


@functools.lru_cache
def _test_pipeline(batch_size, prepare, inputs_spec, targets_spec):
    def pipeline(inputs, targets):
        indices = tf.data.Dataset.range(tf.shape(inputs, out_type=tf.int64)[0]).batch(batch_size)
        batches = indices.map(_gather(inputs, targets, prepare))
        return batches.prefetch(2).with_options(one_thread_options())

    return tf.function(functools.partial(pipeline), input_signature=[inputs_spec, targets_spec])


def _gather(inputs, targets, prepare):
    return lambda indices: (prepare(tf.gather(inputs, indices)), tf.gather(targets, indices))


def one_thread_options() -> tf.data.Options:
    """Returns options for one thread per pipeline, since many tasks run in parallel."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False
    return options
