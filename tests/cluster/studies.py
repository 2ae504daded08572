"""Small studies that driver and workers build alike, and some that misbehave."""

import dataclasses
import os
import pathlib
import time

import keras
import numpy as np

import leap_tf
from leap_tf.cluster import Study
from leap_tf.tasks import FiniteTasks, TaskSplits
from leap_tf.training import MetaTrainer
from tests.learner_contract import CROSS_ENTROPY, blobs, small_model


def splits(tasks=6):
    return TaskSplits(
        FiniteTasks([blobs(number) for number in range(tasks)]),
        [blobs(number) for number in range(20, 23)],
        [blobs(number) for number in range(30, 33)],
    )


def trainer(learner=None, meta_batch_size=6, task_layers=(), meta_rate=0.1, **options):
    keras.utils.set_random_seed(0)
    return MetaTrainer(
        small_model(),
        CROSS_ENTROPY,
        keras.optimizers.SGD(0.3),
        keras.optimizers.SGD(meta_rate),
        learner=learner or leap_tf.Leap(),
        steps_per_task=4,
        meta_batch_size=meta_batch_size,
        task_layers=task_layers,
        seed=3,
        **options,
    )


def leap(**options):
    return Study(trainer(**options), splits())


def hat(**options):
    """One with lasting state."""
    made = trainer(leap_tf.HAT(6, 4), 1, ("head",), meta_rate=1.0, **options)
    return Study(made, splits())


def meta_sgd(**options):
    """One with variables of the learner's own."""
    return Study(trainer(leap_tf.MetaSGD(), **options), splits())


class Troubled:
    """A task in which something happens, told by a file that the first one to look takes away.

    Args:
        number: of the blobs it otherwise is.
        folder: where there may be a file "kill", "hang" or "raise", or "always_kill".
    """

    def __init__(self, number, folder):
        self._task = blobs(number)
        self._folder = pathlib.Path(folder)
        self.name = f"troubled {number}"
        self._number = number

    def train_batches(self, seed):
        if self._there(f"always_kill{self._number}", take=False):
            os._exit(7)
        if self._there(f"kill{self._number}"):
            os._exit(7)
        if self._there(f"hang{self._number}"):
            time.sleep(600)
        if self._there(f"raise{self._number}", take=False):
            raise OSError("the disk of this task is on fire")
        return self._task.train_batches(seed)

    def test_batches(self):
        return self._task.test_batches()

    def _there(self, name, take=True):
        try:
            (self._folder / name).unlink() if take else (self._folder / name).stat()
        except FileNotFoundError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class TroubledStudy:
    """Makes a study of such tasks."""

    folder: str

    def __call__(self, **options):
        tasks = splits()
        troubled = [Troubled(number, self.folder) for number in range(6)]
        return Study(
            trainer(**options), TaskSplits(FiniteTasks(troubled), tasks.validation, tasks.test)
        )


def unbuildable():
    raise FileNotFoundError("no data set here")


def other_seed():
    made = trainer()
    made._draws._seed = 4
    return Study(made, splits())


def weights(replica):
    return [variable.numpy() for variable in replica.trainer.task_variables]


def assert_same(arrays, others):
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)
