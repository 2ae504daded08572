"""SIGTERM and Ctrl-C end a run in good order: save, say so, leave."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from leap_tf.training import MetaTrainer


@contextlib.contextmanager
def stop_on_signals(trainer: MetaTrainer) -> Iterator[None]:
    """Lets the first SIGTERM or Ctrl-C stop `trainer.fit` in good order; a second one kills.

    When the trainer stopped because of it, the process exits with 128 + the signal's number,
    as shells expect, so that nobody takes the run for finished.
    """
    received: list[int] = []

    def handle(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        print(
            "Stopping: the present meta-step is dropped, all before it is saved.", file=sys.stderr
        )
        trainer.request_stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        print(
            f"Stopped after meta-step {trainer.meta_step}. The same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(128 + received[0])
