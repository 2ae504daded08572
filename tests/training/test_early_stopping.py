"""Early stopping, and the options of evaluation: optimizer, stop rule, steps, statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.learners import MAML, Leap
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import EvaluationConfig, MetaTrainer, StopAtError, StopOnPlateau
from leap_tf.training.early_stopping import stop_batches

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def task(shift=0.0, wrong=0.0, size=40):
    """Returns two clouds, far apart; a share of the held-out labels may be wrong."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], size // 2)
    points = (rng.normal(size=(size, 2)) + 8.0 * labels[:, None] - 4.0 + shift).astype("float32")
    held_out = np.where(np.arange(size) < wrong * size, 1 - labels, labels)
    return ArrayTask("clouds", (points, labels), (points, held_out), batch_size=10)


def trainer(*layers, learner=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((2,)), *layers, keras.layers.Dense(2)])
    return MetaTrainer(
        model,
        CROSS_ENTROPY,
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.1),
        learner=learner or Leap(),
        steps_per_task=60,
        meta_batch_size=1,
        **options,
    )


def evaluating(*layers, **options):
    return trainer(*layers, evaluation=EvaluationConfig(**options))


def steps_made(trainer_, task_):
    history = trainer_.fit(FiniteTasks([task_]), 1, verbose=False).history
    return history["gradient_steps"][0]


def test_a_task_stops_after_enough_batches_of_low_error():
    stopping = StopAtError(error=0.02, batches=7, batch_size=10)
    assert steps_made(trainer(stopping=stopping), task()) in range(7, 20)
    assert steps_made(trainer(), task()) == 60


def test_a_batch_of_high_error_restarts_the_count():
    """A tenth of the held-out labels is wrong, so one batch of four always fails.

    Every round has another order, so up to six batches of low error may follow one another.
    """
    short = StopAtError(error=0.02, batches=3, batch_size=10)
    long = StopAtError(error=0.02, batches=7, batch_size=10)
    assert steps_made(trainer(stopping=short), task(wrong=0.1)) < 30
    assert steps_made(trainer(stopping=long), task(wrong=0.1)) == 60


def test_the_stop_rule_of_training_does_not_end_evaluation():
    stopping = StopAtError(error=0.02, batches=2, batch_size=10)
    evaluated = trainer(stopping=stopping).evaluate([task()], steps=50).tasks[0]
    assert len(evaluated.training_errors) == 50


def test_second_order_learners_cannot_stop_early():
    with pytest.raises(ValueError, match="cannot stop a task early"):
        trainer(learner=MAML(), stopping=StopAtError())


@pytest.mark.parametrize("options", [{"error": 0.0}, {"batches": 0}, {"batch_size": 0}])
def test_stop_rules_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be above 0"):
        StopAtError(**options)


def is_over(rule, errors):
    memory, found = rule.start(), []
    for error in errors:
        memory = rule.observe(memory, tf.constant(error))
        found.append(bool(rule.is_over(memory)))
    return found


def test_a_plateau_is_so_many_batches_without_improvement():
    errors = [0.5, 0.4, 0.4, 0.3, 0.3, 0.35, 0.3, 0.1]
    assert is_over(StopOnPlateau(patience=3), errors) == [False] * 6 + [True, False]
    assert is_over(StopOnPlateau(patience=1), errors[:4]) == [False, False, True, False]
    with pytest.raises(ValueError, match="patience and every must be above 0"):
        StopOnPlateau(patience=0, every=0)


def test_the_error_is_evaluated_every_so_many_steps():
    """All held-out labels are wrong: the first batch is the best, and two more end training."""
    hopeless = task(wrong=1.0)
    for every in (1, 4):
        rule = StopOnPlateau(patience=2, batch_size=40, every=every)
        # a second batch may be better while the model still fits the training set badly
        assert steps_made(trainer(stopping=rule), hopeless) in range(3 * every, 7 * every)


class Validated(ArrayTask):
    """A task with validation examples, of which a share is wrong; all test labels are wrong."""

    def __init__(self, wrong):
        good = task()
        super().__init__("validated", good.train, task(wrong=1.0).test, batch_size=10)
        self._validation = task(wrong=wrong)

    def validation_batches(self):
        return self._validation.test_batches()


