"""Pools: the order of results, failures, and meta-batches."""

import concurrent.futures

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.serialization import SerializationError, decode, encode
from leap_tf.training import (
    Job,
    MetaTrainingDivergedError,
    TaskEvaluation,
    TaskFailedError,
    TaskFailure,
    TaskGradient,
    TaskSpec,
    ThreadPool,
)
from leap_tf.training.pools import submit_ahead
from leap_tf.training.problem import MetaBatch, check_gradient
from tests.cluster.small_studies import assert_same, hat, leap, meta_sgd
from tests.pool_contract import PoolContract


class TestThreadPool(PoolContract):
    @pytest.fixture
    def open_pool(self):
        return lambda factory: ThreadPool(3)


def test_threads_give_results_in_order_and_end_early():
    seen = []

    def work(item):
        seen.append(item)
        return item * item

    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        results = submit_ahead(executor, 3, work, range(20))
        assert [future.result() for _, future in results] == [item * item for item in range(20)]
        seen.clear()
        results = submit_ahead(executor, 3, work, range(1000))
        assert next(results)[1].result() == 0
        results.close()
        assert len(seen) <= 10


def test_a_task_that_raises_is_a_failure_in_its_place():
    error = OSError("no such file")

    def work(spec):
        if spec.seed == 2:
            raise error
        return spec.seed

    job = Job(
        "train",
        work,
        task_name=lambda spec: f"task {spec.index}",
        result_type=int,
        check=lambda result: None,
        variables=[],
    )
    specs = [TaskSpec("train", meta_step=0, index=i, seed=i, steps=1) for i in range(5)]
    results = list(ThreadPool(2).map(job, specs))
    assert results[:2] + results[3:] == [0, 1, 3, 4]
    assert results[2] == TaskFailure("task 2", 2, "OSError: no such file", error)
    assert str(results[2]) == "Task 'task 2' with seed 2 failed: OSError: no such file"
    assert results[2].as_error() is error
    elsewhere = TaskFailure("task 2", 2, "OSError: no such file").as_error()
    assert isinstance(elsewhere, TaskFailedError)
    assert "seed 2" in str(elsewhere)


def test_a_pool_needs_a_thread():
    with pytest.raises(ValueError, match="threads must be at least 1"):
        ThreadPool(0)
    with pytest.raises(TypeError, match="pool must be a whole number. Received: 'many'"):
        leap(pool="many")


def gradient(value):
    metrics = {"loss": value, "gradient_steps": 2}
    return TaskGradient([np.full((2,), value, "float32")], metrics, bool(np.isfinite(value)))


def failure(seed=7):
    return TaskFailure("letters", seed, "OSError: gone")


def test_a_meta_batch_is_the_mean_of_its_finite_results():
    batch = MetaBatch(1, 5, tolerated_failures=0.4)
    for result in (gradient(1.0), gradient(np.inf), failure(), gradient(4.0), failure(8)):
        batch.add(result)
    (mean,), logs = batch.mean([keras.Variable(np.zeros(2, "float32"))])
    np.testing.assert_array_equal(mean, [2.5, 2.5])
    assert logs["loss"] == 2.5
    assert logs["gradient_steps"] == 4
    assert (logs["tasks_skipped"], logs["tasks_failed"]) == (1, 2)


def test_more_failures_than_tolerated_end_it_and_name_the_task():
    batch = MetaBatch(3, 5, tolerated_failures=0.2)
    batch.add(failure())
    with pytest.raises(TaskFailedError, match="2 of the 5 tasks of meta-step 3.*'letters'.*seed 8"):
        batch.add(failure(8))
    with pytest.raises(TaskFailedError, match="seed 7 failed: OSError: gone"):
        MetaBatch(3, 5).add(failure())
    nothing_left = MetaBatch(3, 2, tolerated_failures=0.5)
    nothing_left.add(failure())
    nothing_left.add(gradient(np.nan))
    with pytest.raises(MetaTrainingDivergedError, match="1 failed"):
        nothing_left.mean([])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_tolerated_failures_are_a_share(share):
    study = leap()
    with pytest.raises(ValueError, match=r"tolerated_failures must be in \[0, 1\)"):
        study.trainer.fit(study.tasks.train, 1, tolerated_failures=share)


@pytest.mark.parametrize("factory", [leap, hat, meta_sgd])
def test_results_survive_serialization(factory):
    study = factory()
    problem = study.trainer.problem
    result = problem.train(problem.sampler.training_specs(0)[0])
    again = decode(encode(result), TaskGradient)
    check_gradient(again, problem)
    assert_same(again.meta_gradient, result.meta_gradient)
    assert_same(again.state, result.state)
    assert (again.metrics, again.finite) == (result.metrics, True)
    evaluation = study.trainer.evaluate(study.tasks.test[:1]).tasks[0]
    for field, value in vars(decode(encode(evaluation), TaskEvaluation)).items():
        np.testing.assert_array_equal(value, getattr(evaluation, field))


def test_meta_gradients_may_have_the_precision_in_which_they_are_summed():
    problem = meta_sgd().trainer.problem
    variable = keras.Variable(np.zeros(3), dtype="float16")
    problem.meta_variables = [variable]
    for dtype in ("float16", "float32"):
        check_gradient(TaskGradient([tf.ones(3, dtype)], {}, True), problem)
    with pytest.raises(SerializationError, match="has float64"):
        check_gradient(TaskGradient([tf.ones(3, "float64")], {}, True), problem)
    problem.meta_variables, problem.state_variables = [], hat().trainer.problem.state_variables
    with pytest.raises(SerializationError, match=r"has float16 \(7,\) where .*trained is float32"):
        check_gradient(TaskGradient([], {}, True, [tf.ones(7, "float16")]), problem)


def test_gradients_of_another_study_are_refused():
    problem, other = leap().trainer.problem, meta_sgd().trainer.problem
    result = other.train(other.sampler.training_specs(0)[0])
    with pytest.raises(SerializationError, match="has 8 tensors where the study has 4 variables"):
        check_gradient(result, problem)
    with pytest.raises(SerializationError, match=r"has float32 \(3,\) where .*kernel is float32"):
        check_gradient(TaskGradient([tf.zeros(3)] * 4, {}, True), problem)


def test_processes_with_the_same_study_find_the_same_tasks():
    one, other = (leap().trainer.problem.sampler for _ in range(2))
    for spec in one.training_specs(4):
        assert other.resolve(spec).name == one.resolve(spec).name
    first = one.training_specs(4)[0]
    with pytest.raises(ValueError, match="not among the training tasks.*its seed included"):
        other.resolve(TaskSpec("train", 4, 0, first.seed + 1, first.steps))
    with pytest.raises(ValueError, match="not among the 3 tasks of its split"):
        other.resolve(TaskSpec("validation", 0, 3, seed=1, steps=4))


def test_a_problem_lists_all_variables_that_results_depend_on():
    with_state = hat().trainer.problem
    persistent = {id(variable) for variable in with_state.state_variables}
    assert persistent
    assert persistent <= {id(variable) for variable in with_state.variables}
    with_rates = meta_sgd().trainer
    rates = {id(variable) for variable in with_rates.learner_variables}
    assert rates
    assert rates <= {id(variable) for variable in with_rates.problem.variables}
