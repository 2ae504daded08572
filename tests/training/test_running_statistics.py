"""Running statistics of normalization layers as a part of the initialization."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf

STEPS = 3
BATCH = 4


class Constant:
    """A task whose inputs all have the same value, so batch statistics are known."""

    def __init__(self, name, value):
        self.name = name
        self.value = value

    def train_batches(self, seed):
        batch = tf.fill((BATCH, 1), float(self.value)), tf.zeros((BATCH, 1))
        return tf.data.Dataset.from_tensors(batch).repeat()

    def test_batches(self):
        return self.train_batches(0).take(1)


def normalizing_model():
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.BatchNormalization(momentum=0.5, name="norm"),
            keras.layers.Dense(1, name="head"),
        ]
    )


def trainer_of(model, **options):
    sgd = keras.optimizers.SGD
    options = {"steps_per_task": STEPS, "meta_batch_size": 2, **options}
    return leap_tf.MetaTrainer(model, "mse", sgd(0.01), sgd(0.01), **options)


TASKS = leap_tf.FiniteTasks([Constant("two", 2.0), Constant("six", 6.0)])


def statistics(model):
    norm = model.get_layer("norm")
    return norm.moving_mean.numpy().item(), norm.moving_variance.numpy().item()


def test_a_meta_step_moves_them_to_the_mean_of_where_its_tasks_end():
    # From 0, three steps with momentum 1/2 go 7/8 of the way to the mean of the data, 2 or 6. The
    # variance of the data is 0, so it falls from 1 to 1/8.
    model = normalizing_model()
    trainer_of(model).fit(TASKS, 1, verbose=False)
    assert statistics(model) == pytest.approx((4.0 * 7 / 8, 1 / 8))


def test_they_continue_from_meta_step_to_meta_step():
    model = normalizing_model()
    trainer_of(model).fit(TASKS, 20, verbose=False)
    assert statistics(model) == pytest.approx((4.0, 0.0), abs=1e-6)


def test_a_task_that_is_not_finite_does_not_count():
    model = normalizing_model()
    broken = leap_tf.FiniteTasks([Constant("two", 2.0), Constant("broken", np.inf)])
    trainer_of(model).fit(broken, 1, verbose=False)
    assert statistics(model) == pytest.approx((2.0 * 7 / 8, 1 / 8))


def test_the_policy_of_the_paper_starts_every_task_from_the_same():
    model = normalizing_model()
    trainer_of(model, running_statistics="fresh").fit(TASKS, 3, verbose=False)
    assert statistics(model) == (0.0, 1.0)


def test_both_policies_learn_the_same_weights():
    """Training takes batch statistics; benchmarks/running_statistics.py trains once for both."""
    learned = {}
    for policy in ("learned", "fresh"):
        keras.utils.set_random_seed(0)
        model = leap_tf.conv_net((8, 8, 1), classes=3, filters=4, blocks=2)
        rng = np.random.default_rng(0)
        data = rng.normal(size=(2, 20, 8, 8, 1)).astype("float32"), rng.integers(3, size=(2, 20))
        train, test = zip(*data, strict=True)
        task = leap_tf.ArrayTask("noise", train, test, batch_size=5)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        sgd, options = keras.optimizers.SGD, {"steps_per_task": 4, "running_statistics": policy}
        trainer = leap_tf.MetaTrainer(model, loss, sgd(0.1), sgd(0.1), **options)
        trainer.fit([task], 2, verbose=False)
        learned[policy] = model
    first, second = (model.trainable_variables for model in learned.values())
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    statistics = [model.non_trainable_variables[0].numpy() for model in learned.values()]
    assert not np.allclose(*statistics)


@pytest.mark.parametrize("policy", ["learned", "fresh"])
def test_frozen_layers_keep_their_exact_values(policy):
    model = keras.Sequential([normalizing_model(), keras.layers.Dense(1, name="last")])
    model.build((None, 1))
    model.layers[0].trainable = False
    for variable in model.layers[0].weights:
        variable.assign(variable.value + 0.1)
    before = model.layers[0].get_weights()
    trainer_of(model, meta_batch_size=3, running_statistics=policy).fit(TASKS, 3, verbose=False)
    for old, new in zip(before, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def train_with_optimizer(model, optimizer, tasks):
    for task in tasks:
        with optimizer.task(model):
            model.fit(task.train_batches(0).take(STEPS), verbose=0)


@pytest.mark.parametrize(("policy", "mean"), [("learned", 3.5), ("fresh", 0.0)])
def test_the_optimizer_learns_them_too(policy, mean):
    model = normalizing_model()
    sgd = keras.optimizers.SGD
    optimizer = leap_tf.LeapOptimizer(sgd(0.01), sgd(0.01), running_statistics=policy)
    model.compile(optimizer, "mse")
    train_with_optimizer(model, optimizer, TASKS.tasks)
    optimizer.meta_update()
    assert statistics(model)[0] == pytest.approx(mean)


def test_a_saved_optimizer_continues_in_the_middle_of_a_meta_batch(tmp_path):
    model = normalizing_model()
    sgd = keras.optimizers.SGD
    optimizer = leap_tf.LeapOptimizer(sgd(0.01), sgd(0.01))
    model.compile(optimizer, "mse")
    train_with_optimizer(model, optimizer, TASKS.tasks[:1])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        train_with_optimizer(each, each.optimizer, TASKS.tasks[1:])
        each.optimizer.meta_update()
    assert statistics(loaded) == statistics(model)
    assert statistics(loaded)[0] == pytest.approx(3.5)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="must be 'learned' or 'fresh'. Received: 'none'"):
        trainer_of(normalizing_model(), running_statistics="none")
    sgd = keras.optimizers.SGD
    with pytest.raises(ValueError, match="must be 'learned' or 'fresh'. Received: 'none'"):
        leap_tf.LeapOptimizer(sgd(0.1), sgd(0.1), running_statistics="none")


def test_statistics_that_cannot_have_arrived_are_announced_once(caplog):
    model = normalizing_model()
    model.get_layer("norm").momentum = 0.99
    trainer = trainer_of(model, running_statistics="fresh")
    for _ in range(2):
        trainer.evaluate(TASKS.tasks, steps=10)
    [record] = [each for each in caplog.records if each.name == "leap_tf"]
    assert "After 10 steps, 90 % of the running statistics of 'norm'" in record.getMessage()
    caplog.clear()
    trainer_of(model).evaluate(TASKS.tasks, steps=10)
    trainer_of(model, running_statistics="fresh").evaluate(TASKS.tasks, steps=100)
    assert not [each for each in caplog.records if each.name == "leap_tf"]
