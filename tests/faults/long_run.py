"""A run of thousands of meta-steps that records memory, open files and traces after each.

Like a run from a configuration it has checkpoints, metrics, TensorBoard and validation.
"""

import concurrent.futures
import gc
import multiprocessing
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import psutil

import leap_tf
from leap_tf.training import InnerLoop, JSONLogger, TensorBoardLogger
from tests.faults.record import Fault

# TensorFlow calls these methods when it traces them, and at no other time.
TRACED = ("_train", "_gradient_of_batch", "_evaluate", "_error_of_batch")


class Usage(keras.callbacks.Callback):
    """Records resident memory in bytes, open files and threads after every meta-step.

    Attributes:
        memory, files, threads: one number for each meta-step.
    """

    def __init__(self):
        super().__init__()
        self._process = psutil.Process()
        self.memory: list[int] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def on_epoch_end(self, epoch, logs=None):
        if epoch % 10 == 0:
            gc.collect()
        with self._process.oneshot():
            self.memory.append(self._process.memory_info().rss)
            self.files.append(self._process.num_fds())
            self.threads.append(self._process.num_threads())


class Traces(keras.callbacks.Callback):
    """Counts the traces of the inner loop so far at the end of each meta-step.

    Attributes:
        counts: one number for each meta-step.
    """

    def __init__(self):
        super().__init__()
        self.counts: list[int] = []
        self._count = 0
        self._originals = {name: getattr(InnerLoop, name) for name in TRACED}

    def __enter__(self):
        for name, function in self._originals.items():
            setattr(InnerLoop, name, self._counting(function))
        return self

    def __exit__(self, *_):
        for name, function in self._originals.items():
            setattr(InnerLoop, name, function)

    def on_epoch_end(self, epoch, logs=None):
        self.counts.append(self._count)

    def _counting(self, function):
        def counted(*arguments, **options):
            self._count += 1
            return function(*arguments, **options)

        return counted


class LongRun(NamedTuple):
    """Memory in bytes, open files, threads, and traces so far: after every meta-step."""

    memory: list[int]
    files: list[int]
    threads: list[int]
    traces: list[int]


def run_long(folder: pathlib.Path, meta_steps: int, validation_freq: int) -> LongRun:
    """Meta-trains on sinusoids, a small network and few steps a task.

    It uses a process of its own, since memory of earlier tests would disturb the measurement.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
        return process.submit(_train, folder, meta_steps, validation_freq).result()


def _train(folder, meta_steps, validation_freq):
    keras.utils.set_random_seed(0)
    gc.freeze()  # what the imports made need not be searched after every ten meta-steps
    usage = Usage()
    with Traces() as traces:
        trainer = leap_tf.MetaTrainer(
            leap_tf.mlp(),
            keras.losses.MeanSquaredError(),
            keras.optimizers.SGD(0.01),
            keras.optimizers.Adam(0.01),
            steps_per_task=3,
            meta_batch_size=2,
            pool=2,
        )
        trainer.fit(
            leap_tf.Sinusoids(),
            meta_steps,
            validation_tasks=leap_tf.Sinusoids().sample(2, np.random.default_rng(1)),
            validation_freq=validation_freq,
            callbacks=[
                JSONLogger(folder / "metrics.jsonl"),
                TensorBoardLogger(folder / "tensorboard"),
                keras.callbacks.EarlyStopping("val_error", mode="min", patience=meta_steps),
                usage,
                traces,
            ],
            checkpoint_dir=folder / "checkpoints",
            checkpoint_seconds=1.0,
            verbose=False,
        )
    return LongRun(usage.memory, usage.files, usage.threads, traces.counts)


def growth(values: Sequence[int], warm_up: int) -> float:
    """Returns the relative growth from the first to the last tenth after the warm-up."""
    after = values[warm_up:]
    part = max(1, len(after) // 10)
    return float(np.median(after[-part:]) / np.median(after[:part]) - 1)


def attack_memory(folder: pathlib.Path, meta_steps: int, warm_up: int) -> Fault:
    """Meta-trains for long and reports the growth of memory, open files and threads.

    Args:
        folder: for the files of the run.
        meta_steps: number of meta-steps.
        warm_up: number of first meta-steps that do not count.
    """
    run = run_long(folder, meta_steps, validation_freq=50)
    found = {
        "memory": growth(run.memory, warm_up),
        "open files": growth(run.files, warm_up),
        "threads": growth(run.threads, warm_up),
    }
    fault = Fault(
        f"{meta_steps:,} meta-steps: memory grew by {found['memory']:.2%}, open files by "
        f"{found['open files']:.0%}, {run.traces[-1] - run.traces[warm_up]} traces after "
        "the warm-up",
        trials=1,
        injected=meta_steps,
        expected="less than 1 % after the warm-up, no trace after the first validation",
        details={f"growth of {name}": share for name, share in found.items()}
        | {"memory at the end, MB": run.memory[-1] / 1e6, "traces": run.traces[-1]},
    )
    fault.failures += [
        f"{name} grew by {share:.2%}" for name, share in found.items() if share >= 0.01
    ]
    if run.traces[-1] != run.traces[warm_up]:
        fault.failures.append("the inner loop was traced again after the warm-up")
    return fault
