"""Time of MAML's meta-gradient beside `torch.func` and TorchOpt. Prints ms a task and ratios.

    pip install --no-deps -r requirements-torch.txt
    python benchmarks/second_order.py

The task is 1-shot with 5 queries of each class, on images [28, 28, 1] of noise. The network is
`leap_tf.conv_net` with 64 filters, and all contenders have it with the same weights: batch
normalization with the statistics of the batch, five steps of SGD, and the gradient of the query
loss through these steps. Before anything is timed, their meta-gradients through one step are
compared. Where two pixels of a pooling window are almost equal, rounding decides which one is the
larger, and the meta-gradient then differs by about 1e-3, from one in double precision too. So
images and weights are drawn up to eight times, until the contenders agree to 1e-4.

All have two threads. leap_tf runs two tasks at a time with one thread each, as trainers do. PyTorch
runs one task at a time on two threads. TorchOpt is also timed with two tasks at a time, for which
the nested gradients of `torch.func` are not safe. Only leap_tf keeps running statistics.

Contenders take turns, so that a busy machine slows all of them. The median over the rounds is
reported, with the range, the median of the ratios within a round, and the time of the cores, which
depends less on other programs. On a busy machine, set OMP_WAIT_POLICY=passive, since otherwise the
threads of PyTorch wait for each other by spinning.

With --profile, the operations of leap_tf are timed on one thread instead.
"""

import argparse
import collections
import os
import pathlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import torch
import torchopt

import leap_tf
from leap_tf.array_tasks import one_thread_options
from leap_tf.functional import FunctionalModel, FunctionalOptimizer
from leap_tf.training import InnerLoop

STEPS, RATE, QUERIES = 5, 0.1, 5
TASKS = 2  # in a turn, and threads of every contender
WAYS = (5, 20)
TOLERANCE, DRAWS = 1e-4, 8  # relative distance of meta-gradients through one step


class ConvNet(torch.nn.Module):
    """`leap_tf.conv_net` in PyTorch."""

    def __init__(self, model):
        super().__init__()
        layers, channels = [], 1
        for _ in range(4):
            layers += [
                torch.nn.Conv2d(channels, 64, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(64, eps=1e-5, track_running_stats=False),
                torch.nn.MaxPool2d(2),
                torch.nn.ReLU(),
            ]
            channels = 64
        head = torch.nn.Linear(64, model.output_shape[-1])
        self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten(), head)
        for parameter, variable in zip(self.parameters(), model.trainable_variables, strict=True):
            parameter.data = torch.from_numpy(as_torch(variable.numpy()))

    def forward(self, images):
        return self.layers(images)


def as_torch(weights):
    """Kernels [height, width, in, out] and [in, out] in the order of PyTorch."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(weights.ndim, (0,))
    return np.ascontiguousarray(weights.transpose(order))


def ours(model, support, query, steps):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    functional = FunctionalModel(model, loss)
    optimizer = FunctionalOptimizer(keras.optimizers.SGD(RATE), functional.variables)
    indices = range(len(functional.variables))
    loop = InnerLoop(functional, optimizer, leap_tf.MAML(), indices)
    # With the options of `ArrayTask`. tf.data's autotuning stalls such a pipeline for up to 0.6 s.
    support, query = (
        tf.data.Dataset.from_tensors(part).repeat().with_options(one_thread_options())
        for part in (support, query)
    )

    def meta_gradient():
        found = loop.train(
            iter(support),
            steps,
            functional.parameters(),
            functional.state(0),
            queries=iter(query),
            second_order=True,
        )
        return [each.numpy() for each in found.update.meta_gradient]

    return meta_gradient


def by_torch_func(network, support, query, steps):
    parameters = {name: each.detach() for name, each in network.named_parameters()}

    def loss(values, part):
        logits = torch.func.functional_call(network, values, (part[0],))
        return torch.nn.functional.cross_entropy(logits, part[1])

    def objective(values):
        for _ in range(steps):
            gradients = torch.func.grad(loss)(values, support)
            values = {name: each - RATE * gradients[name] for name, each in values.items()}
        return loss(values, query)

    return lambda: list(torch.func.grad(objective)(parameters).values())


def by_torchopt(network, support, query, steps):
    parameters = list(network.parameters())
    loss = torch.nn.functional.cross_entropy

    def meta_gradient():
        optimizer = torchopt.MetaSGD(network, lr=RATE)
        start = torchopt.extract_state_dict(network, by="reference")
        for _ in range(steps):
            optimizer.step(loss(network(support[0]), support[1]))
        found = torch.autograd.grad(loss(network(query[0]), query[1]), parameters)
        torchopt.recover_state_dict(network, start)
        return list(found)

    return meta_gradient


def draw(ways, seed):
    """Returns a model, and the support and query set for it and for PyTorch."""
    keras.utils.set_random_seed(seed)
    model = leap_tf.conv_net(classes=ways)
    rng = np.random.default_rng(seed)
    parts = [
        (rng.random((ways * each, 28, 28, 1), np.float32), np.repeat(np.arange(ways), each))
        for each in (1, QUERIES)
    ]
    in_torch = [
        (torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))
        for images, labels in parts
    ]
    return model, parts, in_torch


def distances(model, parts, in_torch):
    """Returns the relative distance of each contender's meta-gradient from that of leap_tf."""
    contenders = {
        "leap_tf": [as_torch(each) for each in ours(model, *parts, steps=1)()],
        "torch.func": by_torch_func(ConvNet(model), *in_torch, steps=1)(),
        "TorchOpt": by_torchopt(ConvNet(model), *in_torch, steps=1)(),
    }
    first, *others = (
        np.concatenate([np.asarray(each).ravel() for each in gradient])
        for gradient in contenders.values()
    )
    found = (np.linalg.norm(other - first) / np.linalg.norm(first) for other in others)
    return dict(zip(list(contenders)[1:], found))


