"""Speed of predictions and adaptations of an export, in-process and through the server.

    python benchmarks/serving.py

(a) `adapt` in-process against the library's evaluation of the same task, and against the same
    done with plain Keras in Python: model.fit and a prediction, in another process, with
    TensorFlow's default threads. `adapt` also evaluates the support set. All take turns within each
    round; the median over the rounds is reported, with the range, of the clock and of the
    processor. The latter hardly depends on what else the machine does.
(b) latency (p50, p95, p99) and throughput at 1, 4 and 16 clients, of `serving_default` and `adapt`,
    in-process and through examples/serving over HTTP and gRPC, if its environment is there. Clients
    share the machine with the server.

The load is the paper's ConvNet for 20 classes of 28×28 pixels, a support set of 5 images a class,
batches of 20, 100 queries.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import leap_tf
from leap_tf.array_tasks import pixels_to_floats
from leap_tf.training import available_cores

CLASSES, SHOTS, QUERIES, BATCH, RATE = 20, 5, 100, 20, 0.1
FEW, MANY = 8, 100
CLIENTS = (1, 4, 16)
EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "serving"


def example_task():
    rng = np.random.default_rng(0)
    support, queries = (
        rng.integers(0, 256, size=(count, 28, 28, 1), dtype=np.uint8)
        for count in (CLASSES * SHOTS, QUERIES)
    )
    labels = np.arange(CLASSES * SHOTS) % CLASSES
    answers = np.arange(QUERIES) % CLASSES
    return leap_tf.ArrayTask(
        "noise",
        (support, labels),
        (queries, answers),
        BATCH,
        test_batch_size=QUERIES,
        prepare=pixels_to_floats,
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_trainer():
    keras.utils.set_random_seed(0)
    return leap_tf.MetaTrainer(
        leap_tf.conv_net(classes=CLASSES),
        loss(),
        keras.optimizers.SGD(RATE),
        keras.optimizers.SGD(RATE),
        pool=1,
    )


def request_of(task, steps):
    return {
        "support_x": task.train[0],
        "support_y": task.train[1].astype(np.int32),
        "query_x": task.test[0],
        "steps": np.int32(steps),
        "batch_size": np.int32(BATCH),
        "learning_rate": np.float32(RATE),
        "seed": np.int64(0),
        "num_classes": np.int32(CLASSES),
    }


def serve_fit(connection):
    """Adapts by `model.fit` at each request, in a process with default threads."""
    task = example_task()
    keras.utils.set_random_seed(0)
    model = leap_tf.conv_net(classes=CLASSES)
    model.compile(keras.optimizers.SGD(RATE), loss=loss())
    initialization = model.get_weights()
    batches = task.train_batches(0)
    queries = task.test[0] / np.float32(255)

    def adapt(steps):
        model.set_weights(initialization)
        model.fit(batches.take(steps), verbose=0)
        model.predict_on_batch(queries)

    for steps in (FEW, MANY):
        adapt(steps)
    connection.send("ready")
    while steps := connection.recv():
        connection.send(time_of(adapt, steps))


class Time(NamedTuple):
    """Seconds of a call: by the clock, and of all processor cores together."""

    clock: float
    processor: float


def time_of(function, *arguments):
    clock, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return Time(time.perf_counter() - clock, time.process_time() - processor)


def compare(trainer, signatures, rounds):
    """(a): the same adaptation by three contenders in turn."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    beside = context.Process(target=serve_fit, args=(theirs,), daemon=True)
    beside.start()
    assert connection.recv() == "ready"
    task = example_task()
    feeds = {steps: as_tensors(request_of(task, steps)) for steps in (FEW, MANY)}

    def fit(steps):
        connection.send(steps)
        return connection.recv()

    contenders = {
        "adapt": lambda steps: time_of(lambda: signatures["adapt_uint8"](**feeds[steps])),
        "evaluate": lambda steps: time_of(trainer.evaluate, [task], steps),
        "model.fit": fit,
    }
    times = {(name, steps): [] for name in contenders for steps in (FEW, MANY)}
    for index in range(rounds + 1):
        for (name, steps), taken in times.items():
            taken.append(contenders[name](steps))
            if index == 0:  # warm-up
                taken.clear()
    connection.send(0)
    beside.join()
    for kind in Time._fields:
        seconds = {key: [getattr(one, kind) for one in taken] for key, taken in times.items()}
        for name in contenders:
            pairs = zip(seconds[name, FEW], seconds[name, MANY])
            seconds[name, 1] = [(many - few) / (MANY - FEW) for few, many in pairs]
        print(f"(a) {kind} time; '1 step' is the difference of {MANY} and {FEW}, over {MANY - FEW}")
        for steps in (FEW, MANY, 1):
            for name in contenders:
                report(f"ms, {steps} steps, {name}", [1e3 * each for each in seconds[name, steps]])
            for other in ("evaluate", "model.fit"):
                pairs = zip(seconds["adapt", steps], seconds[other, steps])
                report(f"adapt / {other}, {steps} steps", [a / b for a, b in pairs])


