"""How alike the meta-gradients of Leap and Reptile are, over the same paths on Omniglot.

    python benchmarks/directions.py --data_dir=~/tensorflow_datasets [--run=runs/omniglot]

For paths of 50, 300 and 1,000 steps from a fresh initialization, and from a run's learned one:
the cosine between the two meta-gradients, and how many times as long Leap's is. Where the loss
falls by more than the step is long, theory says 1 and 1/α (docs/design.md).
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import leap_tf
from leap_tf.functional import FunctionalModel
from leap_tf.training import SeededTask
from leap_tf.training.supervised import TaskRunner

RATE = 0.1
TASKS = 3


def meta_gradients(model, learner, tasks, steps):
    """Returns [tasks, parameters], from the model's present weights."""
    runner = TaskRunner(
        FunctionalModel(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        keras.optimizers.SGD(RATE),
        learner,
        task_layers=(),
    )
    found = [runner.train(SeededTask(task, seed=7, steps=steps)) for task in tasks]
    return np.stack(
        [np.concatenate([np.ravel(part) for part in each.meta_gradient]) for each in found]
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data_dir")
    arguments.add_argument("--run", help="folder of a run with 32 filters")
    options = arguments.parse_args()
    leap_tf.configure_threads()
    tasks = leap_tf.datasets.alphabet_splits("omniglot", data_dir=options.data_dir).test[:TASKS]
    keras.utils.set_random_seed(0)
    models = {"fresh": leap_tf.conv_net(filters=32)}
    if options.run:
        path = os.path.join(options.run, "initialization.keras")
        models["learned"] = keras.saving.load_model(path)
    print(f"{'from':10}{'steps':>8}{'cosine':>10}{'length ratio':>16}")
    for name, model in models.items():
        for steps in (50, 300, 1000):
            leap = meta_gradients(model, leap_tf.Leap(), tasks, steps)
            reptile = meta_gradients(model, leap_tf.Reptile(), tasks, steps)
            lengths = [np.linalg.norm(each, axis=1) for each in (leap, reptile)]
            cosine = np.sum(leap * reptile, axis=1) / (lengths[0] * lengths[1])
            ratio = lengths[0] / lengths[1]
            print(f"{name:10}{steps:8}{cosine.mean():10.3f}{ratio.mean():16.2f}", flush=True)


if __name__ == "__main__":
    main()
