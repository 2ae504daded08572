"""Cached results of tasks survive the process, and only the same meta-step uses them."""

import keras
import pytest

from leap_tf.experiments.run_directory import CachingPool
from leap_tf.training import ThreadPool
from tests.cluster.small_studies import assert_same, leap, weights
from tests.pool_contract import PoolContract


class TestCachingPool(PoolContract):
    @pytest.fixture
    def open_pool(self, tmp_path):
        return lambda factory: CachingPool(ThreadPool(2), tmp_path / "cache")


class Killed(BaseException):
    """Stands for a signal in the middle of a map."""


class CountingPool(ThreadPool):
    """Runs tasks one by one, and is killed before it starts more than `most` of them."""

    def __init__(self, most=1000):
        super().__init__(1)
        self.most, self.started = most, 0

    def map(self, job, specs):
        for spec in specs:
            if self.started == self.most:
                raise Killed
            self.started += 1
            result = job.run(spec)
            job.on_result(spec, result)
            yield result


def study(folder, pool):
    return leap(pool=CachingPool(pool, folder))


def killed_in_the_second_meta_step(tmp_path):
    """Runs six tasks per meta-step, and finishes three of the second."""
    killed = study(tmp_path / "cache", CountingPool(9))
    with pytest.raises(Killed):
        killed.trainer.fit(
            killed.tasks.train,
            3,
            checkpoint_dir=tmp_path / "checkpoints",
            checkpoint_seconds=0.0,
            verbose=False,
        )
    return sorted((tmp_path / "cache").glob("*/*.npz"))


def resumed(tmp_path):
    again = study(tmp_path / "cache", pool := CountingPool())
    again.trainer.fit(again.tasks.train, 3, checkpoint_dir=tmp_path / "checkpoints", verbose=False)
    return again, pool


@pytest.fixture(scope="module")
def undisturbed():
    whole = leap(pool=ThreadPool(1))
    whole.trainer.fit(whole.tasks.train, 3, verbose=False)
    return whole


def test_a_restart_runs_only_the_unfinished_tasks(tmp_path, undisturbed):
    cached = killed_in_the_second_meta_step(tmp_path)
    assert len(cached) == 3
    again, pool = resumed(tmp_path)
    assert pool.started == 3 + 6
    assert_same(weights(again), weights(undisturbed))
    assert len(list((tmp_path / "cache").glob("*/*.npz"))) == 6  # those of the last meta-step
    again.trainer.pool.clear()
    assert not (tmp_path / "cache").exists()


def test_results_out_of_order_are_cached(tmp_path, undisturbed):
    class FirstTaskHangs(ThreadPool):
        def map(self, job, specs):
            for spec in specs[1:]:
                job.on_result(spec, job.run(spec))
            raise Killed
            yield  # makes this a generator, as the pool's is

    killed = study(tmp_path / "cache", FirstTaskHangs(1))
    with pytest.raises(Killed):
        killed.trainer.fit(killed.tasks.train, 1, verbose=False)
    assert len(list((tmp_path / "cache").glob("*/*.npz"))) == 5
    again, pool = resumed(tmp_path)
    assert pool.started == 1 + 6 + 6
    assert_same(weights(again), weights(undisturbed))


@pytest.mark.parametrize("damage", ["cut short", "empty", "no archive"])
def test_damaged_results_are_repeated(tmp_path, undisturbed, damage, caplog):
    _, second, _ = killed_in_the_second_meta_step(tmp_path)
    if damage == "cut short":
        second.write_bytes(second.read_bytes()[:-100])
    elif damage == "no archive":
        second.write_bytes(b"\x80\x04.")
    else:
        second.write_bytes(b"")
    again, pool = resumed(tmp_path)
    assert pool.started == 4 + 6
    assert_same(weights(again), weights(undisturbed))
    assert f"Ignoring the cached result {second}" in caplog.text


def test_results_from_other_weights_are_not_used(tmp_path):
    killed_in_the_second_meta_step(tmp_path)
    other = study(tmp_path / "cache", pool := CountingPool())
    other.trainer.fit(other.tasks.train, 2, verbose=False)  # from the start: another meta-step
    assert pool.started == 12
    moved = study(tmp_path / "cache", pool := CountingPool())
    for variable in moved.trainer.model.trainable_variables:
        variable.assign(variable + keras.ops.ones_like(variable))
    moved.trainer.fit(moved.tasks.train, 1, verbose=False)
    assert pool.started == 6


def test_training_continues_if_the_cache_cannot_be_written(tmp_path, undisturbed, caplog):
    (tmp_path / "cache").write_text("a file in the place of a folder")
    run = study(tmp_path / "cache" / "below", ThreadPool(2))
    run.trainer.fit(run.tasks.train, 3, verbose=False)
    assert_same(weights(run), weights(undisturbed))
    assert "Could not cache the result of task" in caplog.text
