"""Tests of `RayPool` on a real Ray: the contract of pools, lost workers, late workers."""

import contextlib
import os
import signal
import types

import keras
import pytest

ray = pytest.importorskip("ray", reason="needs the extra: requirements-cluster.txt")

from ray.cluster_utils import Cluster

from leap_tf.cluster import ClusterError, RayPool
from leap_tf.tasks import FiniteTasks
from leap_tf.training import TaskFailedError
from tests.cluster.small_studies import another, assert_same, leap, unbuildable, weights
from tests.learner_contract import blobs
from tests.pool_contract import PoolContract, assert_same_evaluation, leap_after


class Pools:
    """Opens pools, one at a time: workers take seconds to start, and the machine has few cores."""

    def __init__(self):
        self._factory, self._pool = None, None

    def open(self, factory, workers=2, **options):
        if factory != self._factory or options:
            self.close()
            self._factory, self._pool = factory, RayPool(factory, workers, **options)
        return self._pool

    def close(self):
        if self._pool:
            self._pool.close()
        self._factory, self._pool = None, None


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


def fit(study, meta_steps=2, **options):
    study.trainer.fit(study.tasks.train, meta_steps, verbose=False, **options)
    return weights(study)


def shorten_deadline(group, monkeypatch):
    """Shortens the deadline until a worker is replaced: a new one has its graphs to trace."""
    replace = group._replace

    def replace_and_be_patient(slot):
        group._deadline = 600.0
        replace(slot)

    monkeypatch.setattr(group, "_deadline", 8.0)
    monkeypatch.setattr(group, "_replace", replace_and_be_patient)


def occupy(cpus):
    """Starts an actor that leaves workers fewer CPUs."""

    @ray.remote(num_cpus=cpus)
    class Occupant:
        def is_there(self):
            return True

    occupant = Occupant.remote()
    assert ray.get(occupant.is_there.remote())
    return occupant


def all_ready(pool):
    return all(slot.ready for slot in pool._group._slots)


class TestRayPool(PoolContract):
    @pytest.fixture
    def open_pool(self, pools):
        return pools.open

    @pytest.fixture(params=["leap"])
    def learner(self, request):
        """Workers start slowly: tests/cluster/test_worker.py has the studies with more to send."""
        return request.param

    def test_a_worker_that_is_killed_in_mid_task_changes_nothing(self, open_pool, factory, inject):
        pool = open_pool(factory)
        inject("kill1")
        assert_same(fit(factory(pool=pool)), leap_after(2))

    def test_a_worker_that_hangs_is_replaced(self, open_pool, factory, monkeypatch):
        pool = open_pool(factory)
        fit(factory(pool=pool), 1)
        shorten_deadline(pool._group, monkeypatch)
        os.kill(next(pool._group.idle()).process, signal.SIGSTOP)
        assert_same(fit(factory(pool=pool)), leap_after(2))

    def test_a_task_that_kills_its_worker_every_time_is_named(
        self, open_pool, factory, inject, monkeypatch
    ):
        pool = open_pool(factory)
        inject("always_kill5")
        monkeypatch.setattr(pool, "_attempts", 2)
        with pytest.raises(TaskFailedError, match="'faulty 5' with seed .* started 2 times"):
            fit(factory(pool=pool))
        monkeypatch.setattr(pool, "_attempts", 1)
        study = factory(pool=pool)
        history = study.trainer.fit(
            study.tasks.train, 1, tolerated_failures=0.2, verbose=False
        ).history
        assert history["tasks_failed"] == [1]

    def test_weights_are_sent_once_to_each_worker_and_meta_step(
        self, open_pool, factory, monkeypatch
    ):
        pool = open_pool(factory)
        fit(factory(pool=pool), 1)
        puts, loads = [], []
        put, assign = ray.put, pool._group.assign

        def watched_assign(slot, *arguments):
            before = slot.version
            assign(slot, *arguments)
            loads.extend([slot] if slot.version != before else [])

        monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
        monkeypatch.setattr(pool._group, "assign", watched_assign)
        fit(factory(pool=pool), 3)
        assert len(puts) == 3
        assert len(loads) <= 2 * 3  # of 18 tasks

    def test_evaluation_of_the_first_tasks_of_a_split_runs_on_workers(
        self, open_pool, factory, monkeypatch
    ):
        study, expected = factory(pool=open_pool(factory)), factory()
        monkeypatch.setattr(study.trainer.problem, "evaluate", None)  # not in this process
        for split, count in (("test", 2), ("validation", 1), ("test", 3)):
            assert_same_evaluation(
                *(
                    each.trainer.evaluate(getattr(each.tasks, split)[:count], 3)
                    for each in (expected, study)
                )
            )

    @pytest.mark.parametrize("numbers", [(32, 31), (31, 32), (30, 31, 32, 33)])
    def test_evaluation_of_other_tasks_runs_on_threads_whatever_their_names(
        self, open_pool, factory, numbers, monkeypatch
    ):
        """A worker would take the tasks of its own study, which have the same names."""
        study, expected = factory(pool=open_pool(factory)), factory()
        tasks = [blobs(number) for number in numbers]
        for task, own in zip(tasks, study.tasks.test):
            task.name = own.name
        own_before = expected.trainer.evaluate(expected.tasks.test, 3)
        found = study.trainer.evaluate(tasks, 3)
        assert_same_evaluation(expected.trainer.evaluate(tasks, 3), found)
        assert [task.loss for task in found.tasks] != [task.loss for task in own_before.tasks]
        # The study's own tasks are still found after that.
        assert_same_evaluation(own_before, study.trainer.evaluate(study.tasks.test, 3))
        one_own = [study.tasks.test[0], tasks[1]]
        monkeypatch.setattr(study.trainer.pool, "map", None)
        assert_same_evaluation(
            expected.trainer.evaluate(one_own, 3), study.trainer.evaluate(one_own, 3)
        )

    def test_validation_on_tasks_other_than_the_studys_is_the_same_as_on_threads(
        self, open_pool, factory
    ):
        histories = []
        for study in (factory(), factory(pool=open_pool(factory))):
            others = [blobs(32), *study.tasks.validation[:1]]
            others[0].name = study.tasks.validation[0].name
            fitted = study.trainer.fit(study.tasks.train, 2, validation_tasks=others, verbose=False)
            histories.append(fitted.history)
        assert histories[0] == histories[1]

    def test_training_on_another_distribution_is_refused(self, open_pool, factory):
        study = factory(pool=open_pool(factory))
        with pytest.raises(ValueError, match=r"Give fit\(\) the study's tasks.train, or train on"):
            study.trainer.fit(FiniteTasks(study.tasks.train.tasks), 1, verbose=False)
        assert study.trainer.meta_step == 0

    def test_a_node_that_joins_is_used_and_one_that_leaves_is_made_up_for(
        self, pools, cluster, factory
    ):
        pools.close()
        occupant = occupy(cpus=1)
        pool = pools.open(factory, workers=2)  # for one of whom there is room
        study = factory(pool=pool)
        fit(study, 1)
        assert not all_ready(pool)
        node = cluster.add_node(num_cpus=1)
        while not all_ready(pool):
            fit(study, study.trainer.meta_step + 1)
        study.trainer.pool = Interrupted(
            pool, lambda: cluster.remove_node(node, allow_graceful=False)
        )
        fit(study, study.trainer.meta_step + 1)
        study.trainer.pool = pool
        while all_ready(pool):  # until its loss has been noticed
            fit(study, study.trainer.meta_step + 1)
        assert_same(fit(study, study.trainer.meta_step + 1), leap_after(study.trainer.meta_step))
        ray.kill(occupant)