def test_validation_examples_are_evaluated_if_a_task_has_them():
    rule = StopAtError(error=0.02, batches=7, batch_size=10)
    assert steps_made(trainer(stopping=rule), Validated(wrong=0.0)) < 20
    assert steps_made(trainer(stopping=rule), Validated(wrong=1.0)) == 60


def test_a_rule_can_look_at_training_examples():
    """All validation labels are wrong, so only training examples can end the task."""
    rule = StopAtError(error=0.02, batches=7, batch_size=10, every=2, on="training")
    assert steps_made(trainer(stopping=rule), Validated(wrong=1.0)) in range(14, 40)
    evaluated = evaluating(stopping=rule).evaluate([task(wrong=1.0)], steps=60).tasks[0]
    assert len(evaluated.training_errors) in range(14, 40)
    assert evaluated.error == 1.0
    with pytest.raises(ValueError, match="on must be 'validation' or 'training'"):
        StopAtError(on="test")


def test_evaluation_stops_by_validation_examples_only():
    rule = StopAtError(error=0.02, batches=7, batch_size=10)
    stopping = evaluating(stopping=rule)
    evaluated = stopping.evaluate([Validated(wrong=0.0)], steps=50).tasks[0]
    assert len(evaluated.training_errors) < 20
    assert evaluated.error == 1.0  # of the test examples
    with pytest.raises(ValueError, match="examples that the task is evaluated on"):
        stopping.evaluate([task()], steps=50)


def test_evaluation_can_use_another_optimizer():
    still = evaluating(optimizer=keras.optimizers.SGD(0.0)).evaluate([task()], steps=3)
    assert still.tasks[0].path_length == pytest.approx(
        np.abs(np.diff(still.tasks[0].training_losses)).sum(), abs=1e-6
    )
    assert trainer().evaluate([task()], steps=3).loss < still.loss


def test_validation_can_use_another_number_of_steps():
    def history(steps):
        fitted = trainer().fit(
            FiniteTasks([task()]),
            1,
            validation_tasks=[task(1.0)],
            validation_steps=steps,
            verbose=False,
        )
        return fitted.history

    short, long, default = history(5), history(60), history(None)
    assert short["loss"] == long["loss"]
    assert short["val_path_energy"][0] < long["val_path_energy"][0]
    assert long["val_final_loss"] == default["val_final_loss"]


def test_transductive_evaluation_uses_the_statistics_of_the_batch():
    """Held-out inputs are shifted far from the training inputs; their own statistics undo that."""
    moved = task()
    moved.test = (moved.test[0] + np.float32(100.0), moved.test[1])
    layers = [keras.layers.BatchNormalization(momentum=0.5, center=False, scale=False)]
    inductive = trainer(*layers).evaluate([moved], steps=40)
    layers = [keras.layers.BatchNormalization(momentum=0.5, center=False, scale=False)]
    transductive = evaluating(*layers, transductive=True).evaluate([moved], steps=40)
    assert inductive.error == pytest.approx(0.5)
    assert transductive.error == pytest.approx(0.0)
    np.testing.assert_array_equal(
        inductive.tasks[0].training_losses, transductive.tasks[0].training_losses
    )


def test_random_layers_are_inactive_in_transductive_evaluation():
    """The figures are those of the same model without dropout, however large its rate."""
    moved = task()
    moved.test = (moved.test[0] + np.float32(100.0), moved.test[1])
    errors = {}
    for rate in (0.0, 0.5):
        layers = [
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.Dropout(rate),
        ]
        (errors[rate],) = evaluating(*layers, transductive=True).evaluate([moved], steps=40).tasks
    assert errors[0.5].error == errors[0.0].error == pytest.approx(0.0)
    assert np.any(errors[0.5].training_losses != errors[0.0].training_losses)


def test_the_order_of_held_out_batches_does_not_depend_on_the_global_seed():
    x = np.arange(60, dtype=np.float32).reshape(60, 1)
    task = ArrayTask("task", (x, x), (x, x))

    def first(global_seed, seed=3):
        keras.utils.set_random_seed(global_seed)
        batches = stop_batches(task, seed, StopOnPlateau(batch_size=5))
        return [batch[0][0].item() for batch in batches.take(6).as_numpy_iterator()]

    assert first(1) == first(2)
    assert first(1) != first(1, seed=4)
