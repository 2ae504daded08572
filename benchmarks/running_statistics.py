"""Compares the two policies for the running statistics of batch normalization.

    python benchmarks/running_statistics.py --output_dir=runs/running_statistics > table.csv

The studies are the offline default, a small configuration of Omniglot, and MobileNet of
`keras.applications`, as it is and with a lower momentum of its batch normalization. For each seed
the held-out error of test tasks is measured after several numbers of gradient steps, with the
running statistics "learned" and "fresh". Training normalizes with batch statistics, so both
policies learn the same weights. Each study is therefore trained once, and evaluated a second time
with the statistics of the given model. Evaluation is inductive.

The folder keeps checkpoints: the same command continues a run that was stopped.
"""

import argparse
import csv
import functools
import os
import pathlib
import platform
import shlex
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

import leap_tf
from leap_tf.datasets import alphabet_splits
from leap_tf.experiments.config import configured_study, parse_configuration, read_configuration
from leap_tf.functional import running_statistics
from leap_tf.training import Study

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = ("study", "seed", "steps", "policy", "error", "tasks", "diverged")


def unicode(seed, data_dir):
    return configured("unicode_cpu.gin", [f"study.seed = {seed}"])


def omniglot(seed, data_dir):
    small = ["conv_net.filters = 32", "MetaTrainer.meta_batch_size = 5", f"study.seed = {seed}"]
    small.append('MetaTrainer.running_statistics = "learned"')
    return configured("omniglot_cpu.gin", small, data_dir)


def configured(file, bindings, data_dir=None):
    parse_configuration(read_configuration([ROOT / "gin_configs" / file], bindings))
    return configured_study(data_dir=data_dir)


def mobilenet(seed, data_dir, momentum=0.99):
    """MobileNet with the batch normalization of Keras, whose momentum is 0.99 by default."""
    splits = alphabet_splits(
        seed=seed,
        validation_alphabets=0,
        test_alphabets=5,
        characters=5,
        image_size=32,
        rotations=1,
    )
    keras.utils.set_random_seed(seed)
    model = keras.applications.MobileNet(
        (32, 32, 1),
        alpha=0.25,
        dropout=0.0,
        weights=None,
        classes=5,
        classifier_activation=None,
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    trainer = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.Adam(0.003),
        steps_per_task=30,
        meta_batch_size=5,
        seed=seed,
    )
    return Study(trainer=trainer, tasks=splits)


mobilenet_90 = functools.partial(mobilenet, momentum=0.9)

# From the name of a study to its builder, its meta-steps, and the steps to evaluate after.
STUDIES = {
    "unicode": (unicode, 60, (5, 10, 20, 30, 50)),
    "omniglot": (omniglot, 30, (5, 10, 20, 50, 100)),
    "mobilenet": (mobilenet, 10, (5, 10, 20, 30, 50)),
    "mobilenet_momentum_0.9": (mobilenet_90, 10, (5, 10, 20, 30, 50)),
}


def measure(name, seed, options):
    """Trains a study and yields a row of the table for each policy and number of steps."""
    build, meta_steps, all_steps = STUDIES[name]
    study = build(seed, options.data_dir)
    trainer, tasks = study.trainer, study.tasks
    given = [(variable, variable.numpy()) for variable in running_statistics(trainer.model, ())]
    folder = pathlib.Path(options.output_dir) / f"{name}_seed{seed}" / "checkpoints"
    trainer.fit(tasks.train, meta_steps, checkpoint_dir=folder)
    for policy in ("learned", "fresh"):
        if policy == "fresh":
            for variable, value in given:
                variable.assign(value)
        for steps in all_steps:
            found = trainer.evaluate(tasks.test, steps)
            error = f"{found.error:.4f}"
            yield name, seed, steps, policy, error, len(found.tasks), len(found.diverged)


def origin():
    """Returns the command, the machine and the commit, for the first line of the table."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu = pathlib.Path("/proc/cpuinfo")
    models = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
    machine = f"{len(models)} cores of {models[0].split(': ')[1]}" if models else platform.machine()
    command = shlex.join(["python", "benchmarks/running_statistics.py", *sys.argv[1:]])
    return f"# {command}; {machine}; TensorFlow {tf.__version__}; commit {commit or 'unknown'}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--studies", nargs="+", default=list(STUDIES), choices=STUDIES)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--output_dir", default="runs/running_statistics")
    arguments.add_argument("--data_dir", help="folder of prepared TFDS data sets, for Omniglot")
    options = arguments.parse_args()
    leap_tf.configure_threads()
    print(origin(), flush=True)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(COLUMNS)
    for name in options.studies:
        for seed in options.seeds:
            for row in measure(name, seed, options):
                table.writerow(row)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
