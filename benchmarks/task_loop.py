"""Speed and memory of the inner loop. Prints ratios, all measured in one run.

    python benchmarks/task_loop.py

(a) the inner loop with Leap against the same loop without Leap;
(b) against plain `model.fit` with TensorFlow's default threads, in another process;
(c) floating-point operations a second, against the machine's matrix multiplication;
(d) `model.fit` with `LeapOptimizer` against plain `model.fit`, both in that other process;
(e) memory for Leap, in copies of the parameters.

Contenders take turns within each round, so that a busy machine slows all of them; the median
over the rounds is reported, with the range. The load is the paper's ConvNet, batches of 20.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import leap_tf
from leap_tf.array_tasks import pixels_to_floats
from leap_tf.functional import FunctionalModel, FunctionalOptimizer
from leap_tf.training import InnerLoop, available_cores

STEPS = 100
BATCH = 20
CLASSES = 20
PARALLEL_TASKS = 2


def example_task():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(3000, 28, 28, 1), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, size=3000)
    return leap_tf.ArrayTask(
        "noise", (images, labels), (images, labels), BATCH, prepare=pixels_to_floats
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained_by(learner, model):
    """Returns a function that trains one task in the functional loop."""
    functional = FunctionalModel(model, loss())
    inner = FunctionalOptimizer(keras.optimizers.SGD(0.1), functional.variables)
    loop = InnerLoop(functional, inner, learner, range(len(functional.variables)))

    def train(dataset, steps=STEPS):
        result = loop.train(
            iter(dataset), tf.constant(steps), functional.parameters(), functional.state(0)
        )
        return float(result.losses[-1])

    return train


def operations_of_a_step(model):
    """Returns multiplications and additions of convolutions and dense layers in one step.

    The forward pass, and twice as much for the gradients by weights and by inputs, except for
    the first layer, whose input needs none. All else (normalization, pooling) counts nothing.
    """
    total, first = 0, True
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            positions = int(np.prod(layer.output.shape[1:-1]))
            forward = 2 * BATCH * positions * int(np.prod(layer.kernel.shape))
            total += forward * (2 if first else 3)
            first = False
    return total


def matrix_multiplication_rate(threads, size=2048, repeats=4):
    """Returns floating-point operations a second of `threads` one-threaded multiplications."""
    matrix = tf.random.normal((size, size))

    def multiply(_):
        for _ in range(repeats):
            tf.linalg.matmul(matrix, matrix).numpy()

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(multiply, range(threads)))
        return threads * repeats * 2 * size**3 / (time.perf_counter() - started)


def serve_fit(connection):
    """Times a task of `model.fit` at each request, in a process with default threads."""
    batches = example_task().train_batches(0).take(STEPS)

    def fit_by(optimizer, task=lambda model: contextlib.nullcontext()):
        model = leap_tf.conv_net(classes=CLASSES)
        model.compile(optimizer, loss=loss())

        def fit():
            with task(model):
                model.fit(batches, verbose=0)

        return fit

    optimizer = leap_tf.LeapOptimizer(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
    contenders = {
        "fit": fit_by(keras.optimizers.SGD(0.1)),
        "fit with LeapOptimizer": fit_by(optimizer, optimizer.task),
    }
    for fit in contenders.values():
        fit()
    connection.send(list(contenders))
    while name := connection.recv():
        started = time.perf_counter()
        contenders[name]()
        connection.send(time.perf_counter() - started)


def measure_speed(rounds):
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    beside = context.Process(target=serve_fit, args=(theirs,), daemon=True)
    beside.start()
    beside_contenders = connection.recv()

    leap_tf.configure_threads(PARALLEL_TASKS)
    model = leap_tf.conv_net(classes=CLASSES)
    dataset = example_task().train_batches(0)
    contenders = {
        "leap": trained_by(leap_tf.Leap(), model),
        "plain": trained_by(leap_tf.NoMetaLearning(), model),
    }
    operations = operations_of_a_step(model)
    seconds = {name: [] for name in (*contenders, *beside_contenders)}
    rates = []
    with ThreadPoolExecutor(PARALLEL_TASKS) as pool:
        for index in range(rounds + 1):
            for name, train in contenders.items():
                started = time.perf_counter()
                list(pool.map(train, [dataset] * (2 * PARALLEL_TASKS)))
                seconds[name].append((time.perf_counter() - started) / (2 * PARALLEL_TASKS))
            for name in beside_contenders:
                connection.send(name)
                seconds[name].append(connection.recv())
            rates.append(matrix_multiplication_rate(PARALLEL_TASKS))
            if index == 0:  # warm-up
                rates.clear()
                for times in seconds.values():
                    times.clear()
    connection.send(None)
    beside.join()

    def ratio(name, values):
        print(f"{name:58} {statistics.median(values):6.3f}   ({min(values):.3f}–{max(values):.3f})")

    for name, times in seconds.items():
        ratio(f"ms a gradient step, {name}", [1e3 * value / STEPS for value in times])
    ratio("(a) leap / plain", [a / b for a, b in zip(seconds["leap"], seconds["plain"])])
    ratio("(b) leap / model.fit", [a / b for a, b in zip(seconds["leap"], seconds["fit"])])
    ratio("GFLOP/s, matrix multiplication", [rate / 1e9 for rate in rates])
    shares = [
        operations * STEPS / time_of_task / rate
        for time_of_task, rate in zip(seconds["leap"], rates)
    ]
    ratio(f"(c) leap's share of that ({operations / 1e9:.2f} GFLOP a step)", shares)
    wrapped = zip(seconds["fit with LeapOptimizer"], seconds["fit"])
    ratio("(d) model.fit with LeapOptimizer / model.fit", [a / b for a, b in wrapped])


def peak_memory(learner_name, steps, tasks, answer):
    """Measures peak memory of training in a new process, in copies of the parameters."""
    leap_tf.configure_threads(1)
    width, depth = 2048, 6
    model = keras.Sequential(
        [keras.layers.Input((width,))]
        + [keras.layers.Dense(width, activation="tanh", use_bias=False) for _ in range(depth)]
    )
    functional = FunctionalModel(model, keras.losses.MeanSquaredError())
    inner = FunctionalOptimizer(keras.optimizers.SGD(0.1), functional.variables)
    learner = {"leap": leap_tf.Leap(), "plain": leap_tf.NoMetaLearning()}[learner_name]
    loop = InnerLoop(functional, inner, learner, range(depth))
    inputs = tf.ones((2, width))

    def train(steps):
        dataset = tf.data.Dataset.from_tensors((inputs, inputs)).repeat()
        loop.train(iter(dataset), tf.constant(steps), functional.parameters(), [])

    copy_bytes = 4 * depth * width**2
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest value so far
    for _ in range(tasks):
        train(steps)
    answer.put((resident("VmHWM") - before) / copy_bytes)


def resident(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure_memory():
    context = multiprocessing.get_context("spawn")
    print("(e) peak memory in copies of the parameters, beyond those of the model")
    for steps, tasks in ((5, 1), (50, 1), (5, 10)):
        copies = {}
        for name in ("plain", "leap"):
            answer = context.Queue()
            process = context.Process(target=peak_memory, args=(name, steps, tasks, answer))
            process.start()
            copies[name] = answer.get()
            process.join()
        print(
            f"    {steps:3} steps, {tasks:2} tasks: plain {copies['plain']:.1f}, "
            f"leap {copies['leap']:.1f}, for Leap {copies['leap'] - copies['plain']:.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{available_cores()} cores; median over {arguments.rounds} rounds (range)")
    measure_speed(arguments.rounds)
    measure_memory()


if __name__ == "__main__":
    main()
