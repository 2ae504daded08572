"""Tests of tasks with numerical trouble: they are left out, and the initialization stays finite.

Each such task is put beside a good one, for every meta-learner.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.tasks import ArrayTask, FiniteTasks

CLASSES, STEPS = 3, 4
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def examples(name, inputs=None, labels=None, count=12):
    """Builds a task of points around the corners of a triangle, or with other inputs or labels."""
    rng = np.random.default_rng(0)
    own = np.arange(count) % CLASSES
    labels = own if labels is None else labels
    if inputs is None:
        inputs = np.eye(4)[own] + rng.normal(scale=0.1, size=(count, 4))
    inputs = np.asarray(inputs, np.float32)
    return ArrayTask(name, (inputs, labels), (inputs, labels), batch_size=min(4, len(labels)))


def huge(value):
    return examples(f"inputs of {value:g}", np.full((12, 4), value))


GOOD = examples("good")
BROKEN = {
    "loss explodes": huge(3e38),
    "inputs are infinite": huge(np.inf),
    "inputs are not numbers": huge(np.nan),
    "one number is none": examples("nan", np.where(np.arange(48).reshape(12, 4) == 30, np.nan, 1)),
}
ODD = {
    "inputs are constant": huge(1.0),
    "inputs are zero": huge(0.0),
    "one example": examples("one example", count=1),
    "one class": examples("one class", labels=np.zeros(12, int)),
}
LEARNERS = {
    "Leap, length": lambda: leap_tf.Leap(distance="length"),
    "Leap, energy": lambda: leap_tf.Leap(distance="energy", per_segment=True),
    "Reptile": leap_tf.Reptile,
    "FOMAML": leap_tf.FOMAML,
    "MAML": leap_tf.MAML,
    "ANIL": leap_tf.ANIL,
    "Meta-SGD": leap_tf.MetaSGD,
}
SECOND_ORDER = ("MAML", "ANIL", "Meta-SGD")  # batch norm of vectors is refused there
ONE_AFTER_ANOTHER = {
    "finetuning": leap_tf.JointTraining,
    "HAT": lambda: leap_tf.HAT(steps_per_epoch=STEPS),
    "Progressive Nets": lambda: leap_tf.ProgressiveNets(tasks=1 + len(ODD)),
}


class NoSlope(keras.losses.Loss):
    """A constant loss, so that every gradient is zero."""

    def call(self, targets, outputs):
        return 1.0 + 0.0 * keras.ops.sum(outputs, axis=-1)


def network(dtype=None, batch_norm=True):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(6, dtype=dtype),
            *([leap_tf.models.BatchNormalization()] if batch_norm else []),
            keras.layers.Activation("relu"),
            keras.layers.Dense(CLASSES, name="head", dtype=dtype),
        ]
    )


def make_trainer(learner, meta_batch_size, model=None, loss=CROSS_ENTROPY, **options):
    one_by_one = learner in ONE_AFTER_ANOTHER
    settings = {
        "meta_optimizer": keras.optimizers.SGD(1.0) if one_by_one else keras.optimizers.Adam(0.05),
        "task_layers": ["head"] if one_by_one else [],
    }
    return leap_tf.MetaTrainer(
        model or network(batch_norm=learner not in SECOND_ORDER),
        loss,
        keras.optimizers.SGD(0.1),
        learner=(LEARNERS | ONE_AFTER_ANOTHER)[learner](),
        steps_per_task=STEPS,
        meta_batch_size=1 if learner in ("HAT", "Progressive Nets") else meta_batch_size,
        pool=1,
        **(settings | options),
    )


def train(trainer, tasks, meta_steps=2):
    return trainer.fit(FiniteTasks(tasks), meta_steps, verbose=False).history


def assert_finite(trainer):
    for variable in [*trainer.variables, *trainer.meta_optimizer.variables]:
        assert np.isfinite(variable.numpy()).all(), variable.path


@pytest.mark.parametrize("learner", LEARNERS)
def test_broken_tasks_are_left_out_and_counted(learner):
    # Batch norm would make large inputs small again.
    model = network(batch_norm=False)
    trainer = make_trainer(learner, meta_batch_size=1 + len(BROKEN), model=model)
    history = train(trainer, [GOOD, *BROKEN.values()])
    assert history["tasks_skipped"] == [len(BROKEN)] * 2
    assert np.isfinite(list(history.values())).all()
    assert_finite(trainer)


@pytest.mark.parametrize(
    ("learner", "trouble"),
    [
        ("finetuning", "inputs are infinite"),
        ("HAT", "inputs are not numbers"),
        ("Progressive Nets", "one number is none"),
    ],
)
def test_with_nothing_but_a_broken_task_training_stops_and_the_last_state_stays(learner, trouble):
    trainer = make_trainer(learner, meta_batch_size=2)
    others = [] if learner == "finetuning" else ODD.values()  # which have their turns later
    before = [variable.numpy() for variable in trainer.model.variables]
    with pytest.raises(
        leap_tf.MetaTrainingDivergedError, match="No task of meta-step 1 has a usable result"
    ):
        train(trainer, [BROKEN[trouble], *others])
    assert_finite(trainer)
    for variable, value in zip(trainer.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("learner", [*LEARNERS, *ONE_AFTER_ANOTHER])
def test_odd_tasks_are_learned_from_like_any_other(learner):
    tasks = [GOOD, *ODD.values()]
    trainer = make_trainer(learner, meta_batch_size=len(tasks))
    history = train(trainer, tasks, meta_steps=len(tasks))
    assert history["tasks_skipped"] == [0] * len(tasks)
    assert_finite(trainer)
    evaluation = trainer.evaluate(tasks)
    assert evaluation.diverged == ()
    assert np.isfinite([task.error for task in evaluation.tasks]).all()


@pytest.mark.parametrize("learner", ["Leap, length", "Leap, energy", "Reptile", "MAML", "HAT"])
def test_where_nothing_can_be_learned_nothing_moves_or_breaks(learner):
    trainer = make_trainer(learner, meta_batch_size=2, loss=NoSlope())
    meta_variables = trainer.problem.meta_variables
    before = [variable.numpy() for variable in meta_variables]
    history = train(trainer, [GOOD, ODD["inputs are constant"]])
    assert history["tasks_skipped"] == [0, 0]
    if learner != "HAT":  # its penalty on units has a slope of its own
        for variable, value in zip(meta_variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
    assert_finite(trainer)


def test_float16_is_refused_since_small_gradients_become_zero():
    with pytest.raises(leap_tf.functional.UnsupportedModelError, match="Use 'mixed_bfloat16'"):
        make_trainer("Reptile", meta_batch_size=2, model=network(dtype="mixed_float16"))


def positive_part(values):
    """Returns 0 for NaN, as TensorFlow's ReLU does on some processors."""
    return tf.where(values > 0, values, 0.0)