class Interrupted:
    """A pool that calls a function after the first result of the next map."""

    remote = True

    def __init__(self, pool, act):
        self._pool, self._acts = pool, [act]

    def map(self, job, specs):
        with contextlib.closing(self._pool.map(job, specs)) as results:
            for result in results:
                while self._acts:
                    self._acts.pop()()
                yield result


def test_a_study_that_cannot_be_built_or_is_another_ends_with_an_error(pools):
    pool = pools.open(unbuildable, workers=1)
    with pytest.raises(ClusterError, match="could not build the study: FileNotFoundError: no data"):
        fit(leap(pool=pool))
    study = leap(pool=pools.open(another, workers=1))
    with pytest.raises(TaskFailedError, match="must build the study of the driver"):
        fit(study)
    with pytest.raises(ClusterError, match="has task 'blobs 30' where the driver has 'blobs 20'"):
        study.trainer.evaluate(study.tasks.validation)


def test_no_worker_at_all_is_no_hang(pools):
    pools.close()
    occupant = occupy(cpus=2)
    pool = pools.open(leap, workers=1, start_seconds=2.0)
    with pytest.raises(ClusterError, match="No worker became ready within 2 s.*ray status"):
        fit(leap(pool=pool))
    ray.kill(occupant)


def test_variables_that_cannot_be_sent_are_refused_before_ray_starts():
    variable = keras.Variable([1.0], dtype="bfloat16", name="kernel")
    job = types.SimpleNamespace(variables=[variable])
    with pytest.raises(ClusterError, match="'kernel' is bfloat16, which cannot be sent"):
        RayPool(leap).map(job, [])


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="at least 1"):
        RayPool(leap, workers=0)
    with pytest.raises(ValueError, match="must be positive"):
        RayPool(leap, deadline=0.0)


def test_a_ray_that_does_not_start_is_reported_with_what_to_do(monkeypatch):
    def time_out(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(ClusterError, match="does not start here.*timed out.*same command again"):
        RayPool(leap, workers=1).start()
