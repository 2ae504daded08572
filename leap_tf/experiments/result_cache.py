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

import numpy as np

from leap_tf.experiments.run_directory import replacing
from leap_tf.serialization import SerializationError, decode, encode, is_serializable
from leap_tf.training import Job, TaskPool, TaskSpec

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

    @property
    def remote(self) -> bool:
        """Whether the pool beneath runs tasks in other processes."""
        return self._pool.remote

    def map(self, job: Job[Any], specs: Sequence[TaskSpec]) -> Generator[Any, None, None]:
        serializable = all(is_serializable(each.numpy().dtype) for each in job.variables)
        if job.kind != "train" or not serializable:
            yield from self._pool.map(job, specs)
            return
        folder = self._folder / _digest(job.variables)
        for other in self._folder.glob("*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        cached = {spec: _read(_file(folder, spec), job) for spec in specs}

        def write(spec: TaskSpec, result: Any) -> None:
            _write(result, job.task_name(spec), _file(folder, spec))
            if job.on_result:
                job.on_result(spec, result)

        missing = [spec for spec in specs if cached[spec] is None]
        writing = dataclasses.replace(job, on_result=write)
        with contextlib.closing(self._pool.map(writing, missing)) as results:
            for spec, result in cached.items():
                if result is None:
                    yield next(results)
                else:
                    if job.on_result:
                        job.on_result(spec, result)
                    yield result

    def clear(self) -> None:
        """Deletes the cache. Call it when training has finished."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _digest(variables):
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def _file(folder, spec):
    return folder / f"{spec.index}_{spec.seed}_{spec.steps}.npz"


def _write(result, task, file):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_bytes(encode(result))
    except OSError as error:
        _LOGGER.warning("Could not cache the result of task %s: %s", task, error)


def _read(file, job):
    """Returns the result in a file; None if there is none, or it cannot be used."""
    if not file.exists():
        return None
    try:
        result = decode(file.read_bytes(), job.result_type)
        job.check(result)
        return result
    except SerializationError as error:
        _LOGGER.warning("Ignoring the cached result %s and repeating the task: %s", file, error)
        return None
