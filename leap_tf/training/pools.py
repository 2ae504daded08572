"""Pools that run the tasks of a meta-step, and the threads that TensorFlow uses for them.

The outer loop only calls `pool.map`, so it does not depend on where tasks run: on threads of this
process (`MetaTrainer` has the `ThreadPool`) or on other machines. If a task raises, its
`TaskFailure` is yielded instead of a result.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import keras
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.training.sampling import TaskSpec

Item = TypeVar("Item")
Result = TypeVar("Result")


class TaskPoolError(LeapError, RuntimeError):
    """A pool cannot continue."""


class TaskFailedError(TaskPoolError):
    """A task raised an error, or no worker could finish it."""


@dataclasses.dataclass(frozen=True)
class TaskFailure:
    """A task that has no result."""

    task: str  # the name of the task
    seed: int  # the seed of this run of the task
    message: str  # the reason
    error: Exception | None = None  # None if the task ran in another process

    def __str__(self) -> str:
        return f"Task {self.task!r} with seed {self.seed} failed: {self.message}"

    def as_error(self) -> Exception:
        """Returns the exception, or a `TaskFailedError` with the message."""
        return self.error or TaskFailedError(str(self))


@dataclasses.dataclass(frozen=True)
class Job(Generic[Result]):
    """The work of a pool on each task."""

    kind: str  # "train" or "evaluate": the method of the problem that a worker process calls
    run: Callable[[TaskSpec], Result]  # runs a task in this process
    _: dataclasses.KW_ONLY
    task_name: Callable[[TaskSpec], str]  # returns the name of a task
    result_type: type  # the dataclass of the results
    # Checks a result from another process; raises SerializationError if it does not fit.
    check: Callable[[Result], None]
    # All variables that results depend on. They do not change while the pool runs.
    variables: Sequence[keras.Variable]
    # Called with every result as soon as it is in this process, in any order and from any thread.
    # It is not called for failures.
    on_result: Callable[[TaskSpec, Result], None] | None = None


class TaskPool(Protocol):
    """Runs jobs on tasks."""

    remote: bool  # whether tasks run in other processes, which can only run those of their study

    def map(
        self, job: Job[Result], specs: Sequence[TaskSpec]
    ) -> Generator[Result | TaskFailure, None, None]:
        """Yields the result or the failure of each task, in the order of the tasks.

        Closing the iterator early lets started tasks finish and starts no others. The pool calls
        the job's `on_result`.

        Raises:
            TaskPoolError: the pool cannot continue. The message names the likely cause.
        """


def failure_of(job: Job, spec: TaskSpec, error: BaseException) -> TaskFailure:
    """Returns the failure of a task that raised. Re-raises KeyboardInterrupt and SystemExit."""
    if not isinstance(error, Exception):
        raise error
    return TaskFailure(job.task_name(spec), spec.seed, f"{type(error).__name__}: {error}", error)


def submit_ahead(
    executor: concurrent.futures.Executor,
    threads: int,
    function: Callable[[Item], Any],
    items: Iterable[Item],
) -> Generator[tuple[Item, concurrent.futures.Future], None, None]:
    """Yields each item with the future of `function(item)`, in the order of the items.

    At most twice as many items as threads are submitted ahead of the one that is awaited, so
    finished results do not pile up behind a slow one. Closing the iterator early lets started
    items finish and starts no others.
    """
    submitted: collections.deque[tuple[Item, concurrent.futures.Future]] = collections.deque()
    try:
        for item in items:
            submitted.append((item, executor.submit(function, item)))
            if len(submitted) == 2 * threads:
                yield submitted.popleft()
        while submitted:
            yield submitted.popleft()
    finally:
        for _, future in submitted:
            future.cancel()
        concurrent.futures.wait([future for _, future in submitted])


def available_cores() -> int:
    """Returns the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_threads(parallel_tasks: int | None = None) -> None:
    """Gives each TensorFlow operation one thread, and runs one operation per parallel task.

    Splitting a small operation over all cores costs more than it gains: on two cores, two parallel
    tasks with one thread each are faster than two consecutive tasks with two threads each. Call
    this before anything else uses TensorFlow, models included.

    Args:
        parallel_tasks: tasks that run at the same time; by default one per core.

    Raises:
        RuntimeError: TensorFlow has started already with other settings.
    """
    tasks = parallel_tasks or available_cores()
    present = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if present == (1, tasks):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(tasks)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow has started already, so its threads can no longer be set. Call "
            "leap_tf.configure_threads() before anything else, models included."
        ) from error
