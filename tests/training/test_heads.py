"""Tasks with different numbers of classes: each has a head of its width, which is freed again."""

import gc

import keras
import numpy as np
import psutil
import pytest

from leap_tf.learners import JointTraining
from leap_tf.learners.joint import multi_headed
from leap_tf.models import mlp
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetaTrainer, TaskSpec

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Clouds(ArrayTask):
    """A cloud of points for each class."""

    def __init__(self, classes, number=0):
        rng = np.random.default_rng([classes, number])
        labels = np.tile(np.arange(classes), 12)
        points = 3.0 * rng.normal(size=(classes, 4))[labels] + rng.normal(size=(len(labels), 4))
        part = (points.astype("float32"), labels)
        super().__init__(f"{classes} clouds, {number}", part, part, batch_size=6)
        self.classes = classes


def network(classes):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(classes, name="head")]
    return keras.Sequential([keras.layers.Input((4,)), *layers])


def trainer(classes=3, optimizer=None, **options):
    return MetaTrainer(
        network(classes),
        CROSS_ENTROPY,
        optimizer or keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(options.pop("meta_rate", 0.1)),
        steps_per_task=8,
        meta_batch_size=options.pop("meta_batch_size", 3),
        task_layers=("head",),
        **options,
    )


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(0.1),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.2),
    ],
)
def test_a_task_of_any_width_trains_as_in_a_model_of_that_width(make_optimizer):
    """Meta-gradient of the encoder and held-out error are those of a model made for the task."""
    narrow, fitting = trainer(2, make_optimizer()), trainer(7, make_optimizer())
    for target, source in zip(fitting.model.layers[0].weights, narrow.model.layers[0].weights):
        target.assign(source.numpy())
    gradients = []
    for each in (narrow, fitting):
        each.problem.sampler.use_list("test", [Clouds(7)])
        spec = TaskSpec("test", meta_step=0, index=0, seed=5, steps=8)
        gradients.append(each.problem.train(spec).meta_gradient)
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    one, other = (each.evaluate([Clouds(7)], steps=30).tasks[0] for each in (narrow, fitting))
    np.testing.assert_allclose(one.training_losses, other.training_losses, rtol=1e-4)
    assert one.error == other.error
    assert one.path_length == pytest.approx(other.path_length, rel=1e-4)
    assert one.training_losses[0] == pytest.approx(np.log(7), rel=0.5)


def test_all_widths_share_one_trace_and_nothing_grows():
    """A hundred tasks with heads of their own need no new graphs and no new memory."""
    meta_trainer = trainer()
    meta_trainer.fit(FiniteTasks([Clouds(2), Clouds(3), Clouds(4)]), 2, verbose=False)
    meta_trainer.evaluate([Clouds(2), Clouds(3), Clouds(4)])
    evaluator = meta_trainer.problem._evaluator
    loops = (evaluator.training_loop.train, evaluator.evaluation_loop.train)
    graphs = [loop.experimental_get_tracing_count() for loop in loops]
    tasks = [Clouds(2 + index % 9, index) for index in range(100)]
    meta_trainer.evaluate(tasks[:20])
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    meta_trainer.fit(FiniteTasks(tasks), 40, verbose=False)
    meta_trainer.evaluate(tasks)
    gc.collect()
    assert [loop.experimental_get_tracing_count() for loop in loops] == graphs
    assert process.memory_info().rss - before < 8 * 2**20


def test_a_meta_learned_head_has_one_width():
    fixed = MetaTrainer(
        network(3), CROSS_ENTROPY, keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)
    )
    with pytest.raises(ValueError, match="has 4 classes, and the model 3 outputs"):
        fixed.evaluate([Clouds(4)], steps=2)


def test_optimizers_whose_slots_cannot_be_resized_are_refused():
    with pytest.raises(ValueError, match="whose shapes differ from the parameters'"):
        trainer(optimizer=keras.optimizers.Adafactor(0.01)).evaluate([Clouds(4)], steps=2)


def test_a_bank_of_heads_knows_how_many_classes_each_task_has():
    """Outputs beyond a task's classes have no probability, and their weights no gradient."""
    bank = multi_headed(network(5), "head", heads=2)
    points = np.ones((3, 4), "float32")
    logits = bank([points, np.array([0, 1, 1]), np.array([5, 2, 5])]).numpy()
    assert (keras.ops.softmax(logits)[1].numpy()[2:] == 0).all()
    assert (logits[[0, 2]] > -10).all()
    joint = trainer(
        5,
        learner=JointTraining(heads=2),
        meta_rate=1.0,
        meta_batch_size=2,
    )
    kernel = next(each for each in joint.problem.meta_variables if "per_task/kernel" in each.path)
    before = kernel.numpy()
    joint.fit(FiniteTasks([Clouds(2), Clouds(5)]), 3, verbose=False)
    moved = np.any(kernel.numpy() != before, axis=1)
    np.testing.assert_array_equal(moved, [[True] * 2 + [False] * 3, [True] * 5])
    assert joint.evaluate([Clouds(4)], steps=40).error < 0.4


def test_a_new_head_of_one_unit_takes_targets_without_a_dimension_for_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    losses = []
    for targets in (x.sum(axis=1), x.sum(axis=1, keepdims=True)):
        keras.utils.set_random_seed(0)
        trainer = MetaTrainer(
            mlp(inputs=3, hidden=[4]), "mse", "sgd", steps_per_task=20, task_layers=["head"]
        )
        task = ArrayTask("task", (x, targets), (x, targets), batch_size=10)
        losses.append(trainer.evaluate([task]).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
