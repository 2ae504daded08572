"""SIGTERM, Ctrl-C and a closed terminal end a run in good order: save, say so, leave."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

from leap_tf.training import MetaLoop


@contextlib.contextmanager
def exit_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Calls `stop` on the first SIGTERM, SIGHUP or Ctrl-C; a second one kills.

    When the block has ended after a signal, the process exits with 128 + the signal's number,
    as shells expect, so that nobody takes the run for finished.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("Stopping: what is under way is dropped, all before it is saved.", file=sys.stderr)
        stop()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        print("Stopped. The same command goes on from there.", file=sys.stderr)
        sys.exit(128 + received[0])


@contextlib.contextmanager
def stop_on_signals(trainer: MetaLoop) -> Iterator[None]:
    """Lets the first SIGTERM or Ctrl-C stop `trainer.fit` in good order; a second one kills."""
    with exit_on_signals(trainer.request_stop) as received:
        yield
        if received:
            print(f"Stopped after meta-step {trainer.meta_step}.", file=sys.stderr)
