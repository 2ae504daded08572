"""The inner loop gives the numbers of the original code and of `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.functional import FunctionalModel, FunctionalOptimizer
from leap_tf.learners import FOMAML, MAML, Leap, NoMetaLearning
from leap_tf.optimizer import LeapOptimizer
from leap_tf.tasks import batches_of_few_steps
from leap_tf.training import InnerLoop
from tests import golden

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def inner_loop(model, optimizer, learner=None, loss=CROSS_ENTROPY):
    functional = FunctionalModel(model, loss)
    inner = FunctionalOptimizer(optimizer, functional.variables)
    loop = InnerLoop(functional, inner, learner or Leap(), range(len(functional.variables)))
    return loop, functional


def run(loop, functional, dataset, steps=100, seed=0):
    return loop.train(
        iter(dataset), tf.constant(steps), functional.parameters(), functional.state(seed)
    )


@pytest.mark.parametrize(
    "learner",
    [Leap(), FOMAML(query_batches=2), MAML(query_batches=2)],
    ids=lambda each: type(each).__name__,
)
def test_batches_in_memory_and_those_of_a_pipeline_train_alike(learner):
    loop, functional = inner_loop(
        leap_tf.mlp(), keras.optimizers.SGD(0.01), learner, keras.losses.MeanSquaredError()
    )
    [task] = leap_tf.Sinusoids(examples=7, batch_size=3).sample(1, np.random.default_rng(0))
    values = functional.parameters(), functional.state(0)
    second_order = {"second_order": learner.second_order}
    results = [
        loop.train(batches, 4 if learner.second_order else tf.constant(4), *values, **second_order)
        for batches in (iter(task.train_batches(5)), batches_of_few_steps(task, 5, batches=6))
    ]
    assert len(results[0].losses) == 4
    for one, other in zip(*map(tf.nest.flatten, results), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("switches", golden.SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize(("case", "tolerance"), [("a_sgd_lr0.1", 1e-5), ("c_adam_lr0.01", 1e-3)])
def test_the_loop_gives_the_meta_gradients_of_the_original(case, tolerance, switches):
    loop, functional = inner_loop(golden.build_model(), golden.OPTIMIZERS[case](), Leap(**switches))
    results = [
        run(loop, functional, golden.task_dataset(task)).update.meta_gradient
        for task in range(golden.TASKS)
    ]
    mean = [(a + b) / golden.TASKS for a, b in zip(*results)]
    expected = golden.to_keras(golden.meta_gradient(case, "float32", switches))
    assert golden.relative_error(mean, expected) < tolerance


def test_losses_and_end_point_are_those_of_the_original():
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.SGD(0.1))
    result = run(loop, functional, golden.task_dataset(1))
    np.testing.assert_allclose(
        result.losses, golden.GOLDEN["a_sgd_lr0.1/float32/losses"][1], rtol=1e-5
    )
    end = [array[1, -1] for array in golden.parameters("a_sgd_lr0.1/float32/traj")]
    assert golden.relative_error(result.parameters, golden.to_keras(end)) < 1e-5


def test_float64_models_keep_their_precision():
    loop, functional = inner_loop(golden.build_model("float64"), keras.optimizers.SGD(0.1))
    result = run(loop, functional, golden.task_dataset(0, "float64"))
    expected = golden.parameters("a_sgd_lr0.1/float64/norm1_loss1_stab1/meta_task0_sum")
    assert result.update.meta_gradient[0].dtype == tf.float64
    # Keras's SGD keeps its learning rate in float32, so 0.1 is off by 1.5e-8.
    assert golden.relative_error(result.update.meta_gradient, golden.to_keras(expected)) < 1e-6


@pytest.mark.parametrize(("steps", "taken"), [(3, 3), (8, 8), (100, 8)])
def test_the_loop_makes_as_many_steps_as_asked_or_as_there_are_batches(steps, taken):
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.SGD(0.1))
    assert run(loop, functional, golden.task_dataset(0), steps).losses.shape == (taken,)


def models():
    images = (np.arange(16 * 8 * 8).reshape(16, 8, 8, 1) % 7 / 7.0).astype("float32")
    words = (np.arange(16 * 5).reshape(16, 5) % 11).astype("int32")
    labels = np.arange(16) % 3

    def with_dropout():
        return keras.Sequential(
            [
                keras.layers.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(8, activation="relu", kernel_regularizer="l2"),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(3),
            ]
        )

    def with_lstm():
        return keras.Sequential(
            [
                keras.layers.Input((5,)),
                keras.layers.Embedding(11, 4),
                keras.layers.LSTM(6),
                keras.layers.Dense(3),
            ]
        )

    def application():
        whole = keras.applications.MobileNetV2(
            (32, 32, 3), alpha=0.35, weights=None, include_top=False, pooling="avg"
        )
        blocks = whole.get_layer("block_2_add").output  # the later ones have the same layers
        features = keras.layers.GlobalAveragePooling2D()(blocks)
        return keras.Model(whole.input, keras.layers.Dense(3)(features))

    large = np.repeat(np.repeat(np.repeat(images, 4, 1), 4, 2), 3, 3)
    return {
        "dropout": (with_dropout, images, labels),
        "lstm": (with_lstm, words, labels),
        "application": (application, large, labels),
    }


@pytest.mark.parametrize(
    ("name", "learning_rate"), [("dropout", 0.003), ("lstm", 0.003), ("application", 0.0003)]
)
def test_any_keras_model_trains(name, learning_rate):
    build, inputs, labels = models()[name]
    loop, functional = inner_loop(build(), keras.optimizers.Adam(learning_rate))
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(8).repeat(6)
    before = [variable.numpy() for variable in functional.model.variables]
    first, again = (run(loop, functional, dataset, seed=1) for _ in range(2))
    other = run(loop, functional, dataset, seed=2)
    assert bool(first.finite)
    assert float(first.losses[-2:].numpy().mean()) < float(first.losses[:2].numpy().mean())
    np.testing.assert_array_equal(first.losses, again.losses)
    # Only dropout draws from the seed.
    assert np.array_equal(first.losses, other.losses) == (name != "dropout")
    for variable, value in zip(functional.model.variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_loop_trains_as_keras_fit_does():
    build, inputs, labels = models()["lstm"]
    model = build()
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(8).repeat(3)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 6)

    def optimizer():
        return keras.optimizers.SGD(schedule, momentum=0.9, clipnorm=1.0, weight_decay=1e-3)

    loop, functional = inner_loop(model, optimizer(), NoMetaLearning())
    result = run(loop, functional, dataset)
    model.compile(optimizer(), loss=CROSS_ENTROPY)
    model.fit(dataset, verbose=0)
    for variable, value in zip(model.trainable_variables, result.parameters):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.RMSprop(keras.optimizers.schedules.CosineDecay(0.01, 6)),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.Lion(0.001),
    ],
    ids=["momentum", "rmsprop with a schedule", "adamw", "lion"],
)
def test_loop_and_leap_optimizer_record_the_same_path(optimizer):
    model, dataset = golden.build_model(), golden.task_dataset(0)
    loop, functional = inner_loop(model, optimizer())
    result = run(loop, functional, dataset)
    recording = LeapOptimizer(optimizer(), keras.optimizers.SGD(0.1))
    model.compile(recording, loss=CROSS_ENTROPY)
    with recording.task(model):
        model.fit(dataset, verbose=0)
    error = golden.relative_error(recording.meta_gradients(), result.update.meta_gradient)
    assert error < 1e-4
    assert recording.path_length == pytest.approx(
        float(result.update.metrics["path_length"]), rel=1e-5
    )
    assert recording.path_energy == pytest.approx(
        float(result.update.metrics["path_energy"]), rel=1e-5
    )


def test_evaluation_uses_the_running_statistics_of_the_task():
    """Inductive batch norm: the result for an example does not depend on the rest of its batch."""
    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dense(2),
        ]
    )
    loop, functional = inner_loop(model, keras.optimizers.SGD(0.1))
    inputs = np.random.default_rng(0).normal(5.0, 2.0, size=(32, 3)).astype("float32")
    labels = (inputs[:, 0] > 5).astype("int64")
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels))
    adapted = run(loop, functional, dataset.batch(8).repeat(10))
    together = loop.evaluate(iter(dataset.batch(32)), adapted.parameters, adapted.state)
    alone = loop.evaluate(iter(dataset.batch(1)), adapted.parameters, adapted.state)
    assert float(together.error) == pytest.approx(float(alone.error))
    assert float(together.loss) == pytest.approx(float(alone.loss), rel=1e-4)
    assert float(together.error) < 0.2
    assert int(together.examples) == 32
    untouched = loop.evaluate(iter(dataset.batch(32)), adapted.parameters, functional.state(0))
    assert float(untouched.loss) != pytest.approx(float(together.loss), rel=0.01)


def test_a_diverged_task_is_not_finite():
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.SGD(0.1))
    broken = golden.task_dataset(0).map(lambda x, y: (x * np.inf, y))
    assert not bool(run(loop, functional, broken).finite)


def test_sample_weights_and_unused_variables():
    inputs = keras.Input((2,))
    used = keras.layers.Dense(1, name="used")(inputs)
    model = keras.Model(inputs, [used])

    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.extra = model, keras.layers.Dense(3)

        def build(self, shape):
            self.extra.build(shape)
            super().build(shape)

        def call(self, x):
            return self.inner(x)[0]

    wrapped = Wrapped()
    wrapped(np.zeros((1, 2), "float32"))
    loop, functional = inner_loop(
        wrapped, keras.optimizers.SGD(0.1), loss=keras.losses.MeanSquaredError()
    )
    weights = tf.constant([[1.0, 0.0]])
    dataset = tf.data.Dataset.from_tensor_slices(
        ([[[1.0, 0.0], [9.0, 9.0]]], [[[1.0], [1.0]]], weights)
    )
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        result = run(loop, functional, dataset.repeat(4))
    kernel = next(
        value
        for variable, value in zip(functional.variables, result.parameters)
        if variable.path.endswith("used/kernel")
    )
    start = next(v for v in functional.variables if v.path.endswith("used/kernel"))
    assert float(kernel[1, 0]) == float(start.numpy()[1, 0])  # the weighted example has x₂ = 0
    assert bool(result.finite)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
def test_examples_of_weight_zero_are_padding_in_held_out_figures(reduction):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[2.0]])
    loop, functional = inner_loop(
        model, keras.optimizers.SGD(0.1), loss=keras.losses.MeanSquaredError(reduction=reduction)
    )
    inputs = tf.constant([[1.0], [2.0], [3.0], [99.0]])
    targets = tf.constant([[0.0], [3.0], [6.0], [0.0]])  # squared errors 4, 1, 0 and padding's
    weights = tf.constant([1.0, 2.0, 0.5, 0.0])
    held_out = tf.data.Dataset.from_tensor_slices((inputs, targets, weights)).batch(2)
    result = loop.evaluate(iter(held_out), functional.parameters(), functional.state(0))
    assert int(result.examples) == 3
    assert float(result.error) == pytest.approx((4 + 2 * 1 + 0) / 3.5)
    divisor = 4 if reduction == "sum_over_batch_size" else 3.5
    assert float(result.loss) == pytest.approx((4 + 2 * 1 + 0) / divisor)
    trained = run(loop, functional, held_out.repeat(), steps=1)
    assert float(trained.errors[0]) == pytest.approx((4 + 2 * 1) / 3)


def test_a_data_set_without_targets_is_refused():
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.SGD(0.1))
    inputs_only = golden.task_dataset(0).map(lambda x, y: x)
    with pytest.raises(ValueError, match="must give \\(inputs, targets\\)"):
        run(loop, functional, inputs_only)


def test_batches_of_unknown_shape_train():
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.Adam(0.01))
    expected = run(loop, functional, golden.task_dataset(0))
    shapeless = tf.data.Dataset.from_generator(
        lambda: golden.task_dataset(0).as_numpy_iterator(),
        output_signature=(tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int64)),
    )
    other, functional = inner_loop(golden.build_model(), keras.optimizers.Adam(0.01))
    with_rank = shapeless.map(lambda x, y: (tf.reshape(x, [-1, 5]), tf.reshape(y, [-1])))
    unknown_width = shapeless.map(
        lambda x, y: (tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1]]), tf.reshape(y, [-1]))
    )
    for dataset in (with_rank, unknown_width):
        result = run(other, functional, dataset)
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-6)


def test_one_trace_serves_all_tasks():
    loop, functional = inner_loop(golden.build_model(), keras.optimizers.SGD(0.1))
    for task in range(golden.TASKS):
        run(loop, functional, golden.task_dataset(task), steps=3 + task, seed=task)
    assert loop.train.experimental_get_tracing_count() == 1
