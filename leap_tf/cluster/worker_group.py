"""The workers of a pool: Ray actors that are started, given one task at a time, and replaced.

A worker counts as lost if its process or its node dies, or if a task takes longer than the
deadline. It is killed, and another worker starts in its slot as soon as the cluster has room.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from leap_tf.cluster.worker import ClusterError, Reply, StudyFactory, TaskWorker
from leap_tf.serialization import decode
from leap_tf.training import TaskSpec

_LOGGER = logging.getLogger("leap_tf")
_POLL_SECONDS = 1.0  # the longest uninterrupted wait, so that Python can handle signals
_FETCH_SECONDS = 60.0  # the longest time in which a result is sent to the driver


@dataclasses.dataclass(eq=False)
class WorkerSlot:
    """A place in the group, and the worker in it."""

    actor: Any
    call: Any  # the current one, a start or a task; None if the worker is idle
    since: float  # time of the call by the monotonic clock
    token: Any = None  # identifies the task of the call; None while the worker starts
    ready: bool = False  # whether the worker has built the study
    version: int | None = None  # number of the weights that the worker has
    failed_starts: int = 0  # workers in a row that failed to start here
    host: str = ""
    process: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class WorkerGroup:
    """Workers that build the study and run its tasks.

    The arguments are those of `RayPool`. After as many failed starts as `attempts`, a slot stays
    empty.
    """

    def __init__(
        self,
        factory: StudyFactory,
        workers: int,
        deadline: float,
        start_seconds: float,
        attempts: int,
    ):
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        if environment := dict(getattr(factory, "environment", {})):
            options["runtime_env"] = {"env_vars": environment}
        self._actor_class = ray.remote(TaskWorker).options(**options)
        self._factory = ray.put(factory)
        self._deadline = deadline
        self._start_seconds = start_seconds
        self._attempts = attempts
        self._ever_ready = False
        self._last_failure = ""
        self._slots = [self._start_worker() for _ in range(workers)]
        self._last_ready = time.monotonic()

    @property
    def size(self) -> int:
        """The number of slots."""
        return len(self._slots)

    def idle(self) -> Iterator[WorkerSlot]:
        """Yields the slots of workers that are ready and idle."""
        return (slot for slot in self._slots if slot.ready and slot.call is None)

    def assign(
        self, slot: WorkerSlot, token: Any, kind: str, spec: TaskSpec, weights: tuple[Any, int]
    ) -> None:
        """Gives a task to an idle worker, and the weights too unless it has them.

        `wait` returns the `token` together with the result. `weights` are Ray's reference to the
        weights that the task starts from, and their number.
        """
        reference, version = weights
        if slot.version != version:
            slot.actor.load.remote(reference, version)  # calls of an actor keep their order
            slot.version = version
        slot.call = slot.actor.run.remote(kind, version, spec)
        slot.token, slot.since = token, time.monotonic()

    def wait(self) -> list[tuple[Any, bytes | None]]:
        """Waits until a call ends, for a second at most.

        Returns:
            A token and the worker's reply for each task that has ended. The reply is None if the
            worker was lost.

        Raises:
            ClusterError: no worker can build the study, or none became ready in time.
        """
        found = []
        for slot in self._ended():
            token, data = slot.token, self._result(slot)
            if not slot.ready:
                self._started(slot, data)
                continue
            found.append((token, data))
            if data is None:
                self._replace(slot)
        now = time.monotonic()
        for slot in self._slots:
            if slot.ready and slot.call is not None and now - slot.since > self._deadline:
                _LOGGER.warning(
                    "A task took more than %g s. Its worker, %s, is killed.", self._deadline, slot
                )
                found.append((slot.token, None))
                self._replace(slot)
        self._check_readiness(now)
        return found

    def stop(self) -> None:
        """Stops all workers."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []

    def _ended(self) -> Sequence[WorkerSlot]:
        """Returns the slots whose call has ended."""
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        if not calls:
            time.sleep(0.01)
            return []
        done, _ = ray.wait(list(calls), timeout=_POLL_SECONDS)
        if done and len(calls) > 1:  # all others that have ended, too
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [calls[call] for call in done]

    def _result(self, slot) -> bytes | None:
        call, slot.call, slot.token = slot.call, None, None
        try:
            return ray.get(call, timeout=_FETCH_SECONDS)
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            _LOGGER.warning("A worker was lost, %s: %s", slot, reason)
            return None

    def _started(self, slot, data):
        reply = None if data is None else decode(data, Reply)
        failure = "its process died" if reply is None else reply.failure
        if reply is not None and failure is None:
            slot.host, slot.process = reply.host, reply.process
            slot.ready, slot.failed_starts = True, 0
            self._ever_ready, self._last_ready = True, time.monotonic()
            return
        self._last_failure = failure
        if data is not None and not self._ever_ready:
            raise ClusterError(
                f"A worker could not build the study: {failure} Every node needs the driver's "
                "environment and data, under the same paths."
            )
        _LOGGER.warning("A worker could not start: %s", failure)
        slot.failed_starts += 1
        if slot.failed_starts < self._attempts:
            self._replace(slot)
        elif all(each.failed_starts >= self._attempts for each in self._slots):
            raise ClusterError(f"No worker could start, the last one because {failure}.")

    def _check_readiness(self, now):
        if any(slot.ready for slot in self._slots):
            self._last_ready = now
            for slot in self._slots:
                if not slot.ready and slot.call and now - slot.since > self._start_seconds:
                    self._replace(slot)  # it hangs, or the cluster has no room yet
        elif now - self._last_ready > self._start_seconds:
            raise ClusterError(
                f"No worker became ready within {self._start_seconds:g} s. `ray status` shows "
                "whether the cluster has a free CPU for each worker, and Ray's logs what the "
                f"workers print. {self._last_failure}"
            )

    def _start_worker(self) -> WorkerSlot:
        actor: Any = self._actor_class.remote(self._factory)
        return WorkerSlot(actor, actor.start.remote(), time.monotonic())

    def _replace(self, slot):
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = dataclasses.replace(
            self._start_worker(), failed_starts=slot.failed_starts
        )
