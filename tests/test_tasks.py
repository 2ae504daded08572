"""Tasks over arrays, and distributions of them."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

import leap_tf
from leap_tf.tasks import (
    ArrayTask,
    FiniteTasks,
    Sinusoids,
    TaskSplits,
    batches_of_few_steps,
    sinusoid_splits,
)


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


@hypothesis.given(
    examples=strategies.integers(1, 30),
    batch_size=strategies.integers(1, 40),
    count=strategies.integers(1, 9),
    seed=strategies.integers(0, 2**31 - 1),
)
def test_ordered_batches_are_those_of_the_pipeline(examples, batch_size, count, seed):
    arrays = np.arange(examples, dtype=np.float32)[:, None], np.arange(examples)
    task = ArrayTask("rows", arrays, arrays, batch_size)
    batches = batches_of_few_steps(task, seed, count)
    for step, (x, y) in enumerate(task.train_batches(seed).take(count)):
        np.testing.assert_array_equal(batches.at(step)[0], x)
        np.testing.assert_array_equal(batches.at(tf.constant(step))[1], y)


def test_batches_that_a_user_changes_or_that_are_many_come_from_the_pipeline():
    class Augmented(ArrayTask):
        def train_batches(self, seed):
            return super().train_batches(seed).map(lambda x, y: (x + 1.0, y))

    arrays = np.zeros((10, 2), np.float32), np.arange(10)
    prepared = ArrayTask("prepared", arrays, arrays, prepare=lambda inputs: inputs + 1.0)
    for task in (Augmented("augmented", arrays, arrays), prepared):
        assert batches_of_few_steps(task, 0, batches=3) is None
    assert batches_of_few_steps(ArrayTask("long", arrays, arrays), 0, 10**6) is None
    replaced = ArrayTask("replaced", arrays, arrays)
    replaced.train_batches = prepared.train_batches
    assert batches_of_few_steps(replaced, 0, batches=3) is None


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
    with pytest.raises(ValueError, match=f"{size} must be at least 1. Received: 0"):
        numbered(5, **{size: 0})
    with pytest.raises(TypeError, match=f"{size} must be a whole number. Received: 2.5"):
        numbered(5, **{size: 2.5})


def test_finite_tasks_come_equally_often():
    tasks = [numbered() for _ in range(3)]
    distribution = FiniteTasks(tasks)
    sample = distribution.sample(7, np.random.default_rng(0))
    assert set(sample[:3]) == set(sample[3:6]) == set(tasks)
    assert sample == distribution.sample(7, np.random.default_rng(0))
    assert len(distribution.sample(2, np.random.default_rng(0))) == 2
    with pytest.raises(ValueError, match="at least one task"):
        FiniteTasks([])
    with pytest.raises(TypeError, match="A tuple is no task"):
        FiniteTasks([(np.zeros(3), np.zeros(3))])


def test_a_list_of_tasks_to_train_on_stands_for_finite_tasks():
    tasks = [numbered(), numbered()]
    splits = TaskSplits(tasks, validation=(), test=tasks[:1])
    assert isinstance(splits.train, FiniteTasks)
    assert splits.train.tasks == tasks


def test_weights_and_named_inputs_stay_with_their_examples():
    numbers = np.arange(7)
    named = {"a": numbers, "b": (numbers + 10, numbers.astype("float32"))}
    part = (named, -numbers, numbers / 2)
    task = ArrayTask("named", part, part, 3, prepare=lambda x: {**x, "c": x["a"] * 2})
    batches = [*task.train_batches(0).take(4).as_numpy_iterator(), *task.test_batches()]
    assert len(batches) == 5
    for inputs, targets, weights in batches:
        np.testing.assert_array_equal(inputs["a"], -targets)
        np.testing.assert_array_equal(inputs["b"][0], inputs["a"] + 10)
        np.testing.assert_array_equal(inputs["c"], 2 * inputs["a"])
        np.testing.assert_array_equal(weights * 2, inputs["a"])


def test_lists_of_numbers_are_arrays_and_lists_of_arrays_are_several_inputs():
    task = ArrayTask("lists", ([1.0, 2.0], [0, 1]), ([np.ones((2, 3)), np.ones(2)], [0, 1]))
    assert task.train[0].dtype == np.float32
    assert [array.shape for array in task.test[0]] == [(2, 3), (2,)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (np.ones((3, 2)), "'odd': train must be .inputs, targets.* and is a ndarray"),
        ((np.ones(3),), "'odd': train must be"),
        (tf.data.Dataset.range(3), "is a _RangeDataset.*ArrayTask.from_dataset"),
        ((np.ones(3), np.ones(3), np.ones(2)), "has 3 inputs and 3 targets and 2 weights"),
        (({"a": np.ones(3), "b": np.ones(4)}, np.ones(3)), "has 3 or 4 inputs and 3 targets"),
    ],
)
def test_what_is_no_examples_is_refused(train, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ArrayTask("odd", train, (np.ones(1), np.ones(1)))


def test_the_number_of_classes_is_a_whole_one():
    assert numbered(classes=np.int64(7)).classes == 7
    assert numbered().classes is None
    with pytest.raises(ValueError, match="classes must be at least 1"):
        numbered(classes=0)


def test_data_sets_are_read_into_arrays():
    numbers = np.arange(10, dtype="float32")
    examples = tf.data.Dataset.from_tensor_slices(({"x": numbers}, -numbers, numbers / 2))
    for train in (examples, examples.batch(4)):
        task = ArrayTask.from_dataset("read", train, examples.take(3), batch_size=2)
        np.testing.assert_array_equal(task.train[0]["x"], numbers)
        np.testing.assert_array_equal(task.train[2], numbers / 2)
        np.testing.assert_array_equal(task.test[1], -numbers[:3])
        assert task.batch_size == 2
    batches = examples.batch(5, drop_remainder=True)
    task = ArrayTask.from_dataset("read", batches, batches, batched=True)
    np.testing.assert_array_equal(task.test[1], -numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.repeat(), "Task 'read': train never ends.*take"),
        (lambda data: data.take(0), "Task 'read': train has no examples"),
        (lambda data: data.map(lambda x, y: (x, [y])), "Say whether they are batched=True"),
        (lambda data: data.map(lambda x, y: {"x": x, "y": y}), "must be .inputs, targets"),
    ],
)
def test_data_sets_that_cannot_be_read_are_refused(change, message):
    examples = tf.data.Dataset.from_tensor_slices((np.ones((4, 2)), np.ones(4)))
    with pytest.raises((TypeError, ValueError), match=message):
        ArrayTask.from_dataset("read", change(examples), examples)


def frame(count=10, **columns):
    pandas = pytest.importorskip("pandas")
    numbers = np.arange(count)
    return pandas.DataFrame(
        {"a": numbers, "b": numbers / 2, "label": numbers % 2, "price": numbers / 4, **columns}
    )


def test_a_data_frame_becomes_a_matrix_and_labels():
    task = ArrayTask.from_dataframe("rows", frame(), target="label", batch_size=3, classes=2)
    inputs, labels = (np.concatenate(parts) for parts in zip(task.train, task.test))
    assert (inputs.dtype, labels.dtype, inputs.shape) == (np.float32, np.int64, (10, 3))
    assert (len(task.test[1]), task.batch_size, task.classes) == (2, 3, 2)
    np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.arange(10))
    np.testing.assert_array_equal(inputs[:, 0] % 2, labels)
    np.testing.assert_array_equal(inputs[:, 2], inputs[:, 0] / 4)
    again, other = (
        ArrayTask.from_dataframe("rows", frame(), target="label", seed=seed) for seed in (0, 1)
    )
    np.testing.assert_array_equal(task.test[0], again.test[0])
    assert not np.array_equal(task.test[0], other.test[0])


def test_held_out_rows_may_be_a_data_frame_and_a_price_is_a_column():
    task = ArrayTask.from_dataframe(
        "rows", frame(6), frame(4), target="price", features=["b", "label"]
    )
    np.testing.assert_array_equal(task.train[0][:, 0], np.arange(6) / 2)
    np.testing.assert_array_equal(task.test[1], np.arange(4, dtype="float32")[:, None] / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cost"}, r"no columns \['cost'\]"),
        ({"target": "label", "features": ["a", "c"]}, r"no columns \['c'\]"),
        ({"target": "label", "features": ["a", "city"]}, r"\['city'\] are not.*get_dummies"),
        ({"target": "label", "features": ["gap"]}, r"columns \['gap'\] have missing values"),
        ({"target": "city", "features": ["a"]}, r"\['city'\] are not numbers.*factorize"),
        ({"target": "label", "features": ["a"], "test_share": 0.9}, "train has 0 inputs"),
        ({"target": "label", "features": ["a"], "test_share": -0.5}, "test_share must be in"),
    ],
)
def test_columns_that_cannot_be_used_are_named(options, message):
    with pytest.raises(ValueError, match=f"Task 'rows': .*{message}"):
        rows = frame(3, city=["Bern", "Oslo", "Rome"], gap=[1.0, None, 2.0])
        ArrayTask.from_dataframe("rows", rows, **options)


def test_sinusoids_are_sinusoids():
    (task,) = Sinusoids(examples=200).sample(1, np.random.default_rng(0))
    for inputs, targets in (task.train, task.test):
        assert inputs.shape == targets.shape == (200, 1)
        basis = np.concatenate([np.sin(inputs), np.cos(inputs)], axis=1)
        _, residual, _, _ = np.linalg.lstsq(basis, targets[:, 0])
        assert residual < 1e-8
        assert np.abs(inputs).max() <= 5
    assert not np.array_equal(task.train[0], task.test[0])


def test_held_out_sinusoids_are_not_those_of_the_first_meta_batch():
    splits, seen = sinusoid_splits(seed=0, validation_tasks=2, test_tasks=8), []

    class Spy:
        def sample(self, count, rng):
            seen.append(splits.train.sample(count, rng))
            return seen[-1]

    leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", "sgd", steps_per_task=2, seed=0).fit(
        Spy(), 1, verbose=False
    )
    names = {task.name for task in seen[-1]}
    assert len(names) == 20
    assert names.isdisjoint(task.name for task in [*splits.validation, *splits.test])


def test_sinusoid_splits_depend_on_the_seed():
    one, again, other = (sinusoid_splits(seed=seed, test_tasks=3) for seed in (0, 0, 1))
    assert [task.name for task in one.test] == [task.name for task in again.test]
    assert {task.name for task in one.test}.isdisjoint(task.name for task in other.test)
    assert {task.name for task in one.test}.isdisjoint(task.name for task in one.validation)


def test_query_batches_have_all_query_examples():
    query = np.arange(100, 104)
    task = numbered(query=(query, -query), prepare=lambda numbers: numbers * 2)
    for inputs, targets in task.query_batches(seed=0).take(3).as_numpy_iterator():
        np.testing.assert_array_equal(inputs, 2 * query)
        np.testing.assert_array_equal(targets, -query)
    assert not hasattr(numbered(), "query_batches")
    assert task.get_config().keys() - numbered().get_config().keys() == {"query"}


def test_sinusoids_with_queries_have_three_sets_of_one_curve():
    [task] = Sinusoids(examples=10, queries=7).sample(1, np.random.default_rng(0))
    amplitude, phase = (float(part) for part in task.name[:-1].split(" sin(x + "))
    for inputs, targets in (task.train, task.test, task.query):
        np.testing.assert_allclose(targets, amplitude * np.sin(inputs + phase), atol=0.03)
    assert len(task.query[0]) == 7
    assert not set(task.query[0].ravel()) & set(task.train[0].ravel())
