"""Tasks over arrays, and distributions of them."""

import numpy as np
import pytest
import tensorflow as tf

from leap_tf.tasks import ArrayTask, FiniteTasks, Sinusoids, sinusoid_splits


def numbered(count=7, batch_size=3, **options):
    numbers = np.arange(count)
    return ArrayTask("numbers", (numbers, numbers), (numbers, -numbers), batch_size, **options)


def first(dataset, count):
    return [inputs.tolist() for inputs, _ in dataset.take(count).as_numpy_iterator()]


def test_every_epoch_has_each_example_once_and_batches_run_on():
    drawn = np.concatenate(first(numbered().train_batches(5), 14))
    assert len(drawn) == 42
    epochs = drawn.reshape(6, 7)
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert not all((epoch == epochs[0]).all() for epoch in epochs)


def test_the_seed_decides_the_order():
    task = numbered(50, 10)
    assert first(task.train_batches(1), 9) == first(task.train_batches(1), 9)
    assert first(task.train_batches(1), 9) != first(task.train_batches(2), 9)


def test_inputs_keep_their_targets_and_are_prepared():
    task = numbered(prepare=lambda numbers: tf.cast(numbers, tf.float32) / 2.0)
    for inputs, targets in task.train_batches(0).take(5).as_numpy_iterator():
        assert inputs.dtype == np.float32
        np.testing.assert_array_equal(2 * inputs, targets)


def test_tasks_of_other_shapes_leave_the_shapes_of_batches_alone():
    for features in (1, 3, 2):
        array = np.ones((6, features), np.float32)
        task = ArrayTask("flat", (array, array), (array, array), batch_size=2)
        for dataset, batch in ((task.train_batches(0), 2), (task.test_batches(), None)):
            assert dataset.element_spec[0].shape.as_list() == [batch, features]


def test_held_out_examples_come_once_in_order():
    task = numbered(5, test_batch_size=2)
    batches = list(task.test_batches().as_numpy_iterator())
    assert [targets.tolist() for _, targets in batches] == [[0, -1], [-2, -3], [-4]]


@pytest.mark.parametrize("train", [(np.ones(3), np.ones(2)), (np.ones(0), np.ones(0))])
def test_parts_that_do_not_fit_are_refused(train):
    with pytest.raises(ValueError, match="Task 'odd': train has"):
        ArrayTask("odd", train, (np.ones(1), np.ones(1)))


@pytest.mark.parametrize("size", ["batch_size", "test_batch_size"])
def test_batches_without_room_are_refused(size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, and is 0"):
        numbered(5, **{size: 0})
    with pytest.raises(TypeError, match=f"{size} must be a whole number, and is 2.5"):
        numbered(5, **{size: 2.5})


def test_finite_tasks_come_equally_often():
    distribution = FiniteTasks(list("abc"))
    sample = distribution.sample(7, np.random.default_rng(0))
    assert sorted(sample[:3]) == sorted(sample[3:6]) == ["a", "b", "c"]
    assert sample == distribution.sample(7, np.random.default_rng(0))
    assert len(distribution.sample(2, np.random.default_rng(0))) == 2
    with pytest.raises(ValueError, match="at least one task"):
        FiniteTasks([])


def test_sinusoids_are_sinusoids():
    (task,) = Sinusoids(examples=200).sample(1, np.random.default_rng(0))
    for inputs, targets in (task.train, task.test):
        assert inputs.shape == targets.shape == (200, 1)
        basis = np.concatenate([np.sin(inputs), np.cos(inputs)], axis=1)
        _, residual, _, _ = np.linalg.lstsq(basis, targets[:, 0])
        assert residual < 1e-8
        assert np.abs(inputs).max() <= 5
    assert not np.array_equal(task.train[0], task.test[0])


def test_sinusoid_splits_depend_on_the_seed():
    one, again, other = (sinusoid_splits(seed=seed, test_tasks=3) for seed in (0, 0, 1))
    assert [task.name for task in one.test] == [task.name for task in again.test]
    assert {task.name for task in one.test}.isdisjoint(task.name for task in other.test)
    assert {task.name for task in one.test}.isdisjoint(task.name for task in one.validation)
