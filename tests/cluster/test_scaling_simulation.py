"""The simulated pool, against cases that can be done by hand."""

import pytest

from benchmarks.scaling_simulation import Costs, broadcast_seconds, simulate


def costs(**changed):
    free = {
        "task_seconds": [2.0],
        "driver_seconds": 0.0,
        "step_seconds": 0.0,
        "weight_bytes": 0,
        "load_seconds": 0.0,
        "latency": 0.0,
    }
    return Costs(**(free | changed))


@pytest.mark.parametrize(("workers", "seconds"), [(1, 20.0), (2, 10.0), (3, 8.0), (50, 2.0)])
def test_without_overhead_only_rounds_of_tasks_count(workers, seconds):
    step = simulate(costs(), workers, 10)
    assert step.seconds == pytest.approx(seconds)
    assert step.tasks_per_second == pytest.approx(10 / seconds)
    assert step.worker_share == pytest.approx(20.0 / (workers * seconds))
    assert (step.lost, step.driver_share) == (0, 0.0)


def test_one_worker_waits_for_weights_messages_and_the_driver():
    step = simulate(costs(driver_seconds=0.2, latency=0.05, load_seconds=1.0), 1, 3)
    # The first task starts once the weights are loaded, at 1.05; each of the others after its
    # half of the driver's time and a message.
    assert step.seconds == pytest.approx(1.05 + 3 * (2.0 + 0.05 + 0.1) + 2 * (0.1 + 0.05))


def test_the_driver_is_the_limit_for_many_workers():
    step = simulate(costs(driver_seconds=0.01), 1000, 5000)
    assert step.tasks_per_second == pytest.approx(100, rel=0.05)
    assert step.driver_share > 0.95


def test_failures_are_begun_again_and_cost_time():
    calm, stormy = (
        simulate(costs(failures_per_hour=rate, restart_seconds=30.0), 10, 100)
        for rate in (0.0, 200.0)
    )
    assert stormy.lost > 0
    assert stormy.seconds > calm.seconds


def test_nodes_pass_the_weights_on():
    sizes = costs(weight_bytes=10**9, bytes_per_second=1e9, workers_per_node=10)
    assert [broadcast_seconds(sizes, workers) for workers in (10, 20, 40, 80)] == [0, 2, 3, 4]
