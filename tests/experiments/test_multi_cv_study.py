"""Tests of the configured Multi-CV study, made small, on real subsets of the data sets."""

import pathlib

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.experiments import config

CONFIGURATIONS = pathlib.Path(__file__).parents[2] / "gin_configs" / "multi_cv"
SMALL = (
    "multi_cv_splits.share = 0.2",
    "multi_cv_splits.held_out = 'gtsrb'",
    "conv_net.filters = 4",
    "conv_net.blocks = 2",
    "MetaTrainer.steps_per_task = 3",
    "HAT.steps_per_epoch = 3",
)


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


def cells():
    config.read_configuration([CONFIGURATIONS / "table3_cpu.gin"])
    files, found = config.configured_cells()
    by_method = {cell.values["method"]: cell for cell in found}
    return [CONFIGURATIONS / file for file in files], by_method


def study_of(method, data_dir):
    files, by_method = cells()
    config.read_configuration(files, [*by_method[method].bindings, *SMALL])
    return config.configured_study(data_dir=data_dir)


@pytest.mark.parametrize("method", ["leap", "finetuning", "hat", "progressive", "none"])
def test_every_method_runs_on_all_subsets(method, tfds_subset):
    evaluated = outcome_of(method, tfds_subset)
    assert evaluated.name == "gtsrb"
    assert evaluated.examples == 1978
    assert np.isfinite([evaluated.error, evaluated.loss, *evaluated.training_losses]).all()


def outcome_of(method, data_dir):
    study = study_of(method, data_dir)
    names = [task.name for task in study.tasks.train.tasks]
    assert len({*names, *(task.name for task in study.tasks.test)}) == 7
    meta_steps = {"none": 0, "hat": len(names), "progressive": len(names)}.get(method, 1)
    study.trainer.fit(study.tasks.train, meta_steps, verbose=False)
    return study.trainer.evaluate(study.tasks.test, steps=5).tasks[0]


def test_a_study_repeats_to_the_bit(tfds_subset):
    """What is read and drawn repeats; tests/learner_contract.py shows it of the learners."""
    one, other = (outcome_of("leap", tfds_subset) for _ in range(2))
    assert (one.error, one.loss) == (other.error, other.loss)
    np.testing.assert_array_equal(one.training_losses, other.training_losses)


@pytest.mark.parametrize("method", ["leap", "finetuning", "none"])
def test_a_fresh_head_has_as_many_units_as_the_task_has_classes(method, tfds_subset):
    study = study_of(method, tfds_subset)
    model = study.trainer.model
    head = model.get_layer("head")
    evaluated = study.trainer.evaluate(study.tasks.test, steps=1).tasks[0]
    assert head.units == 100
    whole = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert evaluated.parameters == whole - (100 - 43) * (head.kernel.shape[0] + 1)


@pytest.mark.parametrize("method", ["hat", "progressive"])
def test_a_kept_head_gives_no_probability_to_classes_a_task_does_not_have(method, tfds_subset):
    """Of its 100 columns, 57 are not classes of Traffic Signs and cannot move."""
    study = study_of(method, tfds_subset)
    problem = study.trainer.problem
    task = problem.plan.evaluation_task(study.tasks.test[0])
    inputs, labels = next(iter(task.train_batches(0)))
    heads = kept_heads(study.trainer, task.number)
    with tf.GradientTape() as tape:
        logits = study.trainer.model(inputs, training=True)
        loss = problem.loss(labels, logits)
    probabilities = keras.ops.softmax(logits).numpy()
    assert probabilities.shape[1] == 100
    assert (probabilities[:, 43:] == 0.0).all()
    assert (probabilities[:, :43] > 0.0).all()
    gradients = tape.gradient(loss, [variable.value for variable in heads])
    assert len(gradients) >= 2
    for gradient in map(tf.convert_to_tensor, gradients):
        assert not np.any(gradient[..., 43:])
        assert np.any(gradient[..., :43])


@pytest.mark.parametrize("method", ["finetuning", "hat", "progressive"])
def test_training_does_not_move_columns_of_classes_a_task_does_not_have(method, tfds_subset):
    study = study_of(method, tfds_subset)
    first = study.tasks.train.tasks[0]
    heads = kept_heads(study.trainer, 0)
    before = [variable.numpy() for variable in heads]
    study.trainer.fit(study.tasks.train, 1, verbose=False)
    for variable, old in zip(heads, before, strict=True):
        moved = old != variable.numpy()
        of_first = moved[0] if "per_task" in variable.path else moved
        assert not of_first[..., first.classes :].any()
        assert of_first[..., : first.classes].any()


def kept_heads(trainer, number):
    """The variables of a task's head: of its column's, or the heads of all tasks in one layer."""
    found = [
        variable
        for variable in trainer.problem.meta_variables
        if "per_task" in variable.path or variable.path.split("/")[-2].endswith(f"head_{number}")
        if tuple(variable.shape)[-1:] == (100,)
    ]
    assert len(found) >= 2  # kernel and bias
    return found
