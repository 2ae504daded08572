"""How TensorFlow shares the cores: one thread a task, and as many tasks as cores.

Splitting each small operation over all cores costs more than it brings. Two tasks side by
side, one thread each, get through more steps than one after the other on two.

Where tasks run: a job, the present weights, and the results in the order of the tasks.

The outer loop sees nothing of a pool but `map`, so tasks can run in threads or on other machines
without its knowing. A pool elsewhere has replicas of the study. To it travel the name of the
job, the weights, and of each task its address, seed and steps; what comes back, `Job.read` checks.

A task that raises does not end the map: its `TaskFailure` comes in its place.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import keras
import tensorflow as tf

from leap_tf.serialization import Parts
from leap_tf.training.problem import SeededTask


def available_cores() -> int:
    """Returns the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread_per_task(parallel_tasks: int | None = None) -> None:
    """Tells TensorFlow to give each operation one thread, and as many operations as tasks.

    Call it before anything else touches TensorFlow, models included.

    Args:
        parallel_tasks: tasks that will run at the same time; by default one per core.

    Raises:
        RuntimeError: TensorFlow is running already with other settings.
    """
    tasks = parallel_tasks or available_cores()
    wanted = (1, tasks)
    present = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if present == wanted:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(tasks)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow is running already, so its threads can no longer be set. Call "
            "leap_tf.one_thread_per_task() first of all, before a model is built."
        ) from error


Item = TypeVar("Item")
Result = TypeVar("Result")


class TaskPoolError(RuntimeError):
    """A pool cannot work."""


class TaskFailedError(TaskPoolError):
    """A task raised, or nothing could finish it."""


@dataclasses.dataclass(frozen=True)
class TaskFailure:
    """A task that has no result.

    Attributes:
        task: its name.
        seed: of this visit.
        message: what went wrong.
        error: what was raised, if that was in this process.
    """

    task: str
    seed: int
    message: str
    error: Exception | None = None

    def __str__(self) -> str:
        return f"Task {self.task!r} with seed {self.seed} failed: {self.message}"

    def as_error(self) -> Exception:
        """Returns what was raised, or a `TaskFailedError` that tells of it."""
        return self.error or TaskFailedError(str(self))


@dataclasses.dataclass(frozen=True)
class Job(Generic[Result]):
    """What is to be done with every task of a map.

    Attributes:
        name: what a replica of the study is asked to do, "train" or "evaluate".
        run: does it here.
        read: makes the result of what came from a replica; raises UnfitPartsError.
        done: called with every result as soon as it is in this process, before its turn to be
            yielded, by any thread. Failures are none.
    """

    name: str
    run: Callable[[SeededTask], Result]
    read: Callable[[Parts], Result]
    done: Callable[[SeededTask, Result], None] | None = None


class TaskPool(Protocol):
    """Does a job with tasks."""

    def map(
        self, job: Job[Result], weights: Sequence[keras.Variable], tasks: Sequence[SeededTask]
    ) -> Generator[Result | TaskFailure, None, None]:
        """Yields the result or the failure of each task, in the order of the tasks.

        Closing the iterator early lets started tasks end and starts no others.

        Args:
            job: what to do. The pool calls its `done`.
            weights: all variables that results depend on. They keep their values meanwhile.
            tasks: what to do it with.

        Raises:
            TaskPoolError: the pool cannot go on, and what to look at.
        """


class ThreadPool:
    """Runs tasks on threads of this process; TensorFlow releases Python's lock while it works.

    Args:
        threads: how many tasks run at the same time.

    Raises:
        ValueError: `threads` is not positive.
    """

    def __init__(self, threads: int):
        if threads < 1:
            raise ValueError(f"A pool needs at least one thread, not {threads}.")
        self.threads = threads
        # For good: TensorFlow keeps a few kilobytes for every thread it has ever seen.
        self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def map(
        self, job: Job[Result], weights: Sequence[keras.Variable], tasks: Sequence[SeededTask]
    ) -> Generator[Result | TaskFailure, None, None]:
        def attempt(seeded: SeededTask) -> Result | TaskFailure:
            try:
                result = job.run(seeded)
            except Exception as error:
                return failure_of(seeded, error)
            if job.done:
                job.done(seeded, result)
            return result

        return _map_on(self._executor, self.threads, attempt, tasks)


def failure_of(seeded: SeededTask, error: Exception) -> TaskFailure:
    """Returns the failure of a task that raised."""
    return TaskFailure(seeded.task.name, seeded.seed, f"{type(error).__name__}: {error}", error)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, in the order of the items.

    At most twice as many items as threads are started ahead of the one that is awaited, so
    finished results do not pile up behind a slow one. Closing the iterator early lets started
    items end and starts no others.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        yield from _map_on(executor, threads, function, items)


def _map_on(executor, threads, function, items):
    started: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            started.append(executor.submit(function, item))
            if len(started) == 2 * threads:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        for future in started:
            future.cancel()
        concurrent.futures.wait(started)
