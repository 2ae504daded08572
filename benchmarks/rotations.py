"""Measures how much of the held-out error on alphabets is due to their 36 rotations.

    python benchmarks/rotations.py --run=runs/omniglot/table1_long/cells/0-30-leap_0.2

The run's initialization is adapted to each test alphabet in several ways (1,000 steps of SGD with
cosine decay from 0.1 and weight decay 0.001). A line has held-out errors in percent:

    upright            drawings are not rotated, neither in training nor held out
    rotated            the protocol of the paper: 36 rotations of both parts
    with affine        the same, with two shifted and scaled copies more of each training image
    averaged           one answer for each drawing, the mean probability over its 36 rotations
    averaged affine    the same, after training with affine copies
    all drawings       --bound_steps steps without weight decay on training and held-out drawings
                       together, in 36 rotations, evaluated on the same images: a lower bound
    nearest upright    the class of the nearest training drawing by blurred pixels, all upright
    nearest rotated    the same, among the 36 rotations of each training drawing
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import leap_tf
from leap_tf.datasets import alphabet_splits

ROTATIONS = 36
STEPS = 1000


def adapted(model, task, steps, weight_decay):
    """Returns the model, trained on a task."""
    schedule = keras.optimizers.schedules.CosineDecay(0.1, steps)
    trainer = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(schedule, weight_decay=weight_decay),
        learner=leap_tf.NoMetaLearning(),
        running_statistics="fresh",  # as in the run
        pool=1,
    )
    return trainer.adapt(task, steps)


def probabilities(model, images):
    logits = model.predict(images.astype(np.float32) / 255.0, batch_size=500, verbose=0)
    return tf.nn.softmax(logits).numpy()


def error(scores, labels):
    return 100.0 * float(np.mean(np.argmax(scores, axis=-1) != labels))


def averaged_error(scores, labels):
    """Returns the error of the mean over the rotations, which are the outer axis of a task."""
    drawings = len(labels) // ROTATIONS
    return error(scores.reshape(ROTATIONS, drawings, -1).mean(axis=0), labels[:drawings])


def nearest_error(train, test):
    """Returns the error of the nearest neighbour by the distance of blurred pixels."""
    (train_images, train_labels), (test_images, test_labels) = train, test

    def blurred(images):
        ink = tf.constant(images, tf.float32)
        return tf.reshape(tf.nn.avg_pool2d(ink, 3, 1, "SAME"), [len(images), -1]).numpy()

    known, asked = blurred(train_images), blurred(test_images)
    distances = np.square(known).sum(axis=1) - 2.0 * asked @ known.T
    return 100.0 * float(np.mean(train_labels[np.argmin(distances, axis=1)] != test_labels))


def measure(model, rotated, upright, affine, bound_steps):
    """Returns the errors on one alphabet, given its task in three forms."""
    labels = rotated.test[1]
    found = {}

    def task(train, test=rotated.test):
        return leap_tf.ArrayTask(rotated.name, train, test, prepare=rotated.prepare)

    both = [np.concatenate(parts) for parts in zip(rotated.train, affine.train)]
    scores = probabilities(adapted(model, upright, STEPS, 0.001), upright.test[0])
    found["upright"] = error(scores, upright.test[1])
    scores = probabilities(adapted(model, rotated, STEPS, 0.001), rotated.test[0])
    found["rotated"] = error(scores, labels)
    more = probabilities(adapted(model, task(tuple(both)), STEPS, 0.001), rotated.test[0])
    found["with affine"] = error(more, labels)
    found["averaged"] = averaged_error(scores, labels)
    found["averaged affine"] = averaged_error(more, labels)
    every = tuple(np.concatenate(parts) for parts in zip(rotated.train, rotated.test))
    scores = probabilities(adapted(model, task(every), bound_steps, None), every[0])
    found["all drawings"] = error(scores, every[1])
    drawings = len(labels) // ROTATIONS
    asked = rotated.test[0][:drawings], labels[:drawings]
    found["nearest upright"] = nearest_error(upright.train, asked)
    found["nearest rotated"] = nearest_error(rotated.train, asked)
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--run", required=True, help="folder of a run of cell_long.gin")
    arguments.add_argument("--data_dir")
    arguments.add_argument("--bound_steps", type=int, default=3000)
    arguments.add_argument("--output", type=pathlib.Path, help="file of JSON lines; it is resumed")
    options = arguments.parse_args()
    leap_tf.configure_threads()
    model = keras.saving.load_model(os.path.join(options.run, "initialization.keras"))
    forms = {
        "rotated": {"rotations": ROTATIONS},
        "upright": {"rotations": 1},
        "affine": {"rotations": 2 * ROTATIONS, "augmentation": "affine"},
    }
    tests = {
        form: alphabet_splits("omniglot", options.data_dir, train_alphabets=1, **settings).test
        for form, settings in forms.items()
    }
    file = options.output
    lines = file.read_text().splitlines() if file and file.exists() else []
    found = {line.pop("alphabet"): line for line in map(json.loads, lines)}
    for rotated, upright, affine in zip(*tests.values(), strict=True):
        if rotated.name not in found:
            found[rotated.name] = measure(model, rotated, upright, affine, options.bound_steps)
            if file:
                with file.open("a") as stream:
                    stream.write(
                        json.dumps({"alphabet": rotated.name} | found[rotated.name]) + "\n"
                    )
        errors = "  ".join(f"{name} {value:.1f}" for name, value in found[rotated.name].items())
        print(f"{rotated.name}: {errors}", flush=True)
    means = {
        name: np.mean([each[name] for each in found.values()])
        for name in next(iter(found.values()))
    }
    print("mean: " + "  ".join(f"{name} {value:.1f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
