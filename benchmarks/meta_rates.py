"""Measures which meta-optimizer suits which number of gradient steps.

    python benchmarks/meta_rates.py > table.csv

For each number of steps, inner optimizer and meta-optimizer, a model is meta-trained with Leap for
a few meta-steps of ten tasks. A row has

    error        held-out error after that many steps, from the learned initialization
    fresh        the same from the initialization that meta-training started from
    path, fresh_path    lengths of the paths of held-out tasks
    gradient     norm of the first meta-gradient
    update       length of the meta-updates over the distance that tasks move from the
                 initialization, the median over the meta-steps
    diverged     held-out tasks that diverged, or "all" if meta-training did
"""

import argparse
import csv
import itertools
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import leap_tf
from leap_tf.datasets import alphabet_splits

COLUMNS = (
    *("tasks", "inner", "outer", "rate", "steps", "seed", "error", "fresh"),
    *("path", "fresh_path", "gradient", "update", "diverged"),
)
INNER = {"SGD": keras.optimizers.SGD, "Adam": keras.optimizers.Adam}
OUTER = {**INNER, "scaled": keras.optimizers.SGD}  # the last on scaled meta-gradients
RATES = {
    "SGD": (0.003, 0.01, 0.03, 0.1),
    "Adam": (0.003, 0.01, 0.03),
    "scaled": (0.25, 0.5, 1.0, 2.0),
}


class UpdateLength(keras.callbacks.Callback):
    """Measures meta-updates against the distance that tasks move."""

    def on_epoch_begin(self, epoch, logs=None):
        self._before = [variable.numpy() for variable in self.model.trainable_variables]

    def on_epoch_end(self, epoch, logs=None):
        now = [variable.numpy() for variable in self.model.trainable_variables]
        moved = [(new - old).ravel() for new, old in zip(now, self._before)]
        logs["update"] = float(np.linalg.norm(np.concatenate(moved))) / max(
            logs["distance_moved"], 1e-30
        )


def sinusoids(seed):
    splits = leap_tf.sinusoid_splits(seed=seed)
    return leap_tf.mlp, "mse", splits, {"SGD": 0.02, "Adam": 0.01}


def unicode(seed):
    splits = alphabet_splits(
        seed=seed, validation_alphabets=3, test_alphabets=8, characters=20, rotations=1
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rates = {"SGD": 0.1, "Adam": 0.003}
    return lambda: leap_tf.conv_net(filters=16), loss, splits, rates


def measure(tasks, inner, outer, rates, steps, seed, meta_steps):
    """Yields a row for each rate of the meta-optimizer."""
    build, loss, splits, inner_rates = {"sinusoids": sinusoids, "unicode": unicode}[tasks](seed)
    keras.utils.set_random_seed(seed)
    trainer = leap_tf.MetaTrainer(
        build(),
        loss,
        INNER[inner](inner_rates[inner]),
        OUTER[outer](0.0),
        learner=leap_tf.Leap(scaled=outer == "scaled"),
        steps_per_task=steps,
        meta_batch_size=10,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(f"{folder}/start")
        fresh = trainer.evaluate(splits.test)
        for rate in rates:
            trainer.load(f"{folder}/start")
            trainer.meta_optimizer.learning_rate = rate
            row = [tasks, inner, outer, rate, steps, seed]
            try:
                history = trainer.fit(
                    splits.train, meta_steps, callbacks=[UpdateLength()], verbose=False
                ).history
            except leap_tf.training.MetaTrainingDivergedError:
                yield [*row, "", f"{fresh.error:.4f}", "", "", "", "", "all"]
                continue
            found = trainer.evaluate(splits.test)
            paths = found.mean("path_length"), fresh.mean("path_length")
            first, update = history["meta_gradient_norm"][0], np.median(history["update"])
            numbers = [found.error, fresh.error, *paths, first, update]
            yield [*row, *(f"{number:.4g}" for number in numbers), len(found.diverged)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--tasks", nargs="+", default=["sinusoids", "unicode"])
    arguments.add_argument("--inner", nargs="+", default=["SGD", "Adam"], choices=INNER)
    arguments.add_argument("--outer", nargs="+", default=list(OUTER), choices=OUTER)
    arguments.add_argument("--rates", nargs="+", type=float)
    arguments.add_argument("--steps", nargs="+", type=int, default=[10, 50, 200])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--meta_steps", type=int, default=30)
    options = arguments.parse_args()
    leap_tf.configure_threads()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(COLUMNS)
    cells = (options.tasks, options.inner, options.outer, options.steps, options.seeds)
    for tasks, inner, outer, steps, seed in itertools.product(*cells):
        rates = options.rates or RATES[outer]
        for row in measure(tasks, inner, outer, rates, steps, seed, options.meta_steps):
            table.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
