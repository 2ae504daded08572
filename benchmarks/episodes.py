"""Speed of drawing Omniglot's episodes on one core. Prints episodes a second.

    python benchmarks/episodes.py

The episodes are 5-way, 1-shot, with 5 queries of each class and quarter turns, from 1,100 classes
of 20 images [28, 28, 1]. The images are noise, since the time does not depend on their content.

"draw" is `Episodes.draw`, by which trainers draw an episode. "data set" is `Episodes.as_dataset`.
"first batches" draws an episode and takes its first support and query batch, as a trainer does.
Below are the parts of "draw": the call of a function of TensorFlow that does nothing, and what
draws classes and examples, gathers images and scales pixels besides.

Contenders take turns, so that a busy machine slows all of them. The median over the rounds is
reported, and the fastest round, which is nearest to a machine that does nothing else.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import pixels_to_floats
from leap_tf.datasets import Episodes, load_classes

CLASSES, EXAMPLES, WAYS, SHOTS, QUERIES = 1100, 20, 5, 1, 5
CALLS = 5  # in a round


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)

    images = np.random.default_rng(0).integers(
        0, 256, (CLASSES * EXAMPLES, 28, 28, 1), dtype=np.uint8
    )
    classes = load_classes((images, np.repeat(np.arange(CLASSES), EXAMPLES)))
    distribution = Episodes(classes, WAYS, SHOTS, QUERIES, quarter_turns=True)
    stream = iter(distribution.as_dataset())
    tasks = iter(distribution.first((arguments.rounds + 1) * CALLS))
    turned = tf.constant(np.concatenate([images] * 4))
    indices = iter(range(2**40, 2**62))

    def first_batches():
        task = next(tasks)
        task.few_batches(seed=0, batches=2).at(0)
        next(iter(task.query_batches(seed=0)))

    def called(body):
        signature = [tf.TensorSpec((2,), tf.int64)]
        function = tf.function(body, input_signature=signature, autograph=False)
        function = function.get_concrete_function()
        return lambda: function(tf.constant([0, next(indices)], tf.int64))

    def random_numbers(key):
        first, _, last = tf.unstack(tf.random.experimental.stateless_split(key, 3))
        order = tf.random.stateless_uniform([4 * CLASSES], first)
        chosen = tf.math.top_k(order, WAYS).indices
        order = tf.random.stateless_uniform([WAYS, EXAMPLES], last)
        return chosen, tf.math.top_k(order, SHOTS + QUERIES).indices

    def rows(key):
        return tf.range(WAYS * (SHOTS + QUERIES)) + tf.cast(key[1] % 1000, tf.int32)

    contenders = {
        "draw": lambda: distribution.draw(next(indices)),
        "data set": lambda: next(stream),
        "first batches": first_batches,
        "an empty call": called(tf.identity),
        "call and random numbers": called(random_numbers),
        "call and gathering": called(lambda key: tf.gather(turned, rows(key))),
        "call, gathering, scaling": called(
            lambda key: pixels_to_floats(tf.gather(turned, rows(key)))
        ),
    }
    seconds = {name: [] for name in contenders}
    for index in range(arguments.rounds + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                contender()
            if index:  # after the warm-up
                seconds[name].append((time.perf_counter() - started) / CALLS)
    print(f"one core; {arguments.rounds} rounds of {CALLS}: median and fastest")
    for name, times in seconds.items():
        middle, least = statistics.median(times), min(times)
        print(
            f"{name:26}{1 / middle:8,.0f} and {1 / least:8,.0f} a second"
            f"{1e6 * middle:8.0f} and {1e6 * least:6.0f} µs"
        )


if __name__ == "__main__":
    main()
