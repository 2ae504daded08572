"""A pool that caches the results of the tasks of the current meta-step.

A task may take an hour, and a meta-step has many tasks. Without the cache, a killed run repeats its
whole meta-step; with it, only the unfinished tasks of that meta-step.

    folder/<hash of all weights>/<place>_<seed>_<steps>.npz

The weights are those at the start of the meta-step, so results of other meta-steps are never used.
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
from leap_tf.serialization import Message, MessageError, UnfitPartsError, can_travel, decode, encode
from leap_tf.training import Job, SeededTask, TaskPool

_LOGGER = logging.getLogger("leap_tf")


class CachingPool:
    """Caches the results of the tasks of the current meta-step.

    Results of variables that cannot be serialized (bfloat16) are not cached.

    Args:
        pool: the pool that trains on the tasks.
        folder: the folder of the cache, used by this pool only. Results of other meta-steps in it
            are deleted.
    """

    def __init__(self, pool: TaskPool, folder: str | os.PathLike):
        self._pool = pool
        self._folder = pathlib.Path(folder)

    def map(
        self, job: Job[Any], weights: Sequence[keras.Variable], tasks: Sequence[SeededTask]
    ) -> Generator[Any, None, None]:
        if job.name != "train" or not all(can_travel(each.numpy().dtype) for each in weights):
            yield from self._pool.map(job, weights, tasks)
            return
        folder = self._folder / _digest(weights)
        self._remove_others(folder)
        files = [
            folder / f"{place}_{seeded.seed}_{seeded.steps}.npz"
            for place, seeded in enumerate(tasks)
        ]
        cached = [_read(file, job) for file in files]
        missing = {
            id(seeded): file for seeded, file, result in zip(tasks, files, cached) if result is None
        }

        def write(seeded: SeededTask, result: Any) -> None:
            _write(result, seeded, missing[id(seeded)])
            if job.done:
                job.done(seeded, result)

        to_do = [seeded for seeded in tasks if id(seeded) in missing]
        writing = dataclasses.replace(job, done=write)
        with contextlib.closing(self._pool.map(writing, weights, to_do)) as results:
            for seeded, result in zip(tasks, cached):
                if result is None:
                    yield next(results)
                else:
                    if job.done:
                        job.done(seeded, result)
                    yield result

    def clear(self) -> None:
        """Deletes the cache. Call it when training has finished."""
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


def _write(result, seeded, file):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_bytes(encode(Message(seeded.task.name, result.parts())))
    except OSError as error:
        _LOGGER.warning("Could not cache the result of task %s: %s", seeded.task.name, error)


def _read(file, job):
    """Returns the result in a file; None if there is none, or it cannot be used."""
    if not file.exists():
        return None
    try:
        return job.read(decode(file.read_bytes()).parts)
    except (MessageError, UnfitPartsError) as error:
        _LOGGER.warning("Ignoring the cached result %s and repeating the task: %s", file, error)
        return None
