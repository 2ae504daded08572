"""Study factories for tests of pools: small studies, one with faults, and wrong ones."""

import dataclasses
import os
import pathlib

import keras
import numpy as np

import leap_tf
from leap_tf.tasks import FiniteTasks, TaskSplits
from leap_tf.training import MetaTrainer, Study
from tests.learner_contract import CROSS_ENTROPY, blobs, small_model


def splits(tasks=6):
    return TaskSplits(
        FiniteTasks([blobs(number) for number in range(tasks)]),
        [blobs(number) for number in range(20, 23)],
        [blobs(number) for number in range(30, 33)],
    )


def trainer(learner=None, meta_batch_size=6, task_layers=(), meta_rate=0.1, seed=3, **options):
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
        seed=seed,
        **options,
    )


def leap(**options):
    return Study(trainer(**options), splits())


def hat(**options):
    """Builds a study with persistent state."""
    made = trainer(leap_tf.HAT(6, 4), 1, ("head",), meta_rate=1.0, **options)
    return Study(made, splits())


def meta_sgd(**options):
    """Builds a study with learner variables."""
    return Study(trainer(leap_tf.MetaSGD(), **options), splits())


class FaultyTask:
    """A task that fails if it finds a file that says so.

    Args:
        number: of the task, which otherwise is `blobs(number)`.
        folder: may hold files "kill<number>", which the first process that finds them removes, and
            "raise<number>" and "always_kill<number>", which stay.
    """

    def __init__(self, number, folder):
        self._task = blobs(number)
        self._folder = pathlib.Path(folder)
        self.name = f"faulty {number}"
        self._number = number

    def train_batches(self, seed):
        if self._finds("always_kill", remove=False):
            os._exit(7)
        if self._finds("kill"):
            os._exit(7)
        if self._finds("raise", remove=False):
            raise OSError("the disk of this task is on fire")
        return self._task.train_batches(seed)

    def test_batches(self):
        return self._task.test_batches()

    def _finds(self, fault, remove=True):
        file = self._folder / f"{fault}{self._number}"
        try:
            file.unlink() if remove else file.stat()
        except FileNotFoundError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class FaultyStudy:
    """Builds a study of faulty tasks."""

    folder: str

    def __call__(self, **options):
        tasks = splits()
        faulty = [FaultyTask(number, self.folder) for number in range(6)]
        return Study(
            trainer(**options), TaskSplits(FiniteTasks(faulty), tasks.validation, tasks.test)
        )


def unbuildable():
    raise FileNotFoundError("no data set here")


def another():
    """Builds a study with another seed, and with validation and test tasks exchanged."""
    tasks = splits()
    return Study(trainer(seed=4), TaskSplits(tasks.train, tasks.test, tasks.validation))


def weights(study):
    return [variable.numpy() for variable in study.trainer.problem.variables]


def assert_same(arrays, others):
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)
