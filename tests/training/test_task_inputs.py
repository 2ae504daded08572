"""Tasks in the forms that Keras users have at hand: lists, generators, several inputs, weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import leap_tf
from leap_tf.tasks import ArrayTask, FiniteTasks, batches_of
from tests.training.sinusoids import assert_same, held_out, trainer, weights

INPUTS = np.random.default_rng(0).normal(size=(24, 1)).astype("float32")
TARGETS = 2 * INPUTS


def batches(size=4):
    return [(INPUTS[at : at + size], TARGETS[at : at + size]) for at in range(0, 24, size)]


class OfDataSets:
    name = "batches"

    def train_batches(self, seed):
        return tf.data.Dataset.from_tensor_slices((INPUTS, TARGETS)).batch(4)

    def test_batches(self):
        return self.train_batches(0)


class OfGenerators(OfDataSets):
    def train_batches(self, seed):
        yield from batches()


class OfLists(OfDataSets):
    def train_batches(self, seed):
        return [list(batch) for batch in batches()]


class Indexed(keras.utils.PyDataset):
    endless = False

    @property
    def num_batches(self):
        return None if self.endless else 6

    def __getitem__(self, index):
        return batches()[index % 6]


class OfPyDatasets(OfDataSets):
    def train_batches(self, seed):
        return Indexed()


def short(**options):
    return trainer(**{"steps_per_task": 3, "meta_batch_size": 2} | options)


@pytest.mark.parametrize("kind", [OfGenerators, OfLists, OfPyDatasets])
def test_batches_of_any_kind_train_as_a_data_set_does(kind):
    learner = short()
    learner.fit([kind()], 1, verbose=False)
    ends = [learner.evaluate(task) for task in (OfDataSets(), kind())]
    assert [(end.error, end.tasks[0].examples) for end in ends] == [(ends[0].error, 24)] * 2


def test_a_generator_that_has_begun_is_read_from_its_first_batch_and_again():
    data = batches_of(OfGenerators(), "train_batches", 0)
    assert data.element_spec[0] == tf.TensorSpec([None, 1], tf.float32)
    for _ in range(2):
        read = list(data.as_numpy_iterator())
        np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in read]), INPUTS)


def test_joint_training_takes_generators_too():
    learner = short(
        task_layers=["head"],
        learner=leap_tf.JointTraining(heads=1),
        meta_optimizer=keras.optimizers.SGD(1.0),
    )
    learner.fit([OfGenerators()], 1, verbose=False)
    assert learner.evaluate(OfPyDatasets()).tasks[0].examples == 24


def test_an_endless_py_dataset_is_for_training_only():
    class Endless(Indexed):
        endless = True

    task = OfDataSets()
    task.test_batches = lambda: batches()
    task.train_batches = lambda seed: Endless()
    assert len(short().evaluate(task, steps=9).tasks[0].training_errors) == 9
    task.test_batches = lambda: Endless()
    with pytest.raises(ValueError, match=r"test_batches\(\) of task 'batches' never end"):
        short().evaluate(task)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: (INPUTS, TARGETS), "returned a tuple. It must return batches"),
        (lambda: 3, "returned a int. It must return batches"),
        (lambda: [], r"train_batches\(\) of task 'batches' gave no batch"),
        (lambda: [INPUTS, TARGETS], r"must give \(inputs, targets\)"),
    ],
)
def test_what_gives_no_batches_is_refused(made, message):
    task = OfDataSets()
    task.train_batches = lambda seed: made()
    task.test_batches = lambda: OfDataSets().train_batches(0)
    with pytest.raises((TypeError, ValueError), match=message):
        short().evaluate(task)


def test_lists_and_single_tasks_stand_for_what_is_meant():
    tasks = held_out(2)
    ends = []
    for given in (FiniteTasks(tasks), tasks):
        learner = short()
        learner.fit(given, 1, validation_tasks=given, verbose=False)
        ends.append(weights(learner))
    assert_same(*ends)
    expected = [task.error for task in learner.evaluate(tasks).tasks]
    assert [task.error for task in learner.evaluate(FiniteTasks(tasks)).tasks] == expected
    assert learner.evaluate(tasks[0]).error == expected[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (leap_tf.sinusoid_splits(), "splits.train"),
        ((INPUTS, TARGETS), "A ndarray is no task.*ArrayTask"),
        (tf.data.Dataset.range(3), "A _RangeDataset is no task"),
        (["first", "second"], "A str is no task"),
        (7, "A int is no task"),
    ],
)
def test_what_is_no_distribution_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        short().fit(given, 1, verbose=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (leap_tf.sinusoid_splits(), "splits.validation or splits.test"),
        (leap_tf.Sinusoids(), "Sinusoids samples tasks without end.*sample"),
        (INPUTS, "A ndarray is no task"),
    ],
)
def test_what_is_no_list_of_tasks_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        short().evaluate(given)
    with pytest.raises(TypeError, match=message):
        short().fit(leap_tf.Sinusoids(), 1, validation_tasks=given, verbose=False)


def test_examples_of_weight_zero_do_not_count():
    """The second half has other targets, and weight 0."""
    spoiled = np.concatenate([TARGETS[:12], 100 - TARGETS[12:]])
    halves = np.repeat(np.float32([1, 0]), 12)
    clean, weighted = (
        ArrayTask("half", (INPUTS[:12], TARGETS[:12]), (INPUTS[:12], TARGETS[:12]), 12),
        ArrayTask("half", (INPUTS, spoiled, 2 * halves), (INPUTS, spoiled, halves), 24),
    )
    found = [short().evaluate(task).tasks[0] for task in (clean, weighted)]
    assert found[1].examples == 12
    np.testing.assert_allclose(found[1].error, found[0].error, rtol=1e-4)
    np.testing.assert_allclose(found[1].training_errors, found[0].training_errors, rtol=1e-4)


@pytest.mark.parametrize("form", ["dictionary", "tuple"])
def test_models_of_several_inputs_are_trained(form):
    left, right = keras.Input((1,), name="left"), keras.Input((1,), name="right")
    joined = keras.layers.Dense(1)(keras.layers.Concatenate()([left, right]))
    inputs = (INPUTS, -INPUTS)
    if form == "dictionary":
        model = keras.Model({"left": left, "right": right}, joined)
        inputs = {"right": -INPUTS, "left": INPUTS}
    else:
        model = keras.Model((left, right), joined)
    task = ArrayTask("two", (inputs, TARGETS), (inputs, TARGETS), 8)
    learner = short(model=model, steps_per_task=20, inner_optimizer=keras.optimizers.SGD(0.1))
    learner.fit([task], 1, verbose=False)
    curve = learner.evaluate(task).tasks[0].training_errors
    assert curve[-1] < 0.1 * curve[0]


def test_tracing_of_many_trainers_is_not_taken_for_tracing_of_one_again(monkeypatch):
    manager = type(polymorphic_function._frequent_tracing_detector_manager)()
    monkeypatch.setattr(polymorphic_function, "_frequent_tracing_detector_manager", manager)
    said = []
    monkeypatch.setattr(polymorphic_function.logging, "warning", lambda text, *_: said.append(text))
    task = ArrayTask("small", (INPUTS, TARGETS), (INPUTS, TARGETS))
    for size in range(6):
        small = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        short(model=small).evaluate(ArrayTask(f"{size}", task.train, task.test, 3 + size), steps=1)
    assert said == []
    calls = tf.function(lambda number: number)
    for number in range(6):
        calls(number)
    assert len(said) == 2


def test_targets_are_never_broadcast_to_one_output():
    wide = ArrayTask("wide", (INPUTS, np.zeros((len(INPUTS), 3), "float32")), (INPUTS, TARGETS))
    with pytest.raises(ValueError, match=r"'wide' cannot be trained on.*targets are .*3\)"):
        short().fit([wide], 1, verbose=False)


def test_masks_pass_recurrent_layers_with_dropout_in_transductive_evaluation():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, size=(12, 6))
    x[:, 4:] = 0  # padding
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LSTM(3, dropout=0.5)(hidden)))
    examples = x, x.sum(axis=1) % 2
    trainer = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "sgd",
        steps_per_task=2,
        evaluation=leap_tf.EvaluationConfig(transductive="both"),
    )
    (found,) = trainer.evaluate([leap_tf.ArrayTask("task", examples, examples)]).tasks
    assert found.metrics["transductive_error"] == found.error  # there is no batch norm
