"""Where tasks run: a function, a list of items, and the results in the order of the items.

The outer loop sees nothing of a pool but `map`, so tasks can run in threads, in processes or
on other machines without its knowing.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class TaskPool(Protocol):
    """Runs a function over items."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Result, None, None]:
        """Yields `function(item)` for each item, in the order of the items.

        Closing the iterator early lets started items end and starts no others.
        """


class ThreadPool:
    """Runs items on threads of this process; TensorFlow releases Python's lock while it works.

    At most twice as many items as threads are started ahead of the one that is awaited, so
    finished results do not pile up behind a slow one.

    Args:
        threads: how many items run at the same time.

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
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Result, None, None]:
        remaining = iter(items)
        started: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for item in remaining:
                started.append(self._executor.submit(function, item))
                if len(started) == 2 * self.threads:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            for future in started:
                future.cancel()
            concurrent.futures.wait(started)
