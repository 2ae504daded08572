"""What goes wrong with a cluster, apart from tasks.

A study as a worker has it, and how a worker comes to have it.

What a worker does, without Ray: build a replica, take weights, run tasks.

An error of a task or of building the replica goes back as a message; it is never raised, since
Ray would pickle it.
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from leap_tf.serialization import Message, Parts, encode
from leap_tf.tasks import TaskSplits
from leap_tf.training import MetaLoop, TaskAddress, TaskPoolError, one_thread_per_task


class ClusterError(TaskPoolError):
    """The cluster cannot do the work."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """The driver's study once more: the same trainer, and the same tasks.

    Attributes:
        trainer: built as the driver's; its pool is never used.
        tasks: the distribution that is trained on, and the lists that are judged.
    """

    trainer: MetaLoop
    tasks: TaskSplits


class Recipe(Protocol):
    """Makes a replica. It is pickled, so it is a function of a module, or an object of a class
    of one, with no more inside than numbers and text.

    If it has an attribute `environment`, these variables are set in a worker before Python starts.
    """

    def __call__(self) -> Replica:
        """Builds the study, the same one wherever it is called."""


_NOTHING = Parts({}, {})


class TaskWorker:
    """Holds a replica of the study and does what it is asked for with its tasks.

    Args:
        recipe: makes the replica.
        own_process: whether TensorFlow is this worker's alone, and told to use one thread.
    """

    def __init__(self, recipe: Recipe, own_process: bool = True):
        self._recipe = recipe
        self._own_process = own_process
        self._replica: Replica | None = None
        self._version: int | None = None
        self._refusal = "it has got no weights yet"

    def start(self) -> bytes:
        """Builds the replica; returns a message.

        It tells host and process, or of the failure if the replica could not be built.
        """
        try:
            if self._own_process:
                one_thread_per_task(1)
            self._replica = self._recipe()
        except Exception as error:
            return encode(Message("", _NOTHING, _described(error)))
        return encode(Message("", Parts({"host": platform.node(), "process": os.getpid()}, {})))

    def load(self, weights: Sequence[np.ndarray], version: int) -> None:
        """Takes the present weights.

        Args:
            weights: one array for each of the trainer's `task_variables`.
            version: a number for them, which every `run` names.
        """
        self._version = None
        variables = self._replica.trainer.task_variables if self._replica else []
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [value.shape for value in weights]:
            self._refusal = (
                f"its replica has other variables than the driver: {shapes}, and not "
                f"{[value.shape for value in weights]}"
            )
            return
        for variable, value in zip(variables, weights):
            variable.assign(np.array(value))  # a copy: Ray's memory may be used again
        self._version = version

    def run(self, job: str, version: int, address: TaskAddress, seed: int, steps: int) -> bytes:
        """Does a job with a task.

        Args:
            job: "train" or "evaluate".
            version: of the weights to start from.
            address: of the task.
            seed: of the visit.
            steps: gradient steps on it.

        Returns:
            A message with the result or the failure.
        """
        try:
            if self._replica is None or version != self._version:
                raise ValueError(f"This worker does not have weights {version}; {self._refusal}.")
            trainer, tasks = self._replica.trainer, self._replica.tasks
            name, result = trainer.run_again(job, tasks, TaskAddress(*address), seed, steps)
            return encode(Message(name, result.parts()))
        except Exception as error:
            return encode(Message("", _NOTHING, _described(error)))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
