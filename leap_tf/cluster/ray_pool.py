"""A task pool of Ray actors.

To a worker travel its recipe, once; the weights, once a map; and of each task the name of the
job, address, seed and steps. Back come bytes without pickle (`wire`). Which worker does a task,
and how often it was begun, makes no difference to its result.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from leap_tf.cluster.scheduler import TaskBoard
from leap_tf.cluster.worker import ClusterError, Recipe
from leap_tf.serialization import MessageError, UnfitPartsError, can_travel, decode
from leap_tf.training import Job, SeededTask, TaskFailure

if TYPE_CHECKING:
    from leap_tf.cluster.worker_group import Crew


class RayPool:
    """Runs tasks on Ray actors, each with one CPU and a replica of the study.

    Workers start with the first map or with `start`, and tasks as soon as one of them is ready.
    A worker that dies, or is at a task for longer than the deadline, is replaced, and its task is
    begun again elsewhere. Use the pool as a context manager, or `close` it.

    Args:
        recipe: makes the replica of the study in every worker.
        workers: how many; by default as many as the cluster has CPUs when the pool starts.
        address: of a running Ray cluster, such as "auto" or "ray-head:6379". By default Ray is
            started on this machine, for this pool alone. A Ray that this process is connected to
            already is used as it is.
        deadline: seconds after which a task counts as hanging, the tracing of its graph included.
        attempts: how often a task is begun, if it loses its worker, before it counts as failed.
        start_seconds: how long to wait while no worker is ready.

    Raises:
        ClusterError: Ray is not installed.
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        recipe: Recipe,
        workers: int | None = None,
        address: str | None = None,
        deadline: float = 1800.0,
        attempts: int = 3,
        start_seconds: float = 300.0,
    ):
        if importlib.util.find_spec("ray") is None:
            raise ClusterError(
                "Ray is not installed. In a checkout of leap_tf, run: "
                "pip install --no-deps -r requirements-cluster.txt"
            )
        if (workers is not None and workers < 1) or attempts < 1:
            raise ValueError(
                f"workers and attempts must be at least 1, and are {workers}, {attempts}."
            )
        if deadline <= 0 or start_seconds <= 0:
            raise ValueError(
                f"deadline and start_seconds must be positive, and are {deadline}, {start_seconds}."
            )
        self._recipe = recipe
        self._workers = workers
        self._address = address
        self._deadline = deadline
        self._attempts = attempts
        self._start_seconds = start_seconds
        self._crew: Crew | None = None
        self._connected_here = False
        self._maps = 0

    def start(self) -> "RayPool":
        """Connects to Ray and lets workers start, without waiting for them.

        Raises:
            ClusterError: there is no cluster at the address, or none starts here.
        """
        if self._crew is None:
            import ray

            from leap_tf.cluster.worker_group import Crew

            if not ray.is_initialized():
                _connect(self._address, self._workers)
                self._connected_here = True
            workers = self._workers or int(ray.cluster_resources().get("CPU", 0)) or 1
            self._crew = Crew(
                self._recipe, workers, self._deadline, self._start_seconds, self._attempts
            )
        return self

    def close(self) -> None:
        """Ends the workers, and the connection to Ray if the pool has made it."""
        if self._crew is not None:
            import ray

            self._crew.dismiss()
            self._crew = None
            if self._connected_here:
                ray.shutdown()
                self._connected_here = False

    def __enter__(self) -> "RayPool":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(
        self, job: Job, weights: Sequence[keras.Variable], tasks: Sequence[SeededTask]
    ) -> Generator[Any, None, None]:
        """Yields the result or the failure of each task, in the order of the tasks.

        Args:
            job: what to do; the workers do what has its name.
            weights: all variables that results depend on, in the order of `task_variables`.
            tasks: what to do it with; each must have an address.

        Raises:
            ClusterError: no worker can be had, they have another study than the driver, or
                variables are of a dtype that cannot travel.
        """
        values = [variable.numpy() for variable in weights]
        for variable, value in zip(weights, values):
            if not can_travel(value.dtype):
                raise ClusterError(
                    f"Variable {variable.path!r} is {value.dtype}, which cannot travel. Use a "
                    "mixed dtype policy, whose variables are float32, or train on threads."
                )
        self.start()
        self._maps += 1
        return self._map(job, values, tasks, self._maps)

    def _map(self, job, values, tasks, number):
        import ray

        crew = self._crew
        reference = ray.put(values)
        board: TaskBoard = TaskBoard(len(tasks), 2 * crew.size, self._attempts)
        while not board.finished:
            if number != self._maps or crew is not self._crew:
                raise ClusterError("This map was left for another one, and cannot go on.")
            for seat in crew.idle():
                index = board.next_task()
                if index is None:
                    break
                crew.give(seat, (number, index), job.name, reference, number, tasks[index])
            for (of_map, index), data in crew.wait():
                if of_map != number:
                    continue  # of a map that was closed early
                if data is not None:
                    result = _read(job, tasks[index], data)
                    if job.done and not isinstance(result, TaskFailure):
                        job.done(tasks[index], result)
                    board.put(index, result)
                elif not board.lose(index):
                    board.put(index, self._given_up(tasks[index]))
            yield from board.take()

    def _given_up(self, seeded):
        return TaskFailure(
            seeded.task.name,
            seeded.seed,
            f"It was begun {self._attempts} times, and each time its worker died or did not end "
            f"within the deadline of {self._deadline:g} s. See `ray status`, memory first.",
        )


def _read(job: Job, seeded: SeededTask, data: bytes) -> Any:
    """The result that a message carries, or the failure."""
    try:
        message = decode(data)
        if message.failure is not None:
            return TaskFailure(seeded.task.name, seeded.seed, message.failure)
        if message.task != seeded.task.name:
            raise ClusterError(
                f"A worker has task {message.task!r} where the driver has {seeded.task.name!r}. "
                "The recipe must build the driver's study; only its own tasks can be judged."
            )
        return job.read(message.parts)
    except (MessageError, UnfitPartsError) as error:
        raise ClusterError(f"A worker's result for task {seeded.task.name!r}: {error}") from error


def _connect(address: str | None, workers: int | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = logging.WARNING
    with _signal_handlers_kept():
        try:
            if address is None:
                ray.init(
                    "local",
                    num_cpus=workers,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=quiet,
                )
            else:
                _require_somebody_at(address)
                ray.init(address, log_to_driver=False, logging_level=quiet)
        except Exception as error:  # a node that does not start in time is a bare Exception
            what = f"There is no Ray cluster at {address}" if address else "Ray does not start here"
            advice = "" if address else " If the machine is busy, give the same command again."
            raise ClusterError(f"{what}: {error}{advice}") from error


def _require_somebody_at(address: str) -> None:
    """Ray itself would go on trying for minutes; raises OSError."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10.0).close()


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM, which would end a run without saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
