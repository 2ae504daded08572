"""A task pool of Ray actors.

A worker is sent the study factory once, the weights once per map, and a `TaskSpec` per task. It
returns bytes that are read without pickle (`leap_tf.serialization`). A result depends neither on
the worker that runs the task nor on the number of attempts.
"""

import contextlib
import heapq
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from leap_tf.cluster.worker import ClusterError, Reply, StudyFactory
from leap_tf.serialization import SerializationError, decode, is_serializable
from leap_tf.training import Job, TaskFailure, TaskSpec

if TYPE_CHECKING:
    from leap_tf.cluster.worker_group import WorkerGroup


class TaskScheduler:
    """Decides which task of a map is started next, and yields results in the order of the tasks.

    Every task that `next_task` returns must come back once, by `put` or by `requeue`. A task is
    started only if it is less than `ahead` places after the oldest missing result, so fewer results
    than this wait for a slow task. It counts as failed once it was started `attempts` times.
    """

    def __init__(self, tasks: int, ahead: int, attempts: int):
        self._ahead = ahead
        self._remaining_attempts = [attempts] * tasks
        self._waiting = list(range(tasks))
        self._results: dict[int, Any] = {}
        self._yielded = 0

    @property
    def finished(self) -> bool:
        """True once the pool has yielded the result of every task."""
        return self._yielded == len(self._remaining_attempts)

    def next_task(self) -> int | None:
        """Returns the first task that no worker has, or None if none can be started now."""
        if not self._waiting or self._waiting[0] >= self._yielded + self._ahead:
            return None
        index = heapq.heappop(self._waiting)
        self._remaining_attempts[index] -= 1
        return index

    def put(self, index: int, result: Any) -> None:
        """Adds the result of a task."""
        self._results[index] = result

    def requeue(self, index: int) -> bool:
        """Queues a task whose worker was lost. Returns False if the task has no attempts left."""
        if not self._remaining_attempts[index]:
            return False
        heapq.heappush(self._waiting, index)
        return True

    def take(self) -> Iterator[Any]:
        """Removes and yields the results that are next in order."""
        while self._yielded in self._results:
            yield self._results.pop(self._yielded)
            self._yielded += 1


