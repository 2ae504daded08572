"""Functions that run the binaries, or their functions in this process, for several folders."""

import gc
import os
import pathlib
import subprocess
import sys
import time

import keras

from leap_tf.experiments import commands
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.training import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
    "MetaTrainer.meta_batch_size = 2",
    "MetaTrainer.steps_per_task = 5",
    "sinusoid_splits.test_tasks = 3",
    "sinusoid_splits.validation_tasks = 2",
    "meta_train.validation_freq = 2",
    "meta_train.checkpoint_seconds = 0.0",
]


def command(binary, output_dir, *bindings, gin_file="gin_configs/sinusoid.gin"):
    arguments = [sys.executable, str(ROOT / "bin" / binary), f"--output_dir={output_dir}"]
    if binary == "train.py":
        arguments.append(f"--gin_file={ROOT / gin_file}")
        bindings = (*SMALL, *bindings)
    return [*arguments, *(f"--gin_param={binding}" for binding in bindings)]


def run(*arguments, **options):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | options.pop("env", {})
    return subprocess.run(
        command(*arguments, **options), capture_output=True, text=True, env=environment
    )


def train_here(output_dir, *bindings):
    """Runs the function of bin/train.py in this process, which has everything imported."""
    commands.train([ROOT / "gin_configs/sinusoid.gin"], [*SMALL, *bindings], output_dir)
    gc.collect()  # releases the folder's lock


def start(*arguments):
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_meta_step(process, folder, meta_step):
    metrics = RunDirectory(folder).metrics
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= meta_step:
            return
        time.sleep(0.002)
    raise AssertionError(f"The run ended before meta-step {meta_step}: {process.communicate()}")


def learned(folder):
    return keras.saving.load_model(RunDirectory(folder).initialization).get_weights()


def without_times(folder):
    return [
        {name: value for name, value in entry.items() if name != "seconds"}
        for entry in read_metrics(RunDirectory(folder).metrics)
    ]