def report(name, values):
    print(f"{name:50} {statistics.median(values):8.3f}   ({min(values):.3f}–{max(values):.3f})")


def as_tensors(request):
    return {name: tf.constant(value) for name, value in request.items()}


def percentiles(name, clients, seconds, total):
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
    print(
        f"{name:34} {clients:7} {p50:9.1f} {p95:9.1f} {p99:9.1f} {len(seconds) / total:12.1f}"
        f" {len(seconds):6}",
        flush=True,
    )


def in_process(function, feed, clients, calls):
    """Latencies of a signature that several threads call."""
    for _ in range(2):
        function(**feed)

    def serve_client(number):
        return [time_of(lambda: function(**feed)).clock for _ in range(number, calls, clients)]

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        seconds = [each for part in pool.map(serve_client, range(clients)) for each in part]
        return seconds, time.perf_counter() - started


def through_server(address, protocol, signature, request, clients, calls):
    """Latencies of a signature that clients in another process call."""
    command = [EXAMPLE / ".venv" / "bin" / "python", EXAMPLE / "load.py", request]
    command += [f"--signature={signature}", f"--clients={clients}", f"--calls={calls}"]
    command += [f"--protocol={protocol}", f"--address={address}"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result["seconds"], result["total"]


def start_server(saved_model, log):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = dict(zip(("http", "grpc"), [each.getsockname()[1] for each in sockets]))
    for each in sockets:
        each.close()
    command = [EXAMPLE / ".venv" / "bin" / "python", EXAMPLE / "server.py"]
    command += [f"--saved_model={saved_model}"]
    command += [f"--{protocol}_port={port}" for protocol, port in ports.items()]
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    return server, {protocol: f"127.0.0.1:{port}" for protocol, port in ports.items()}


def measure_load(folder, signatures, share):
    """(b): latency and throughput, in-process and through the server."""
    task = example_task()
    loads = {  # name: signature, request, calls
        "serving_default": ("serving_default_uint8", {"inputs": task.test[0][:20]}, 400),
        f"adapt, {FEW} steps": ("adapt_uint8", request_of(task, FEW), 160),
        f"adapt, {MANY} steps": ("adapt_uint8", request_of(task, MANY), 32),
    }
    print("(b) latency in ms, and calls a second")
    print(f"{'':34} clients       p50       p95       p99   throughput  calls")
    for name, (signature, request, calls) in loads.items():
        np.savez(folder / f"{name}.npz", **request)
        for clients in CLIENTS:
            made = max(clients, int(share * calls))
            times = in_process(signatures[signature], as_tensors(request), clients, made)
            percentiles(f"{name}, in-process", clients, *times)
    if not (EXAMPLE / ".venv" / "bin" / "python").exists():
        print("No server: examples/serving/make_environment.sh makes its environment.")
        return
    with open(folder / "log", "w") as log:
        server, addresses = start_server(folder / "export" / "saved_model", log)
        try:
            for protocol, address in addresses.items():
                for name, (signature, _, calls) in loads.items():
                    for clients in CLIENTS:
                        made = max(clients, int(share * calls))
                        request = folder / f"{name}.npz"
                        times = through_server(address, protocol, signature, request, clients, made)
                        percentiles(f"{name}, {protocol}", clients, *times)
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="Of (a); 0 leaves it out.")
    parser.add_argument("--share", type=float, default=1.0, help="Of (b)'s calls; 0 leaves it out.")
    options = parser.parse_args()
    leap_tf.configure_threads()
    print(f"{available_cores()} cores; median over {options.rounds} rounds (range)")
    trainer = make_trainer()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        leap_tf.export(trainer, folder / "export", pixels_to_floats)
        signatures = tf.saved_model.load(folder / "export" / "saved_model").signatures
        if options.rounds:
            compare(trainer, signatures, options.rounds)
        if options.share:
            measure_load(folder, signatures, options.share)


if __name__ == "__main__":
    main()
