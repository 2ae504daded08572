"""The pool on a real Ray: the contract of pools, and workers that die, hang, and come late."""

import os
import signal
import subprocess
import sys

import keras
import pytest

ray = pytest.importorskip("ray", reason="needs the extra: requirements-cluster.txt")

from ray.cluster_utils import Cluster

from leap_tf.cluster import ClusterError, RayPool
from leap_tf.training import TaskFailedError
from tests.cluster.studies import (
    assert_same,
    hat,
    leap,
    meta_sgd,
    other_seed,
    unbuildable,
    weights,
)
from tests.pool_contract import PoolContract


class Pools:
    """Opens pools, one at a time: workers take seconds to start, and the machine has few cores."""

    def __init__(self):
        self._recipe, self._pool = None, None

    def open(self, recipe, workers=2, **options):
        if recipe != self._recipe or options:
            self.close()
            self._recipe, self._pool = recipe, RayPool(recipe, workers, **options)
        return self._pool

    def close(self):
        if self._pool:
            self._pool.close()
        self._recipe, self._pool = None, None


@pytest.fixture(scope="module")
def cluster():
    """A Ray with one node on this machine, started once; more nodes can be added."""
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # tests that run beside would leave workers little
    }
    head = {"num_cpus": 2, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    ray.init(started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def pools(cluster):
    opened = Pools()
    yield opened
    opened.close()


def fit(replica, meta_steps=2):
    replica.trainer.fit(replica.tasks.train, meta_steps, verbose=False)
    return weights(replica)


def short_deadline(crew, monkeypatch):
    """For workers that have traced their graphs: the next one that is hired has it long again."""
    replace = crew._replace

    def replace_and_be_patient(seat):
        crew._deadline = 600.0
        replace(seat)

    monkeypatch.setattr(crew, "_deadline", 8.0)
    monkeypatch.setattr(crew, "_replace", replace_and_be_patient)


class TestRayPool(PoolContract):
    @pytest.fixture
    def open_pool(self, pools):
        return lambda recipe: pools.open(recipe, workers=1 if recipe in (hat, meta_sgd) else 2)

    def test_a_worker_that_is_killed_in_mid_task_changes_nothing(self, open_pool, study, trouble):
        expected = fit(study())
        pool = open_pool(study)
        trouble("kill1")
        assert_same(fit(study(pool=pool)), expected)

    def test_a_worker_that_hangs_is_replaced(self, open_pool, study, trouble, monkeypatch):
        expected = fit(study())
        pool = open_pool(study)
        fit(study(pool=pool), 1)
        short_deadline(pool._crew, monkeypatch)
        trouble("hang2")
        assert_same(fit(study(pool=pool)), expected)

    def test_a_worker_whose_process_is_stopped_is_replaced(self, open_pool, study, monkeypatch):
        pool = open_pool(study)
        fit(study(pool=pool), 1)
        short_deadline(pool._crew, monkeypatch)
        os.kill(next(pool._crew.idle()).process, signal.SIGSTOP)
        assert_same(fit(study(pool=pool)), fit(study()))

    def test_a_task_that_kills_its_worker_every_time_is_named(
        self, open_pool, study, trouble, monkeypatch
    ):
        pool = open_pool(study)
        trouble("always_kill5")
        monkeypatch.setattr(pool, "_attempts", 2)
        with pytest.raises(TaskFailedError, match="'troubled 5' with seed .* begun 2 times"):
            fit(study(pool=pool))
        monkeypatch.setattr(pool, "_attempts", 1)
        tolerant = study(pool=pool, tolerated_failures=0.2)
        history = tolerant.trainer.fit(tolerant.tasks.train, 1, verbose=False).history
        assert history["tasks_failed"] == [1]

    def test_weights_travel_once_to_each_worker_and_meta_step(self, open_pool, study, monkeypatch):
        pool = open_pool(study)
        fit(study(pool=pool), 1)
        puts, loads = [], []
        put, give = ray.put, pool._crew.give

        def give_and_see(seat, token, *arguments):
            before = seat.version
            give(seat, token, *arguments)
            loads.extend([seat] if seat.version != before else [])

        monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
        monkeypatch.setattr(pool._crew, "give", give_and_see)
        fit(study(pool=pool), 3)
        assert len(puts) == 3
        assert len(loads) <= 2 * 3  # of 18 tasks

    def test_a_node_that_joins_is_used_and_one_that_leaves_is_made_up_for(
        self, pools, cluster, study
    ):
        pools.close()
        pool = pools.open(study, workers=3)  # for two of whom there is room
        replica = study(pool=pool)
        fit(replica, 1)
        assert not all(seat.ready for seat in pool._crew._seats)
        node = cluster.add_node(num_cpus=1)
        while not all(seat.ready for seat in pool._crew._seats):
            fit(replica, replica.trainer.meta_step + 1)
        leaving = [node]

        def leave(result):
            while leaving:
                cluster.remove_node(leaving.pop(), allow_graceful=False)

        replica.trainer._report = leave
        fit(replica, replica.trainer.meta_step + 1)
        while all(seat.ready for seat in pool._crew._seats):  # until its loss has been noticed
            fit(replica, replica.trainer.meta_step + 1)
        assert_same(
            fit(replica, replica.trainer.meta_step + 1), fit(study(), replica.trainer.meta_step)
        )


def test_a_study_that_cannot_be_built_or_is_another_ends_with_an_error(pools):
    pool = pools.open(unbuildable, workers=1)
    with pytest.raises(ClusterError, match="could not build the study: FileNotFoundError: no data"):
        fit(leap(pool=pool))
    pool = pools.open(other_seed, workers=1)
    with pytest.raises(TaskFailedError, match="must be that of the driver"):
        fit(leap(pool=pool))
    replica = leap(pool=pool)
    with pytest.raises(ClusterError, match="has task 'blobs 30' where the driver has 'blobs 20'"):
        replica.trainer.evaluate(replica.tasks.validation)  # and does not say that it is that split


def test_no_worker_at_all_is_no_hang(pools):
    pools.close()

    @ray.remote(num_cpus=2)
    class Occupant:
        pass

    occupant = Occupant.remote()
    pool = pools.open(leap, workers=1, start_seconds=2.0)
    with pytest.raises(ClusterError, match="No worker became ready within 2 s.*ray status"):
        fit(leap(pool=pool))
    ray.kill(occupant)


def test_variables_that_cannot_travel_are_refused_before_ray_starts():
    variable = keras.Variable([1.0], dtype="bfloat16", name="kernel")
    with pytest.raises(ClusterError, match="'kernel' is bfloat16, which cannot travel"):
        RayPool(leap).map(None, [variable], [])


def test_numbers_are_checked_and_importing_the_library_does_not_import_ray():
    with pytest.raises(ValueError, match="at least 1"):
        RayPool(leap, workers=0)
    with pytest.raises(ValueError, match="must be positive"):
        RayPool(leap, deadline=0.0)
    code = "import sys, leap_tf.cluster, leap_tf.experiments.commands; print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_a_ray_that_does_not_start_is_said_with_what_to_do(monkeypatch):
    def time_out(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(ClusterError, match="does not start here.*timed out.*same command again"):
        RayPool(leap, workers=1).start()
