"""Scaling of meta-training over workers: measured with one and two, simulated for more.

    python benchmarks/scaling.py --data_dir=~/tensorflow_datasets

(a) two Ray workers with one thread each against one, and the Ray pool against threads of one
process at equal cores: meta-batches of a configuration, contenders taking turns within each
round; medians over the rounds of ratios within a round, with the range. By the clock, and by
processor time of the driver, the workers and all of Ray, which does not see a busy machine;
(b) the time of a task, of an exchange of weights, and of the driver;
(c) a simulation of the pool with these figures (`scaling_simulation.py`), checked against (a),
for 1 to 10,000 workers: strong scaling, a fixed meta-batch, and weak scaling, one that grows.

Needs the extra `cluster`.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default, which is no equal contender

import numpy as np
import psutil
import ray
from scaling_simulation import Costs, broadcast_seconds, simulate

from leap_tf.cluster import RayPool
from leap_tf.experiments.commands import ConfiguredStudyFactory
from leap_tf.experiments.config import configured_study, read_configuration
from leap_tf.serialization import decode, encode
from leap_tf.training import (
    Job,
    TaskGradient,
    ThreadPool,
    available_cores,
    configure_threads,
)
from leap_tf.training.problem import check_gradient

ROOT = pathlib.Path(__file__).parents[1]
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
TASKS_PER_WORKER = 5  # as ten tasks on two workers
PAPER_TASKS = 20  # of a meta-batch


def show(name, values, unit="", scale=1.0):
    middle, low, high = (scale * f(values) for f in (statistics.median, min, max))
    print(f"  {name:58} {middle:9.3f} {unit:3} ({low:.3f}–{high:.3f})")


class Bench:
    """Trains the same meta-batches on one pool or another."""

    def __init__(self, study):
        self.problem = problem = study.trainer.problem
        self.job = Job(
            "train",
            problem.train,
            task_name=lambda spec: problem.sampler.resolve(spec).name,
            result_type=TaskGradient,
            check=lambda result: check_gradient(result, problem),
            variables=problem.variables,
        )

    def meta_batch(self, number):
        return self.problem.sampler.training_specs(number)

    def map(self, pool, number):
        """Returns seconds by the clock, of processors, and of the driver's thread; and the sum."""
        specs = self.meta_batch(number)
        start, processors, worked = time.perf_counter(), processor_time(), time.thread_time()
        total = None
        with contextlib.closing(pool.map(self.job, specs)) as results:
            for result in results:
                gradient = result.meta_gradient
                total = gradient if total is None else [a + b for a, b in zip(total, gradient)]
        worked = time.thread_time() - worked
        clock = time.perf_counter() - start
        return clock, processor_time() - processors, worked, total


def processor_time():
    """Returns seconds of this process and of all that it has started."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def measure_pools(bench, pools, rounds):
    """Seconds by the clock, of processors and of the driver's thread: by contender and round."""
    clock, processors, driver = ({name: [] for name in pools} for _ in range(3))
    for number in range(rounds + 1):
        order = list(pools) if number % 2 else list(pools)[::-1]
        sums = {}
        for name in order:
            *found, sums[name] = bench.map(pools[name], number)
            if number:  # the first one traces
                for values, value in zip((clock, processors, driver), found, strict=True):
                    values[name].append(value)
        for gradient in zip(*sums.values()):
            for other in gradient[1:]:
                np.testing.assert_array_equal(gradient[0], other)
    return clock, processors, driver


def show_ratios(seconds):
    for name, values in seconds.items():
        show(name, values, "s")
    threads1, threads2, ray1, ray2 = seconds.values()
    show("1 Ray worker / 2 Ray workers", [a / b for a, b in zip(ray1, ray2)])
    show("1 thread / 2 threads", [a / b for a, b in zip(threads1, threads2)])
    show("1 Ray worker / 1 thread", [a / b for a, b in zip(ray1, threads1)])
    show("2 Ray workers / 2 threads", [a / b for a, b in zip(ray2, threads2)])


def measure_tasks(bench, numbers):
    """Seconds of single tasks, one at a time in this process."""
    found = []
    for number in numbers:
        for spec in bench.meta_batch(number):
            started = time.perf_counter()
            result = bench.job.run(spec)
            found.append(time.perf_counter() - started)
    return found, result


def repeated(times, function):
    found = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return found


def measure_exchange(bench, pool, result):
    """Seconds to give the weights to a worker, and to read and add up a result."""
    values = [variable.numpy() for variable in bench.problem.variables]
    worker = next(pool._group.idle())
    put = repeated(20, lambda: ray.put(values))
    reference = ray.put(values)
    load = repeated(20, lambda: ray.get(worker.actor.load.remote(reference, -1)))
    worker.version = None  # the pool must not count on what it gave before
    data = encode(result)
    read = repeated(20, lambda: bench.job.check(decode(data, TaskGradient)))
    gradient = result.meta_gradient
    add = repeated(20, lambda: [a + b for a, b in zip(gradient, gradient)])
    return sum(value.nbytes for value in values), len(data), put, load, read, add


