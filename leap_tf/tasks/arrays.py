"""A task over arrays in memory: shuffled once an epoch, batched, drawn by a seed.

A meta-learner opens tasks thousands of times. So the pipeline is traced once for all tasks
that prepare and batch alike, with arrays and seed as tensors, and opening one traces nothing.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from leap_tf.checks import whole_number


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
