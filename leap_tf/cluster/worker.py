"""A worker of a cluster, apart from Ray: it builds the study, loads weights and runs tasks.

Errors are returned as part of the reply. They are never raised, since Ray would pickle them.
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from leap_tf.serialization import encode
from leap_tf.training import Study, TaskPoolError, TaskSpec, configure_threads


class ClusterError(TaskPoolError):
    """The cluster cannot do the work."""


class StudyFactory(Protocol):
    """Builds a study, the same one in every process.

    Factories are pickled: use a module-level function, or an instance of a module-level class that
    holds only numbers and strings. If a factory has an attribute `environment`, a mapping, these
    environment variables are set in a worker before Python starts.
    """

    def __call__(self) -> Study:
        """Builds the study."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer of a worker to one call."""

    host: str  # name of the worker's machine
    process: int
    task: str = ""  # name of the task in the worker's study, if one was run
    failure: str | None = None  # description of an error
    result: bytes = b""  # encoded


class TaskWorker:
    """Holds the study of a factory and runs its tasks.

    If the worker has its process to itself, `own_process`, TensorFlow uses one thread.
    """

    def __init__(self, factory: StudyFactory, own_process: bool = True):
        self._factory = factory
        self._own_process = own_process
        self._study: Study | None = None
        self._version: int | None = None
        self._refusal = "it has received no weights yet"

    def start(self) -> bytes:
        """Builds the study and returns an encoded `Reply`."""
        try:
            if self._own_process:
                configure_threads(1)
            self._study = self._factory()
        except Exception as error:
            return _reply(failure=f"{type(error).__name__}: {error}")
        return _reply()

    def load(self, weights: Sequence[np.ndarray], version: int) -> None:
        """Loads weights, one array per variable of the trainer's problem.

        `run` names their `version`, and refuses a task if they do not fit.
        """
        self._version = None
        variables = self._study.trainer.problem.variables if self._study else []
        shapes, sent = [tuple(each.shape) for each in variables], [each.shape for each in weights]
        if shapes != sent:
            self._refusal = (
                f"its study has other variables than the driver: {shapes}, and not {sent}"
            )
            return
        for variable, value in zip(variables, weights):
            variable.assign(np.array(value))  # a copy: Ray may reuse its memory
        self._version = version

    def run(self, kind: str, version: int, spec: TaskSpec) -> bytes:
        """Runs a task ("train" or "evaluate") from a version of weights; returns a `Reply`."""
        try:
            if self._study is None or version != self._version:
                raise ValueError(f"This worker does not have weights {version}; {self._refusal}.")
            problem = self._study.trainer.problem
            run = {"train": problem.train, "evaluate": problem.evaluate}[kind]
            result = encode(run(spec))
            return _reply(task=problem.sampler.resolve(spec).name, result=result)
        except Exception as error:
            return _reply(failure=f"{type(error).__name__}: {error}")


def _reply(**fields) -> bytes:
    return encode(Reply(platform.node(), os.getpid(), **fields))
