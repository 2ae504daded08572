"""Pools: the order of results, failures, and the contract that every pool keeps to."""

import types

import keras
import numpy as np
import pytest

from leap_tf.serialization import Parts, SerializationError
from leap_tf.training import (
    Job,
    MetaTrainingDivergedError,
    SeededTask,
    TaskAddress,
    TaskEvaluation,
    TaskFailedError,
    TaskFailure,
    TaskGradient,
    ThreadPool,
    map_in_threads,
)
from leap_tf.training.meta_batch import MetaBatch
from tests.cluster.studies import assert_same, hat, leap, meta_sgd
from tests.pool_contract import PoolContract


class TestThreadPool(PoolContract):
    @pytest.fixture(params=[2, 4])
    def open_pool(self, request):
        return lambda recipe: ThreadPool(request.param)


def numbered(numbers):
    return [SeededTask(types.SimpleNamespace(name=f"task {i}"), i, 1) for i in numbers]


def test_threads_give_results_in_order_and_end_early():
    seen = []

    def work(item):
        seen.append(item)
        return item * item

    assert list(map_in_threads(work, range(20), 3)) == [item * item for item in range(20)]
    seen.clear()
    results = map_in_threads(work, range(1000), 3)
    assert next(results) == 0
    results.close()
    assert len(seen) <= 10


def test_a_task_that_raises_is_a_failure_in_its_place():
    error = OSError("no such file")

    def work(seeded):
        if seeded.seed == 2:
            raise error
        return seeded.seed

    results = list(ThreadPool(2).map(Job("train", work, None), [], numbered(range(5))))
    assert results[:2] + results[3:] == [0, 1, 3, 4]
    assert results[2] == TaskFailure("task 2", 2, "OSError: no such file", error)
    assert str(results[2]) == "Task 'task 2' with seed 2 failed: OSError: no such file"
    assert results[2].as_error() is error
    elsewhere = TaskFailure("task 2", 2, "OSError: no such file").as_error()
    assert isinstance(elsewhere, TaskFailedError)
    assert "seed 2" in str(elsewhere)


def test_a_pool_needs_a_thread():
    with pytest.raises(ValueError, match="at least one thread"):
        ThreadPool(0)


def trained(value):
    metrics = {"loss": value, "gradient_steps": 2}
    return TaskGradient([np.full((2,), value, "float32")], metrics, bool(np.isfinite(value)))


def failure(seed=7):
    return TaskFailure("letters", seed, "OSError: gone")


def test_a_meta_batch_is_the_mean_of_what_is_finite():
    batch = MetaBatch(1, 5, tolerated_failures=0.4)
    for result in (trained(1.0), trained(np.inf), failure(), trained(4.0), failure(8)):
        batch.add(result)
    (gradient,), logs = batch.mean([keras.Variable(np.zeros(2, "float32"))])
    np.testing.assert_array_equal(gradient, [2.5, 2.5])
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
    nothing_left.add(trained(np.nan))
    with pytest.raises(MetaTrainingDivergedError, match="1 failed"):
        nothing_left.mean([])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_tolerated_failures_are_a_share(share):
    with pytest.raises(ValueError, match="tolerated_failures"):
        leap(tolerated_failures=share)


@pytest.mark.parametrize("study", [leap, hat, meta_sgd])
def test_results_survive_being_taken_apart(study):
    replica = study()
    (seeded, *_) = replica.trainer._draws.meta_batch(replica.tasks.train, 0)
    result = replica.trainer._runner.train(seeded)
    again = replica.trainer.read_trained(result.parts())
    assert_same(again.meta_gradient, result.meta_gradient)
    assert_same(again.state, result.state)
    assert (again.metrics, again.finite) == (result.metrics, True)
    judged = replica.trainer.evaluate(replica.tasks.test[:1]).tasks[0]
    for field, value in vars(TaskEvaluation.from_parts(judged.parts())).items():
        np.testing.assert_array_equal(value, getattr(judged, field))


@pytest.mark.parametrize(("variable", "gradient"), [("float16", "float32"), ("float16", "float16")])
def test_meta_gradients_may_be_of_the_precision_they_are_summed_in(variable, gradient):
    variables = [keras.Variable(np.zeros(3), dtype=variable)]
    parts = Parts({"finite": True, "metrics": {}}, {"gradient0": np.ones(3, gradient)})
    (read,) = TaskGradient.from_parts(parts, variables, []).meta_gradient
    assert read.dtype == gradient
    with pytest.raises(SerializationError, match="state0 of a result is float32"):
        TaskGradient.from_parts(
            Parts({"finite": True, "metrics": {}}, {"state0": np.ones(3, "float32")}), [], variables
        )


def test_parts_of_another_study_are_refused():
    trainer, other = leap().trainer, meta_sgd().trainer
    parts = other._runner.train(other._draws.meta_batch(leap().tasks.train, 0)[0]).parts()
    with pytest.raises(SerializationError, match="8 arrays in a result, and the study has 4"):
        trainer.read_trained(parts)
    arrays = {f"gradient{i}": np.zeros(3) for i in range(4)}
    with pytest.raises(SerializationError, match="gradient0 of a result is float64"):
        trainer.read_trained(Parts({"finite": True, "metrics": {}}, arrays))
    judged = leap().trainer.evaluate(leap().tasks.test[:1]).tasks[0].parts()
    with pytest.raises(SerializationError, match="error of a result is str"):
        TaskEvaluation.from_parts(Parts({**judged.plain, "error": "low"}, judged.arrays))
    with pytest.raises(SerializationError, match="has the fields"):
        TaskEvaluation.from_parts(Parts({"name": "x"}, {}))


def test_a_replica_draws_the_same_tasks_again():
    driver, replica = leap(), leap()
    for seeded in driver.trainer._draws.meta_batch(driver.tasks.train, 4):
        name, _ = replica.trainer.run_again(
            "train", replica.tasks, seeded.address, seeded.seed, seeded.steps
        )
        assert name == seeded.task.name
    first = driver.trainer._draws.meta_batch(driver.tasks.train, 4)[0]
    with pytest.raises(ValueError, match="must be that of the driver"):
        replica.trainer.run_again("train", replica.tasks, first.address, first.seed + 1, 4)
    with pytest.raises(ValueError, match="3 validation tasks here, and number 3"):
        replica.trainer.run_again("evaluate", replica.tasks, TaskAddress("validation", 0, 3), 1, 4)


def test_weights_hold_everything_that_results_depend_on():
    replica = hat()
    names = {variable.path for variable in replica.trainer.task_variables}
    lasting = {variable.path for variable in replica.trainer._runner.lasting_state}
    assert lasting
    assert lasting <= names
    with_rates = meta_sgd().trainer
    rates = {id(variable) for variable in with_rates.learner_variables}
    assert rates
    assert rates <= {id(variable) for variable in with_rates.task_variables}