def report_simulation(costs, tasks, failures):
    print(f"\n  strong scaling: {tasks} tasks in a meta-batch, no failures")
    table(costs, lambda workers: tasks, [count for count in WORKERS if count <= 200])
    print(f"\n  weak scaling: {TASKS_PER_WORKER} tasks for each worker, no failures")
    table(costs, lambda workers: TASKS_PER_WORKER * workers, WORKERS)
    print(f"\n  weak scaling, and each worker fails every {1 / failures:g} hours")
    failing = Costs(**{**vars(costs), "failures_per_hour": failures})
    table(failing, lambda workers: TASKS_PER_WORKER * workers, WORKERS)


def table(costs, tasks_of, workers):
    alone = 1.0 / statistics.mean(costs.task_seconds)
    print("    workers   tasks/s  efficiency  driver busy  broadcast  started again")
    for count in workers:
        runs = [simulate(costs, count, tasks_of(count), seed) for seed in range(3)]
        rate, driver, cast, lost = (
            statistics.mean(getattr(run, name) for run in runs)
            for name in ("tasks_per_second", "driver_share", "broadcast_share", "lost")
        )
        print(
            f"    {count:7,} {rate:9.1f} {rate / count / alone:10.0%} {driver:12.0%} "
            f"{cast:10.1%} {lost:12.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default=str(ROOT / "gin_configs/omniglot/cell_cpu.gin"))
    parser.add_argument("--gin_param", action="append", default=["MetaTrainer.learner = @Leap()"])
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--failures_per_hour", type=float, default=0.01)
    arguments = parser.parse_args()
    configure_threads(2)
    config = read_configuration([arguments.gin_file], arguments.gin_param)
    data_dir = arguments.data_dir and os.path.abspath(os.path.expanduser(arguments.data_dir))
    factory = ConfiguredStudyFactory(config, data_dir)
    bench = Bench(configured_study(data_dir=data_dir))
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    tasks = bench.meta_batch(0)
    print(f"{platform.machine()}, {available_cores()} cores, Ray {ray.__version__}")
    print(
        f"load before: {os.getloadavg()[0]:.1f}; on a machine that does nothing else it is below 1"
    )
    print(
        f"{pathlib.Path(arguments.gin_file).name}: {len(tasks)} tasks of {tasks[0].steps} steps; "
        f"medians over {arguments.rounds} rounds (range)"
    )
    with RayPool(factory, 1) as one, RayPool(factory, 2) as two:
        pools = {
            "1 thread": ThreadPool(1),
            "2 threads": ThreadPool(2),
            "1 Ray worker": one,
            "2 Ray workers": two,
        }
        for pool in (one, two):  # until all workers are there, and have traced
            while bench.map(pool, 0) and not all(slot.ready for slot in pool._group._slots):
                pass
        clock, processors, driver = measure_pools(bench, pools, arguments.rounds)
        print("\n(a) a meta-batch, by the clock; all four give the same bits")
        show_ratios(clock)
        print("\n    the same in processor time")
        show_ratios(processors)
        task_seconds, result = measure_tasks(bench, range(1, 3))
        weight_bytes, sent, put, load, read, add = measure_exchange(bench, one, result)
    ray.shutdown()

    print("\n(b) parts")
    show("a task, alone in this process", task_seconds, "s")
    print(f"  {'weights; result as sent':58} {weight_bytes:9,}; {sent:,} bytes")
    show("put the weights into Ray's store", put, "ms", 1e3)
    show("load them from there into a worker", load, "ms", 1e3)
    show("decode and check a result", read, "ms", 1e3)
    show("add it up", add, "ms", 1e3)
    per_task = [value / len(tasks) for value in driver["2 Ray workers"]]
    show("the driver's thread for each task, all of it", per_task, "ms", 1e3)

    costs = Costs(
        task_seconds=task_seconds,
        driver_seconds=statistics.median(per_task),
        step_seconds=statistics.median(put),
        weight_bytes=weight_bytes,
        load_seconds=statistics.median(load),
    )
    print("\n(c) simulated; between nodes of 32 workers 10 Gbit/s and 0.5 ms are assumed")
    for workers, measured in ((1, clock["1 Ray worker"]), (2, clock["2 Ray workers"])):
        predicted = statistics.mean(
            simulate(costs, workers, len(tasks), i).seconds for i in range(9)
        )
        middle = statistics.median(measured)
        print(
            f"  a meta-batch on {workers}: predicted {predicted:.3f} s, measured {middle:.3f} s "
            f"({middle / predicted - 1:+.0%})"
        )
    report_simulation(costs, PAPER_TASKS, arguments.failures_per_hour)
    mean = statistics.mean(task_seconds)
    limit = mean / costs.driver_seconds
    summing = statistics.median(read) + statistics.median(add)
    print(
        f"\n  The driver handles {1 / costs.driver_seconds:.0f} tasks a second. At {mean:.2f} s a "
        f"task it is the limit from {limit:.0f} workers on,\n  at ten times the steps from "
        f"{10 * limit:.0f}. Decoding and adding up, which a tree of sums would spread, are "
        f"{summing / costs.driver_seconds:.0%} of its work;\n  the rest is handing out and "
        f"fetching. The broadcast to 10,000 workers takes "
        f"{1e3 * broadcast_seconds(costs, 10000):.0f} ms."
    )


if __name__ == "__main__":
    main()