class RayPool:
    """Runs tasks on Ray actors, each with one CPU and a study of its own.

    Workers start with the first map or with `start`, and tasks as soon as one of them is ready.
    A worker that dies, or runs a task for longer than the deadline, is replaced, and its task is
    started again elsewhere. Use the pool as a context manager, or `close` it.

    Args:
        factory: builds the driver's study in every worker.
        workers: number of workers; by default one per CPU of the cluster at the start.
        address: address of a running Ray cluster, such as "auto" or "ray-head:6379". By default
            Ray is started on this machine, for this pool alone. If this process is connected to a
            Ray cluster already, the pool uses that.
        deadline: seconds after which a task counts as hanging, the tracing of its graph included.
        attempts: starts of a task whose workers are lost, before it counts as failed.
        start_seconds: the longest time to wait while no worker is ready.

    Raises:
        ClusterError: Ray is not installed.
        ValueError: `workers` or `attempts` is below 1, or a time is not positive.
    """

    remote = True

    def __init__(
        self,
        factory: StudyFactory,
        workers: int | None = None,
        address: str | None = None,
        deadline: float = 1800.0,
        *,
        attempts: int = 3,
        start_seconds: float = 300.0,
    ):
        if importlib.util.find_spec("ray") is None:
            raise ClusterError("Ray is not installed. Run: pip install 'leap-tf[cluster]'")
        if (workers is not None and workers < 1) or attempts < 1:
            found = f"{workers}, {attempts}"
            raise ValueError(f"workers and attempts must be at least 1. Received: {found}.")
        if deadline <= 0 or start_seconds <= 0:
            found = f"{deadline}, {start_seconds}"
            raise ValueError(f"deadline and start_seconds must be positive. Received: {found}.")
        self._factory = factory
        self._workers = workers
        self._address = address
        self._deadline = deadline
        self._attempts = attempts
        self._start_seconds = start_seconds
        self._group: WorkerGroup | None = None
        self._connected_here = False
        self._maps = 0

    def start(self) -> "RayPool":
        """Connects to Ray and starts the workers, without waiting for them.

        Raises:
            ClusterError: there is no cluster at the address, or Ray does not start here.
        """
        if self._group is None:
            import ray

            from leap_tf.cluster.worker_group import WorkerGroup

            if not ray.is_initialized():
                _connect(self._address, self._workers)
                self._connected_here = True
            workers = self._workers or int(ray.cluster_resources().get("CPU", 0)) or 1
            self._group = WorkerGroup(
                self._factory, workers, self._deadline, self._start_seconds, self._attempts
            )
        return self

    def close(self) -> None:
        """Stops the workers, and disconnects from Ray if the pool connected to it."""
        if self._group is not None:
            import ray

            self._group.stop()
            self._group = None
            if self._connected_here:
                ray.shutdown()
                self._connected_here = False

    def __enter__(self) -> "RayPool":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(self, job: Job, specs: Sequence[TaskSpec]) -> Generator[Any, None, None]:
        """Yields the result or the failure of each task, in the order of the tasks.

        Raises:
            ClusterError: no worker could start, the workers have another study than the driver,
                or a variable has a dtype that cannot be sent.
        """
        values = [variable.numpy() for variable in job.variables]
        for variable, value in zip(job.variables, values):
            if not is_serializable(value.dtype):
                raise ClusterError(
                    f"Variable {variable.path!r} is {value.dtype}, which cannot be sent. Use a "
                    "mixed dtype policy, whose variables are float32, or train on threads."
                )
        self.start()
        self._maps += 1
        return self._map(job, values, specs, self._maps)

    def _map(self, job, values, specs, number):
        import ray

        group, weights = self._group, (ray.put(values), number)
        scheduler = TaskScheduler(len(specs), 2 * group.size, self._attempts)
        while not scheduler.finished:
            if number != self._maps or group is not self._group:
                raise ClusterError("Another map was started, so this one cannot continue.")
            for slot in group.idle():
                index = scheduler.next_task()
                if index is None:
                    break
                group.assign(slot, (number, index), job.kind, specs[index], weights)
            for (of_map, index), data in group.wait():
                if of_map != number:
                    continue  # the result belongs to a map that was closed early
                if data is not None:
                    result = _read(job, specs[index], data)
                    if job.on_result and not isinstance(result, TaskFailure):
                        job.on_result(specs[index], result)
                    scheduler.put(index, result)
                elif not scheduler.requeue(index):
                    lost = (
                        f"It was started {self._attempts} times, and each time its worker died or "
                        f"did not finish within the deadline of {self._deadline:g} s. Check the "
                        "memory of the nodes with `ray status`, or raise the deadline."
                    )
                    name, seed = job.task_name(specs[index]), specs[index].seed
                    scheduler.put(index, TaskFailure(name, seed, lost))
            yield from scheduler.take()


def _read(job: Job, spec: TaskSpec, data: bytes) -> Any:
    """Returns the result or the failure in a worker's reply."""
    name = job.task_name(spec)
    try:
        reply = decode(data, Reply)
        if reply.failure is not None:
            return TaskFailure(name, spec.seed, reply.failure)
        if reply.task != name:
            raise ClusterError(
                f"A worker has task {reply.task!r} where the driver has {name!r}. The factory must "
                "build the driver's study."
            )
        result: Any = decode(reply.result, job.result_type)
        job.check(result)
        return result
    except SerializationError as error:
        raise ClusterError(f"A worker's result for task {name!r}: {error}") from error


def _connect(address: str | None, workers: int | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        options |= {"num_cpus": workers, "include_dashboard": False}
    with _signal_handlers_kept():
        try:
            host, _, port = (address or "").rpartition(":")
            if host and port.isdigit():  # if nothing listens there, Ray would try for minutes
                socket.create_connection((host, int(port)), timeout=10.0).close()
            ray.init("local" if address is None else address, **options)
        except Exception as error:  # Ray raises a bare Exception if a node does not start in time
            what = f"There is no Ray cluster at {address}" if address else "Ray does not start here"
            advice = "" if address else " If the machine is busy, give the same command again."
            raise ClusterError(f"{what}: {error}{advice}") from error


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restores signal handlers, since Ray's handler of SIGTERM ends a run without saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
