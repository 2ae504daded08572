"""Tests that memory, open files and traces do not grow with the number of meta-steps."""

import threading

from leap_tf.training import Job, TaskSpec, ThreadPool
from tests.faults.long_run import growth, run_long


def test_a_long_run_does_not_grow(tmp_path):
    """A short form of `python -m tests.faults long`, with the same bound on the growth.

    At some 700 MB, it detects a meta-step that keeps 60 kB.
    """
    warm_up, meta_steps = 60, 200
    run = run_long(tmp_path, meta_steps, validation_freq=20)
    assert growth(run.memory, warm_up) < 0.01
    assert run.files[-1] <= run.files[warm_up]
    assert run.threads[-1] <= run.threads[warm_up]
    # Training is traced in the first meta-step, evaluation with the first validation.
    assert set(run.traces[:19]) == {run.traces[0]}
    assert set(run.traces[19:]) == {run.traces[19]}
    assert run.traces[0] > 0


SIX = [TaskSpec("train", 0, index, seed=index, steps=1) for index in range(6)]


def job(run):
    return Job(
        "train", run, task_name=str, result_type=object, check=lambda result: None, variables=[]
    )


def test_a_pool_keeps_its_threads():
    """TensorFlow keeps memory for every thread it has ever seen."""
    pool, thread = ThreadPool(2), job(lambda _: threading.current_thread())
    assert len({each for _ in range(20) for each in pool.map(thread, SIX)}) <= 2


def test_a_pool_that_is_closed_early_ends_what_is_started_and_starts_no_more():
    pool, done = ThreadPool(1), []
    results = pool.map(job(done.append), SIX)
    next(results)
    results.close()
    ended = len(done)
    assert ended <= 2
    seeds = job(lambda spec: spec.seed)
    assert list(pool.map(seeds, SIX)) == [0, 1, 2, 3, 4, 5]  # and it can be used again
    assert len(done) == ended


def test_growth_is_seen():
    steady, leaking = [1000] * 200, [1000 + step for step in range(200)]
    assert growth(steady, 50) == 0
    assert 0.1 < growth(leaking, 50) < 0.2
