"""Simulates a meta-step on many workers, event by event.

The simulation follows `RayPool`: the driver handles one event at a time, gives a task to
each idle worker in the order of the tasks, at most twice as many ahead as there are workers, takes
in results as they come and adds them up. A worker that fails loses its task, which is started
again, and is ready after it has restarted.
"""

import dataclasses
import heapq
import math
import random
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Costs:
    """Durations in seconds, and sizes.

    Attributes:
        task_seconds: measured durations of tasks; the simulation draws from them.
        driver_seconds: of the driver for each task: hand it out, take in, decode, add up.
        step_seconds: of the driver for each meta-step beside: fetch weights, apply the update.
        weight_bytes: of the weights.
        bytes_per_second: between two nodes.
        latency: of a message.
        load_seconds: until a worker has assigned weights that are on its node.
        workers_per_node: CPUs of a node.
        failures_per_hour: of a worker.
        restart_seconds: until another one is ready in its place.
    """

    task_seconds: Sequence[float]
    driver_seconds: float
    step_seconds: float
    weight_bytes: int
    load_seconds: float
    bytes_per_second: float = 1.25e9
    latency: float = 0.5e-3
    workers_per_node: int = 32
    failures_per_hour: float = 0.0
    restart_seconds: float = 15.0


@dataclasses.dataclass(frozen=True)
class MetaStep:
    """The result of a simulation.

    Attributes:
        seconds: how long it took.
        tasks_per_second: throughput.
        driver_share: of the time in which the driver was busy with tasks.
        broadcast_share: of the time before the last node had the weights.
        worker_share: of the workers' time in which they worked on tasks that counted.
        lost: tasks that were started again.
    """

    seconds: float
    tasks_per_second: float
    driver_share: float
    broadcast_share: float
    worker_share: float
    lost: int


def broadcast_seconds(costs: Costs, workers: int) -> float:
    """Returns the time until all nodes have the weights: those that have them pass them on."""
    nodes = math.ceil(workers / costs.workers_per_node)
    if nodes <= 1:
        return costs.latency
    rounds = math.ceil(math.log2(nodes + 1))
    return rounds * (costs.latency + costs.weight_bytes / costs.bytes_per_second)


def simulate(costs: Costs, workers: int, tasks: int, seed: int = 0) -> MetaStep:
    """Simulates one meta-step.

    Args:
        costs: durations and sizes.
        workers: how many, all ready when the meta-step begins.
        tasks: of the meta-batch.
        seed: of durations and failures.
    """
    chance = random.Random(seed)
    broadcast = broadcast_seconds(costs, workers)
    first_start = broadcast + costs.load_seconds
    half = costs.driver_seconds / 2  # one half to hand out, the other to take in
    driver = costs.step_seconds / 2  # when it is free again
    busy = 0.0
    waiting = list(range(tasks))
    done: set[int] = set()
    left, lost, worked = 0, 0, 0.0
    idle = list(range(workers))
    loaded = [False] * workers
    events: list[tuple[float, int, int]] = []  # (time, worker, task or -1 if it is lost)
    running: dict[int, int] = {}
    back: list[tuple[float, int]] = []

    while left < tasks:
        while idle and waiting and waiting[0] < left + 2 * workers:
            worker, task = idle.pop(), heapq.heappop(waiting)
            driver += half
            busy += half
            start = driver + costs.latency
            if not loaded[worker]:
                start, loaded[worker] = max(start, first_start), True
            duration = chance.choice(costs.task_seconds)
            rate = costs.failures_per_hour / 3600.0
            failure = chance.expovariate(rate) if rate else math.inf
            running[worker] = task
            if failure < duration:
                heapq.heappush(events, (start + failure + costs.latency, worker, -1))
            else:
                worked += duration
                heapq.heappush(events, (start + duration + costs.latency, worker, task))
        if back and (not events or back[0][0] <= events[0][0]):
            time, worker = heapq.heappop(back)
            driver = max(driver, time)
            idle.append(worker)
            continue
        time, worker, task = heapq.heappop(events)
        driver = max(driver, time) + half
        busy += half
        if task < 0:
            lost += 1
            heapq.heappush(waiting, running.pop(worker))
            loaded[worker] = False
            heapq.heappush(back, (driver + costs.restart_seconds, worker))
            continue
        done.add(running.pop(worker))
        idle.append(worker)
        while left in done:
            left += 1
    seconds = driver + costs.step_seconds / 2
    return MetaStep(
        seconds,
        tasks / seconds,
        busy / seconds,
        min(1.0, broadcast / seconds),
        worked / (workers * seconds),
        lost,
    )
