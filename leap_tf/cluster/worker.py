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
    """The answer of a worker to one call.

    Attributes:
        host, process: name of the worker's machine, and its process id.
        task: name of the task in the worker's study; empty if no task was run.
        failure: description of an error, or None.
        result: the encoded result; empty if there is none.
    """

    host: str
    process: int
    task: str = ""
    failure: str | None = None
    result: bytes = b""


class TaskWorker:
    """Holds a study and runs its tasks.

    Args:
        factory: builds the study.
        own_process: whether the worker has its process to itself. TensorFlow then uses one thread.
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
            return _reply(failure=_described(error))
        return _reply()

    def load(self, weights: Sequence[np.ndarray], version: int) -> None:
        """Loads weights.

        Weights that do not fit are refused when a task needs them, see `run`.

        Args:
            weights: one array per variable of the trainer's problem.
            version: number of these weights, which every `run` names.
        """
        self._version = None
        variables = self._study.trainer.problem.variables if self._study else []
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [value.shape for value in weights]:
            self._refusal = (
                f"its study has other variables than the driver: {shapes}, and not "
                f"{[value.shape for value in weights]}"
            )
            return
        for variable, value in zip(variables, weights):
            variable.assign(np.array(value))  # a copy: Ray may reuse its memory
        self._version = version

    def run(self, kind: str, version: int, spec: TaskSpec) -> bytes:
        """Runs a task and returns an encoded `Reply`.

        Args:
            kind: "train" or "evaluate".
            version: number of the weights to start from.
            spec: the task.
        """
        try:
            if self._study is None or version != self._version:
                raise ValueError(f"This worker does not have weights {version}; {self._refusal}.")
            problem = self._study.trainer.problem
            run = {"train": problem.train, "evaluate": problem.evaluate}[kind]
            result = encode(run(spec))
            return _reply(task=problem.sampler.resolve(spec).name, result=result)
        except Exception as error:
            return _reply(failure=_described(error))


def _reply(**fields) -> bytes:
    return encode(Reply(platform.node(), os.getpid(), **fields))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
