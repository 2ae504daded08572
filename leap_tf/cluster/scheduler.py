"""The order of tasks and results in one map.

Tasks are handed out by index and again if their worker was lost; results leave in order. The
scheduler keeps lists only: it knows no clock and no network.
"""

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")


class TaskScheduler(Generic[Result]):
    """Decides which task is handed out next and which results can leave.

    Args:
        tasks: number of tasks.
        ahead: tasks are handed out up to this many places from the oldest missing result, so at
            most this many results wait behind a slow task.
        attempts: number of times a task is handed out before it counts as failed.
    """

    def __init__(self, tasks: int, ahead: int, attempts: int):
        self._tasks = tasks
        self._ahead = ahead
        self._attempts_left = [attempts] * tasks
        self._waiting = list(range(tasks))
        self._results: dict[int, Result] = {}
        self._left = 0  # results that have left

    @property
    def finished(self) -> bool:
        """Whether all results have left."""
        return self._left == self._tasks

    def next_task(self) -> int | None:
        """Returns the first task that no worker has, or None if none can be handed out now."""
        while self._waiting and self._has_result(self._waiting[0]):
            heapq.heappop(self._waiting)
        if self._waiting and self._waiting[0] < self._left + self._ahead:
            index = heapq.heappop(self._waiting)
            self._attempts_left[index] -= 1
            return index
        return None

    def put(self, index: int, result: Result) -> bool:
        """Adds a result. Returns False, and drops it, if the task has a result already."""
        if self._has_result(index):
            return False
        self._results[index] = result
        return True

    def lose(self, index: int) -> bool:
        """Queues a task again whose worker was lost. Returns False if no attempts are left."""
        if self._has_result(index):
            return True
        if not self._attempts_left[index]:
            return False
        heapq.heappush(self._waiting, index)
        return True

    def take(self) -> Iterator[Result]:
        """Removes and yields the results that can leave, in order of the tasks."""
        while self._left in self._results:
            result = self._results.pop(self._left)
            self._left += 1
            yield result

    def _has_result(self, index):
        return index < self._left or index in self._results
