"""The order of work in one map: tasks go out by index, lost ones again, and results leave in order.

This is bookkeeping without a clock and without a network.
"""

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")


class TaskScheduler(Generic[Result]):
    """The tasks of one map.

    Args:
        tasks: how many there are.
        ahead: how far beyond the oldest awaited result tasks are handed out. So many results at
            most wait behind a slow one.
        attempts: how often a task is handed out before it counts as failed.
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
        """Hands out the first task that nobody works on; None if there is nothing to do now."""
        while self._waiting and self._has_result(self._waiting[0]):
            heapq.heappop(self._waiting)
        if self._waiting and self._waiting[0] < self._left + self._ahead:
            index = heapq.heappop(self._waiting)
            self._attempts_left[index] -= 1
            return index
        return None

    def put(self, index: int, result: Result) -> bool:
        """Takes a result; False if the task had one already, which stays."""
        if self._has_result(index):
            return False
        self._results[index] = result
        return True

    def lose(self, index: int) -> bool:
        """Takes back a task whose worker was lost; False if its attempts are used up."""
        if self._has_result(index):
            return True
        if not self._attempts_left[index]:
            return False
        heapq.heappush(self._waiting, index)
        return True

    def take(self) -> Iterator[Result]:
        """Yields the results that can leave, in order."""
        while self._left in self._results:
            result = self._results.pop(self._left)
            self._left += 1
            yield result

    def _has_result(self, index):
        return index < self._left or index in self._results
