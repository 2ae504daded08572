"""Which pool a run's tasks run on. It is no part of the configuration: results are the same."""

import contextlib
import dataclasses
from collections.abc import Iterator

from leap_tf.cluster import RayPool, Recipe

POOLS = ("threads", "ray")


@dataclasses.dataclass(frozen=True)
class PoolChoice:
    """What a binary was asked for.

    Attributes:
        kind: "threads" of this process, or "ray".
        address: of a running Ray cluster; None starts Ray on this machine.
        workers: how many workers on Ray; None for one per CPU.
        deadline: seconds after which a task on Ray counts as hanging.

    Raises:
        ValueError: there is no such pool, or threads are given what is Ray's.
    """

    kind: str = "threads"
    address: str | None = None
    workers: int | None = None
    deadline: float = 1800.0

    def __post_init__(self):
        if self.kind not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, and is {self.kind!r}.")
        if self.kind == "threads" and (self.address, self.workers) != (None, None):
            raise ValueError("address and workers are for --pool=ray.")

    @contextlib.contextmanager
    def open(self, recipe: Recipe) -> Iterator[RayPool | None]:
        """Yields the pool, not started yet, and closes it; None for threads of the trainer's own.

        Args:
            recipe: makes the study in a worker.

        Raises:
            ClusterError: Ray is not installed.
        """
        if self.kind == "threads":
            yield None
            return
        pool = RayPool(recipe, self.workers, self.address, self.deadline)
        with contextlib.closing(pool):
            yield pool


THREADS = PoolChoice()