def measure(ways, rounds, pool):
    print(f"{ways}-way, {rounds} rounds", flush=True)
    for seed in range(DRAWS):
        model, parts, in_torch = draw(ways, seed)
        apart = distances(model, parts, in_torch)
        listed = ", ".join(f"{name} {distance:.1e}" for name, distance in apart.items())
        print(f"  meta-gradients of draw {seed}, relative distance from ours: {listed}")
        if max(apart.values()) < TOLERANCE:
            break
    else:
        raise ValueError("The contenders do not compute the same meta-gradient in any draw.")
    by_ours = ours(model, *parts, STEPS)
    by_func = by_torch_func(ConvNet(model), *in_torch, STEPS)
    by_opt = [by_torchopt(ConvNet(model), *in_torch, STEPS) for _ in range(TASKS)]
    contenders = {
        "leap_tf": (pool.map, [by_ours] * TASKS),
        "torch.func": (map, [by_func] * TASKS),
        "TorchOpt": (map, by_opt),
        "TorchOpt, two tasks at a time": (pool.map, by_opt),
    }
    seconds, used = ({name: [] for name in contenders} for _ in range(2))
    for index in range(rounds + 1):
        for name, (each_of, gradients) in contenders.items():
            started, cores = time.perf_counter(), time.process_time()
            list(each_of(lambda gradient: gradient(), gradients))
            if index:  # after the warm-up
                seconds[name].append((time.perf_counter() - started) / TASKS)
                used[name].append((time.process_time() - cores) / TASKS)
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["leap_tf"], strict=True))
        middle, least, most = (1e3 * f(times) for f in (statistics.median, min, max))
        print(
            f"  {name:32}{middle:7.1f} ms a task ({least:.1f}–{most:.1f}), ratio {ratio:.2f}; "
            f"{1e3 * statistics.median(used[name]):.1f} ms of cores",
            flush=True,
        )


def profile(ways, runs=10):
    """Prints the time of each kind of operation in our meta-gradient, by TensorFlow's profiler."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    model, parts, _ = draw(ways, seed=0)
    gradient = ours(model, *parts, STEPS)
    for _ in range(5):
        gradient()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(runs):
                gradient()
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = xplane_pb2.XSpace.FromString(trace.read_bytes()).planes
    times = collections.Counter()
    for plane in planes:
        for event in (event for line in plane.lines for event in line.events):
            operation = plane.event_metadata[event.metadata_id].name.partition(":")[2]
            operation = operation.removeprefix("_Mkl").removeprefix("Native")
            if operation[:1].isalpha():  # not a function, nor one of TensorFlow's own spans
                times[operation] += event.duration_ps / 1e9 / runs
    print(f"{ways}-way, ms of one core a task in our operations, {sum(times.values()):.1f} in all")
    for operation, milliseconds in times.most_common(16):
        print(f"  {operation:32}{milliseconds:7.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ways", type=int, nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--profile", action="store_true", help="time our operations instead")
    arguments = parser.parse_args()
    if arguments.profile:
        leap_tf.configure_threads(1)
        for ways in arguments.ways:
            profile(ways)
        return
    leap_tf.configure_threads(TASKS)
    torch.set_num_threads(TASKS)
    with ThreadPoolExecutor(TASKS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for ways in arguments.ways:
            measure(ways, arguments.rounds, pool)


if __name__ == "__main__":
    main()
