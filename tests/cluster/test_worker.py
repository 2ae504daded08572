"""Tests of a worker's side of a cluster, without Ray."""

import numpy as np
import pytest

from leap_tf.cluster.worker import Reply, TaskWorker
from leap_tf.serialization import decode
from leap_tf.training import TaskEvaluation, TaskGradient, TaskSpec
from tests.cluster.small_studies import (
    another,
    assert_same,
    hat,
    leap,
    meta_sgd,
    unbuildable,
    weights,
)


def started(factory=leap):
    worker = TaskWorker(factory, own_process=False)
    assert decode(worker.start(), Reply).failure is None
    return worker


@pytest.mark.parametrize("factory", [leap, hat, meta_sgd])
def test_a_worker_returns_the_result_that_the_driver_would_compute(factory):
    """The state and the learner's variables are sent as well as the weights."""
    driver, worker = factory(), started(factory)
    problem = driver.trainer.problem
    for variable in problem.variables:  # the driver has continued since the study was built
        variable.assign(1.1 * variable)
    worker.load(weights(driver), version=5)

    def results(kind, spec, record):
        reply = decode(worker.run(kind, 5, spec), Reply)
        assert reply.failure is None
        assert reply.task == problem.sampler.resolve(spec).name
        return decode(reply.result, record), getattr(problem, kind)(spec)

    result, expected = results("train", problem.sampler.training_specs(2)[-1], TaskGradient)
    assert_same(result.meta_gradient, expected.meta_gradient)
    assert_same(result.state, expected.state)
    assert (result.metrics, result.finite) == (expected.metrics, True)
    specs = problem.sampler.evaluation_specs("test", 3, 5)
    result, expected = results("evaluate", specs[2], TaskEvaluation)
    for field, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(result, field), value)


def failure(worker, version, spec, kind="train"):
    reply = decode(worker.run(kind, version, spec), Reply)
    assert reply.result == b""
    return reply.failure


def test_a_worker_reports_what_is_wrong():
    broken = decode(TaskWorker(unbuildable, own_process=False).start(), Reply)
    assert "FileNotFoundError: no data set" in broken.failure
    worker, spec = started(), TaskSpec("train", 0, 0, 0, 4)
    assert "received no weights" in failure(worker, 1, spec)
    worker.load(weights(meta_sgd()), version=1)
    assert "other variables" in failure(worker, 1, spec)
    worker.load(weights(leap()), version=2)
    assert "does not have weights 1" in failure(worker, 1, spec)
    for other in (spec, another().trainer.problem.sampler.training_specs(0)[0]):
        assert "must build the study of the driver" in failure(worker, 2, other)
    assert "not among the 3 tasks" in failure(worker, 2, TaskSpec("test", 0, 3, 0, 4), "evaluate")
    assert "KeyError" in failure(worker, 2, TaskSpec("test", 0, 0, 0, 4), "dance")
