"""The contract of task pools, as a class of tests to inherit from."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from leap_tf.training import Evaluation, TaskFailure, ThreadPool
from leap_tf.training.problem import training_job
from tests.cluster.small_studies import FaultyStudy, assert_same, hat, meta_sgd, weights


class PoolContract:
    """Every pool passes these tests, wherever its tasks run.

    Subclasses have a fixture `open_pool`: a function that takes a study factory and returns a pool.
    """

    @pytest.fixture(scope="module")
    def factory(self, tmp_path_factory):
        """Builds a study whose tasks work unless a file in its folder makes them fail."""
        return FaultyStudy(str(tmp_path_factory.mktemp("faults")))

    @pytest.fixture
    def inject(self, factory):
        """Creates such a file by name; all of them are removed after the test."""
        folder = pathlib.Path(factory.folder)
        yield lambda name: (folder / name).touch()
        for file in folder.iterdir():
            file.unlink()

    @pytest.fixture(params=["hat", "meta_sgd", "leap"])
    def learner(self, request):
        """The learners of studies with persistent state, with learner variables, and with none."""
        return request.param

    def test_meta_training_gives_the_bits_of_one_thread(self, open_pool, factory, learner):
        factory = {"leap": factory, "hat": hat, "meta_sgd": meta_sgd}[learner]
        expected = on_one_thread(learner)
        found = meta_trained(factory(pool=open_pool(factory)))
        assert found.history == expected.history
        assert_same(found.weights, expected.weights)
        for evaluations in zip(expected.evaluations, found.evaluations, strict=True):
            assert_same_evaluation(*evaluations)

    def test_results_are_announced_before_their_turn_and_failures_are_not(
        self, open_pool, factory, inject
    ):
        inject("raise3")
        study = factory(pool=open_pool(factory))
        problem = study.trainer.problem
        specs = problem.sampler.training_specs(0)
        announced = []
        job = dataclasses.replace(
            training_job(problem),
            on_result=lambda spec, result: announced.append((spec.seed, result.metrics["loss"])),
        )
        yielded = []
        for result in study.trainer.pool.map(job, specs):
            yielded.append(result)
            finished = [each for each in yielded if not isinstance(each, TaskFailure)]
            assert {each.metrics["loss"] for each in finished} <= {loss for _, loss in announced}
        assert len(yielded) == 6
        assert sorted(announced) == sorted(
            (spec.seed, result.metrics["loss"])
            for spec, result in zip(specs, yielded, strict=True)
            if not isinstance(result, TaskFailure)
        )

    def test_a_map_that_is_closed_early_leaves_a_pool_that_works(self, open_pool, factory):
        study = factory(pool=open_pool(factory))
        trainer = study.trainer
        trainer.request_stop()  # takes effect at the first result
        trainer.fit(study.tasks.train, 2, verbose=False)
        assert trainer.was_stopped
        assert trainer.meta_step == 0
        trainer.fit(study.tasks.train, 2, verbose=False)
        assert_same(weights(study), leap_after(2))

    def test_a_task_that_raises_is_left_out_if_that_is_tolerated(self, open_pool, factory, inject):
        inject("raise3")
        pool = open_pool(factory)
        tolerant = {"tolerated_failures": 0.2, "verbose": False}
        study = factory(pool=pool)
        history = study.trainer.fit(study.tasks.train, 2, **tolerant).history
        assert history["tasks_failed"] == [1, 1]
        one_thread = factory(pool=ThreadPool(1))
        one_thread.trainer.fit(one_thread.tasks.train, 2, **tolerant)
        assert_same(weights(study), weights(one_thread))
        strict = factory(pool=pool)
        with pytest.raises(Exception, match="the disk of this task is on fire"):
            strict.trainer.fit(strict.tasks.train, 2, verbose=False)
        inject("raise1")
        with pytest.raises(Exception, match="2 of the 6 tasks of meta-step 3 failed.*seed"):
            study.trainer.fit(study.tasks.train, 3, **tolerant)


class Outcome(NamedTuple):
    """The results of a meta-trained study, which are the same on every pool."""

    history: dict[str, list]
    weights: list[np.ndarray]
    evaluations: list[Evaluation]


def meta_trained(study) -> Outcome:
    """Meta-trains a study, validates it on the way, and evaluates it on two splits."""
    trainer, tasks = study.trainer, study.tasks
    history = trainer.fit(
        tasks.train, 3, validation_tasks=tasks.validation, validation_freq=2, verbose=False
    ).history
    evaluations = [trainer.evaluate(split, 3) for split in (tasks.test, tasks.validation)]
    return Outcome(history, weights(study), evaluations)


@functools.cache
def on_one_thread(learner: str) -> Outcome:
    """Returns the results that every pool must give, computed once in a process."""
    factories = {"leap": faultless, "hat": hat, "meta_sgd": meta_sgd}
    return meta_trained(factories[learner](pool=ThreadPool(1)))


@functools.cache
def leap_after(meta_steps: int) -> list[np.ndarray]:
    """Returns the weights of a study of `FaultyStudy` after some meta-steps without a fault."""
    study = faultless(pool=ThreadPool(1))
    study.trainer.fit(study.tasks.train, meta_steps, verbose=False)
    return weights(study)


faultless = FaultyStudy("no such folder")


def assert_same_evaluation(expected, other):
    """Asserts that two evaluations have the same tasks, seeds, figures and curves, to the bit."""
    for one, two in zip(expected.tasks, other.tasks, strict=True):
        assert (one.name, one.seed, one.error, one.loss) == (
            two.name,
            two.seed,
            two.error,
            two.loss,
        )
        assert_same(one.training_losses, two.training_losses)
