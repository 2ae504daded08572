"""The outer loop: what it learns, and what results depend on."""

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.tasks import FiniteTasks
from tests import golden
from tests.training.sinusoids import assert_same, held_out, trainer, weights


class RecordedTask:
    """One of the original's recorded tasks."""

    def __init__(self, number):
        self.number = number
        self.name = f"recorded {number}"

    def train_batches(self, seed):
        return golden.task_dataset(self.number)

    def test_batches(self):
        return golden.task_dataset(self.number)


def test_a_meta_step_descends_on_the_originals_meta_gradient():
    model = golden.build_model()
    before = model.get_weights()
    learner = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.5),
        meta_batch_size=2,
    )
    learner.fit(FiniteTasks([RecordedTask(0), RecordedTask(1)]), 1, verbose=False)
    moved = [(a - b) / 0.5 for a, b in zip(before, model.get_weights())]
    expected = golden.to_keras(golden.meta_gradient("a_sgd_lr0.1", "float32", golden.SWITCHES[0]))
    assert golden.relative_error(moved, expected) < 1e-5


def test_meta_training_makes_new_tasks_easier():
    learner = trainer()
    before = learner.evaluate(held_out())
    history = learner.fit(leap_tf.Sinusoids(), 40, verbose=False)
    after = learner.evaluate(held_out())
    assert after.error < 0.7 * before.error
    assert after.area_under_error < 0.7 * before.area_under_error
    assert len(history.history["loss"]) == 40
    assert history.history["path_length"][-1] < history.history["path_length"][0]


def test_evaluation_changes_nothing_and_repeats():
    learner = trainer()
    start = weights(learner)
    first, again = learner.evaluate(held_out()), learner.evaluate(held_out())
    assert_same(weights(learner), start)
    for a, b in zip(first.tasks, again.tasks):
        assert (a.name, a.error, a.loss) == (b.name, b.error, b.loss)
        np.testing.assert_array_equal(a.training_errors, b.training_errors)
    assert len(learner.evaluate(held_out(), steps=3).tasks[0].training_errors) == 3


@pytest.mark.parametrize("parallel_tasks", [1, 3])
def test_results_do_not_depend_on_parallel_tasks(parallel_tasks):
    ends = []
    for tasks in (2, parallel_tasks):
        learner = trainer(parallel_tasks=tasks)
        learner.fit(leap_tf.Sinusoids(), 4, verbose=False)
        ends.append(weights(learner))
    assert_same(*ends)


def test_the_seed_decides_everything():
    ends = []
    for seed in (1, 1, 2):
        learner = trainer(seed)
        learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
        ends.append(weights(learner))
    assert_same(ends[0], ends[1])
    assert not np.array_equal(ends[0][0], ends[2][0])


def test_task_layers_are_fresh_for_each_task_and_never_move():
    model = leap_tf.mlp()
    head = [array.copy() for array in model.get_layer("head").get_weights()]
    encoder = model.layers[0].get_weights()[0].copy()
    learner = trainer(model=model, task_layers=["head"])
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    assert_same(model.get_layer("head").get_weights(), head)
    assert not np.array_equal(model.layers[0].get_weights()[0], encoder)
    first = learner.evaluate(held_out(2), steps=1)
    assert len({task.training_errors[0] for task in first.tasks}) == 2


def test_batch_norm_state_of_the_initialization_never_moves():
    model = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    norm = model.layers[1]
    learner = trainer(model=model)
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    learner.evaluate(held_out(2))
    np.testing.assert_array_equal(norm.moving_mean.numpy(), np.zeros(4))
    np.testing.assert_array_equal(norm.moving_variance.numpy(), np.ones(4))


def test_fresh_task_layers_are_fresh_in_their_state_too():
    model = keras.Sequential(
        [
            keras.layers.Input((1,)),
            keras.layers.Dense(4, name="encoder"),
            keras.layers.BatchNormalization(momentum=0.999999, name="norm"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    learner = trainer(model=model, task_layers=["norm", "head"])
    clean = learner.evaluate(held_out(1)).loss
    model.get_layer("norm").moving_mean.assign(np.full(4, 1e3))
    assert learner.evaluate(held_out(1)).loss == clean
