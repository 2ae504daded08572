"""Compares the meta-gradients of Leap and Reptile over the same paths on Omniglot.

    python benchmarks/directions.py --data_dir=~/tensorflow_datasets [--run=runs/omniglot]

For paths of 50, 300 and 1,000 steps from a fresh initialization, and from a run's learned one:
the cosine between the two meta-gradients, and how many times as long Leap's is. Where the loss
falls by more than the length of a step, theory says 1 and 1/α (docs/tuning.md).
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import leap_tf
from leap_tf.datasets import alphabet_splits
from leap_tf.training import TaskSpec

RATE = 0.1
TASKS = 3


def meta_gradients(model, learner, tasks, steps):
    """Returns [tasks, parameters], from the model's present weights."""
    trainer = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(RATE),
        keras.optimizers.SGD(RATE),
        learner=learner,
        pool=1,
    )
    problem = trainer.problem
    problem.sampler.use_list("test", tasks)
    specs = [TaskSpec("test", 0, index, seed=7, steps=steps) for index in range(len(tasks))]
    gradients = [problem.train(spec).meta_gradient for spec in specs]
    return np.stack([np.concatenate([np.ravel(part) for part in each]) for each in gradients])


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data_dir")
    arguments.add_argument("--run", help="folder of a run with 32 filters")
    arguments.add_argument("--steps", type=int, nargs="+", default=[50, 300, 1000])
    options = arguments.parse_args()
    leap_tf.configure_threads()
    tasks = alphabet_splits("omniglot", data_dir=options.data_dir).test[:TASKS]
    keras.utils.set_random_seed(0)
    models = {"fresh": leap_tf.conv_net(filters=32)}
    if options.run:
        path = os.path.join(options.run, "initialization.keras")
        models["learned"] = keras.saving.load_model(path)
    print(f"{'from':10}{'steps':>8}{'cosine':>10}{'length ratio':>16}")
    for name, model in models.items():
        for steps in options.steps:
            leap = meta_gradients(model, leap_tf.Leap(), tasks, steps)
            reptile = meta_gradients(model, leap_tf.Reptile(), tasks, steps)
            lengths = [np.linalg.norm(each, axis=1) for each in (leap, reptile)]
            cosine = np.sum(leap * reptile, axis=1) / (lengths[0] * lengths[1])
            ratio = lengths[0] / lengths[1]
            print(f"{name:10}{steps:8}{cosine.mean():10.3f}{ratio.mean():16.2f}", flush=True)


if __name__ == "__main__":
    main()
