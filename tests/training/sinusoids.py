"""A small trainer on sinusoids, for the tests of the outer loop."""

import functools

import keras
import numpy as np

import leap_tf
from leap_tf.tasks import ArrayTask

MSE = keras.losses.MeanSquaredError()


def trainer(seed=0, model=None, **options):
    keras.utils.set_random_seed(int(seed))
    settings = {
        "loss": MSE,
        "inner_optimizer": keras.optimizers.SGD(0.02),
        "meta_optimizer": keras.optimizers.Adam(0.02),
        "steps_per_task": 8,
        "meta_batch_size": 5,
        "pool": 2,
        "seed": seed,
    }
    return leap_tf.MetaTrainer(model or leap_tf.mlp(), **(settings | options))


def held_out(count=6):
    return leap_tf.Sinusoids().sample(count, np.random.default_rng(99))


def weights(of):
    return [array.copy() for array in of.model.get_weights()]


@functools.cache
def weights_after(meta_steps):
    """Returns the weights of `trainer()` after training on sinusoids without any interruption."""
    straight = trainer()
    straight.fit(leap_tf.Sinusoids(), meta_steps, verbose=False)
    return weights(straight)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def constant_task(name, value, count=12):
    inputs = np.full((count, 1), value, np.float32)
    return ArrayTask(name, (inputs, inputs), (inputs, inputs), batch_size=4)