def network_that_hides_nan():
    """Returns a network whose outputs are numbers even if the weights are not."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(8, activation=positive_part) for _ in range(2)]
    return keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(CLASSES, name="head")])


def with_one_nan():
    """Returns a task with one NaN among its training inputs, and good held-out examples."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(16, 4)).astype(np.float32)
    labels = np.arange(16) % CLASSES
    broken = inputs.copy()
    broken[0, 1] = np.nan
    return ArrayTask("hidden", (broken, labels), (inputs, labels), batch_size=4)


def test_weights_that_are_not_numbers_behind_finite_losses_are_divergence():
    trainer = make_trainer("Leap, length", 2, model=network_that_hides_nan())
    evaluation = trainer.evaluate([GOOD, with_one_nan()], steps=20)
    good, hidden = evaluation.tasks
    assert np.isfinite([hidden.error, hidden.loss, *hidden.training_losses]).all()
    assert not hidden.finite
    assert evaluation.diverged == ("hidden",)
    assert evaluation.error == good.error
    assert evaluation.metrics()["path_length"] == good.path_length
    assert evaluation.steps_to(1.0) == [0, None]
    history = train(trainer, [GOOD, with_one_nan()])
    assert history["tasks_skipped"] == [1, 1]
    assert_finite(trainer)


def test_the_last_step_counts_too():
    """One step on a good batch to a weight that overflows: only the weight tells."""
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    overflowing = leap_tf.EvaluationConfig(keras.optimizers.SGD(3e38))
    trainer = make_trainer("Reptile", 1, model=model, loss=Steep(), evaluation=overflowing)
    evaluation = trainer.evaluate([GOOD], steps=1)
    assert evaluation.diverged == ("good",)
    assert np.isfinite(evaluation.tasks[0].training_losses).all()


class Bounded(keras.losses.Loss):
    """A loss that is finite for infinite outputs."""

    def call(self, targets, outputs):
        return keras.ops.mean(keras.ops.sigmoid(outputs), axis=-1)


def test_held_out_outputs_that_are_infinite_are_divergence():
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(CLASSES)])
    trainer = make_trainer("Leap, length", 1, model=model, loss=Bounded())
    good, inputs = GOOD.train, np.full((12, 4), np.inf, np.float32)
    task = ArrayTask("infinite", good, (inputs, good[1]), batch_size=4)
    model.layers[0].set_weights([np.ones((4, CLASSES), np.float32), np.zeros(CLASSES)])
    (result,) = trainer.evaluate([task]).tasks
    assert result.loss == pytest.approx(1.0)
    assert result.diverged


class Steep(keras.losses.Loss):
    """A loss whose gradient is large everywhere."""

    def call(self, targets, outputs):
        return 1e3 * keras.ops.sum(outputs, axis=-1)


@pytest.mark.parametrize("meta_optimizer", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_an_update_that_overflows_is_not_made(meta_optimizer):
    """Every task is finite, but the meta-update is not."""
    optimizer = meta_optimizer(3e38)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    trainer = make_trainer(
        "Reptile", meta_batch_size=2, model=model, loss=Steep(), meta_optimizer=optimizer
    )
    variables = [*trainer.problem.meta_variables, *optimizer.variables]
    before = [variable.numpy() for variable in variables]
    with pytest.raises(leap_tf.MetaTrainingDivergedError, match="Lower the meta"):
        train(trainer, [GOOD, ODD["one class"]], meta_steps=3)
    assert_finite(trainer)
    if trainer.meta_step == 0:
        for variable, value in zip(variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
