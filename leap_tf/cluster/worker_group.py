"""The workers of a pool as Ray actors: hired, given one task at a time, and replaced.

A worker is lost if its process or its node dies, or if a task takes longer than the deadline;
it is then killed and another one is hired in its seat, which starts when the cluster has room.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from leap_tf.cluster.worker import ClusterError, Recipe, TaskWorker
from leap_tf.serialization import decode
from leap_tf.training import SeededTask

_LOGGER = logging.getLogger("leap_tf")
_TURN = 1.0  # seconds at most that Python waits at a stretch, so that signals are seen
_FETCH = 60.0  # seconds that a result may take from its node to the driver


@dataclasses.dataclass(eq=False)
class Seat:
    """A place for a worker, and who sits there.

    Attributes:
        actor: the worker.
        call: what it is at: starting, a task, or None.
        since: when that began.
        token: whose task that is; None while it starts.
        ready: whether it has a replica.
        version: of the weights it has.
        failed_starts: how many workers in a row failed to start here.
        host, process: where the worker is, for messages.
    """

    actor: Any
    call: Any
    since: float
    token: Any = None
    ready: bool = False
    version: int | None = None
    failed_starts: int = 0
    host: str = ""
    process: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Crew:
    """Workers that build replicas and run tasks.

    Args:
        recipe: makes the replica in each.
        size: how many workers.
        deadline: seconds that a task may take, the tracing of its graph included.
        start_seconds: that may pass with no worker ready.
        attempts: workers that may fail to start in a seat before it stays empty.
    """

    def __init__(
        self, recipe: Recipe, size: int, deadline: float, start_seconds: float, attempts: int
    ):
        environment = dict(getattr(recipe, "environment", {}))
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        if environment:
            options["runtime_env"] = {"env_vars": environment}
        self._actor_class = ray.remote(TaskWorker).options(**options)
        self._recipe = ray.put(recipe)
        self._deadline = deadline
        self._start_seconds = start_seconds
        self._attempts = attempts
        self._ever_ready = False
        self._last_refusal = ""
        self._seats = [self._hire() for _ in range(size)]
        self._last_ready = time.monotonic()

    @property
    def size(self) -> int:
        """How many seats there are."""
        return len(self._seats)

    def idle(self) -> Iterator[Seat]:
        """Yields workers that are ready and have nothing to do."""
        return (seat for seat in self._seats if seat.ready and seat.call is None)

    def give(
        self, seat: Seat, token: Any, job: str, weights: Any, version: int, seeded: SeededTask
    ) -> None:
        """Gives a task to an idle worker, and the weights too if it has others.

        Args:
            seat: the worker's.
            token: what `wait` will return with the result.
            job: "train" or "evaluate".
            weights: Ray's reference to them.
            version: their number.
            seeded: the task, of which address, seed and steps are sent.
        """
        if seat.version != version:
            seat.actor.load.remote(weights, version)  # calls of an actor keep their order
            seat.version = version
        assert seeded.address is not None
        address = tuple(seeded.address)
        seat.call = seat.actor.run.remote(job, version, address, seeded.seed, seeded.steps)
        seat.token, seat.since = token, time.monotonic()

    def wait(self) -> list[tuple[Any, bytes | None]]:
        """Waits until something happens, a second at most.

        Returns:
            For each task that is over its token and the worker's message, None if the worker was
            lost.

        Raises:
            ClusterError: no worker can be had, and why.
        """
        found = []
        for seat in self._over():
            token, starting = seat.token, not seat.ready
            data = self._result(seat)
            if starting:
                self._has_started(seat, data)
            else:
                found.append((token, data))
                if data is None:
                    self._replace(seat)
        now = time.monotonic()
        for seat in self._seats:
            if seat.ready and seat.call is not None and now - seat.since > self._deadline:
                _LOGGER.warning(
                    "A task took more than %g s. Its worker, %s, is killed.", self._deadline, seat
                )
                found.append((seat.token, None))
                self._replace(seat)
        self._check_readiness(now)
        return found

    def dismiss(self) -> None:
        """Ends all workers."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []

    def _over(self) -> Sequence[Seat]:
        """Seats whose call has ended."""
        calls = {seat.call: seat for seat in self._seats if seat.call is not None}
        if not calls:
            time.sleep(0.01)
            return []
        done, _ = ray.wait(list(calls), timeout=_TURN)
        if done and len(calls) > 1:  # and all others that have, in one go
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [calls[call] for call in done]

    def _result(self, seat) -> bytes | None:
        call, seat.call, seat.token = seat.call, None, None
        try:
            return ray.get(call, timeout=_FETCH)
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            _LOGGER.warning("A worker was lost, %s: %s", seat, reason)
            return None

    def _has_started(self, seat, data):
        started = None if data is None else decode(data)
        refusal = "its process died" if started is None else started.failure
        if started is not None and refusal is None:
            plain = started.parts.plain
            seat.host, seat.process = str(plain.get("host")), int(plain.get("process", 0))
            seat.ready, seat.failed_starts = True, 0
            self._ever_ready, self._last_ready = True, time.monotonic()
            return
        self._last_refusal = refusal
        if data is not None and not self._ever_ready:
            raise ClusterError(
                f"A worker could not build the study: {refusal} Every node needs the driver's "
                "environment and data, under the same paths."
            )
        _LOGGER.warning("A worker could not start: %s", refusal)
        seat.failed_starts += 1
        if seat.failed_starts < self._attempts:
            self._replace(seat)
        elif all(each.failed_starts >= self._attempts for each in self._seats):
            raise ClusterError(f"No worker could start, the last one because {refusal}.")

    def _check_readiness(self, now):
        if any(seat.ready for seat in self._seats):
            self._last_ready = now
            for seat in self._seats:
                if not seat.ready and seat.call and now - seat.since > self._start_seconds:
                    self._replace(seat)  # it hangs, or waits for a place, and may go on waiting
        elif now - self._last_ready > self._start_seconds:
            raise ClusterError(
                f"No worker became ready within {self._start_seconds:g} s. `ray status` says "
                "whether the cluster has free CPUs, one for each worker, and Ray's logs what "
                f"workers say. {self._last_refusal}"
            )

    def _hire(self) -> Seat:
        actor: Any = self._actor_class.remote(self._recipe)
        return Seat(actor, actor.start.remote(), time.monotonic())

    def _replace(self, seat):
        ray.kill(seat.actor)
        self._seats[self._seats.index(seat)] = dataclasses.replace(
            self._hire(), failed_starts=seat.failed_starts
        )
