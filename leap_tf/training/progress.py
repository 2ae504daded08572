"""What a person sees of a long run: a bar with speed and time left, or plain lines."""

import sys
import time

import keras
import tqdm


class ProgressDisplay(keras.callbacks.Callback):
    """Shows meta-steps as they pass.

    On a terminal a progress bar; elsewhere (a file, a CI log) a line at the first meta-step,
    then at most one every `seconds`, and one at the last.

    Args:
        seconds: least time between two plain lines.
        shown: names of the metrics to show, those that are there.
        stream: where to write; standard error by default.
    """

    def __init__(
        self,
        seconds: float = 10.0,
        shown: tuple[str, ...] = ("loss", "error", "val_error", "tasks_skipped"),
        stream=None,
    ):
        super().__init__()
        self._seconds = seconds
        self._shown = shown
        self._stream = stream or sys.stderr

    def on_train_begin(self, logs=None):
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._gradient_steps = 0
        self._meta_steps_here = 0
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._bar is None and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=self.params["epochs"],
                initial=epoch,
                unit="meta-step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        self._gradient_steps += int(logs.get("gradient_steps", 0))
        self._meta_steps_here += 1
        elapsed = time.monotonic() - self._started
        text = self._describe(logs, elapsed)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        last = epoch + 1 == self.params["epochs"]
        if last or time.monotonic() - self._last_line >= self._seconds:
            self._last_line = time.monotonic()
            left = elapsed / self._meta_steps_here * (self.params["epochs"] - epoch - 1)
            print(
                f"meta-step {epoch + 1}/{self.params['epochs']}  {text}  "
                f"{tqdm.tqdm.format_interval(left)} left",
                file=self._stream,
                flush=True,
            )

    def on_train_end(self, logs=None):
        if self._bar is not None:
            self._bar.close()

    def _describe(self, logs, elapsed):
        metrics = [f"{name} {logs[name]:.4g}" for name in self._shown if name in logs]
        return "  ".join([*metrics, f"{self._gradient_steps / max(elapsed, 1e-9):.0f} steps/s"])
