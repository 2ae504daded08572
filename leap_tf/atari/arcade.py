"""Where environments are kept between visits: making one takes seconds."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator

from leap_tf.atari.screen_environment import ScreenEnvironment


class Arcade:
    """Environments of all games, made when a game is first played and kept from then on.

    If a game is played by several threads at a time, each has environments of its own. Which of
    them a visit gets makes no difference, because it starts with a seeded reset.

    Args:
        make_environment: called as make_environment(game=name).
        groups: environments of a visit. While one group's emulator threads are at work, the agent
            acts for the other; all groups together are one batch.

    Raises:
        ValueError: `groups` is not positive.
    """

    def __init__(self, make_environment: Callable[..., ScreenEnvironment], groups: int = 1):
        if groups < 1:
            raise ValueError(f"An arcade needs at least one group of environments, not {groups}.")
        self._make_environment = make_environment
        self._groups = groups
        self._idle: dict[str, list[list[ScreenEnvironment]]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def visit(self, game: str, seed: int) -> Iterator[list[ScreenEnvironment]]:
        """Lends environments of a game, which will start from `seed` when they are reset.

        Args:
            game: its name.
            seed: copy i of all groups together has seed + i.
        """
        with self._lock:
            idle = self._idle[game]
            environments = idle.pop() if idle else None
        if environments is None:
            environments = [self._make_environment(game=game) for _ in range(self._groups)]
        copies = 0
        for environment in environments:
            environment.seed(seed + copies)
            copies += environment.batch_size
        yield environments
        # After an error they may be broken, and are not kept.
        with self._lock:
            self._idle[game].append(environments)
