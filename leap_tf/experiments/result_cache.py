"""A pool that keeps what tasks of the meta-step under way came to, for when the run is killed.

A visit to a game may take an hour, and a meta-step many of them. Without this, a restart makes the
whole meta-step again, with the same results; with it, only those tasks that were not finished.

    folder/<hash of all weights>/<place>_<seed>_<steps>.npz

The weights are those that the meta-step starts from, so results of another one never fit.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Generator, Sequence
from typing import Any

import keras
import numpy as np

from leap_tf.experiments.run_directory import replacing
from leap_tf.serialization import Message, SerializationError, decode, encode, is_serializable
from leap_tf.training import Job, SeededTask, TaskPool

_LOGGER = logging.getLogger("leap_tf")


class CachingPool:
    """Trains on another pool, and on each task of a meta-step once, however often it starts.

    Results of variables that cannot be written (bfloat16) are not kept.

    Args:
        pool: does the work.
        folder: for this pool alone; what is there of other meta-steps is removed.
    """

    def __init__(self, pool: TaskPool, folder: str | os.PathLike):
        self._pool = pool
        self._folder = pathlib.Path(folder)

    def map(
        self, job: Job[Any], weights: Sequence[keras.Variable], tasks: Sequence[SeededTask]
    ) -> Generator[Any, None, None]:
        if job.name != "train" or not all(is_serializable(each.numpy().dtype) for each in weights):
            yield from self._pool.map(job, weights, tasks)
            return
        folder = self._folder / _digest(weights)
        self._remove_others(folder)
        files = [
            folder / f"{place}_{seeded.seed}_{seeded.steps}.npz"
            for place, seeded in enumerate(tasks)
        ]
        kept = [_read(file, job) for file in files]
        missing = {
            id(seeded): file for seeded, file, result in zip(tasks, files, kept) if result is None
        }

        def keep(seeded: SeededTask, result: Any) -> None:
            _keep(result, seeded, missing[id(seeded)])
            if job.done:
                job.done(seeded, result)

        to_do = [seeded for seeded in tasks if id(seeded) in missing]
        keeping = dataclasses.replace(job, done=keep)
        with contextlib.closing(self._pool.map(keeping, weights, to_do)) as made:
            for seeded, result in zip(tasks, kept):
                if result is None:
                    yield next(made)
                else:
                    if job.done:
                        job.done(seeded, result)
                    yield result

    def clear(self) -> None:
        """Removes what is kept, once training is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_others(self, folder):
        if self._folder.exists():
            for other in self._folder.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)


def _digest(weights):
    digest = hashlib.sha256()
    for variable in weights:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def _keep(result, seeded, file):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_bytes(encode(Message(seeded.task.name, result.parts())))
    except OSError as error:
        _LOGGER.warning("What %s came to is not kept: %s", seeded.task.name, error)


def _read(file, job):
    """What a file keeps; None if there is none, or nothing to be used."""
    if not file.exists():
        return None
    try:
        return job.read(decode(file.read_bytes()).parts)
    except SerializationError as error:
        _LOGGER.warning("%s is not used, and the task done again: %s", file, error)
        return None
