"""Models and layers as functions: checks, default errors, and reinitialized layers."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.functional import (
    Batch,
    FunctionalModel,
    TaskLayers,
    UnsupportedModelError,
    layer_variables,
)
from leap_tf.functional.losses import TotalLoss, default_error
from leap_tf.serialization import SavedArrays


def model():
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.Sequential(
                [keras.layers.Dense(3, name="inside"), keras.layers.BatchNormalization()],
                name="encoder",
            ),
            keras.layers.Dense(2, name="head"),
        ]
    )


def test_fresh_values_depend_on_the_seed_alone():
    network = model()
    state = random.getstate()
    first, again, other = (TaskLayers(network, ["head"]).draw(seed) for seed in (1, 1, 2))
    assert random.getstate() == state
    kernel, bias = network.get_layer("head").weights
    assert set(first) == {id(kernel), id(bias)}
    np.testing.assert_array_equal(first[id(kernel)], again[id(kernel)])
    assert np.any(first[id(kernel)] != other[id(kernel)])
    assert np.any(first[id(kernel)] != kernel.numpy())
    limit = np.sqrt(6 / (3 + 2))  # of Glorot's uniform initializer
    assert np.all(np.abs(first[id(kernel)]) <= limit)


def test_nested_layers_are_found_by_name():
    network = model()
    assert [v.path for v in layer_variables(network, ["inside"])] == [
        v.path for v in network.layers[0].layers[0].weights
    ]
    with pytest.raises(ValueError, match="no layer named \\['tail'\\]; it has .*inside"):
        layer_variables(network, ["tail"])


def test_whole_submodels_can_be_fresh():
    network = model()
    values = TaskLayers(network, ["encoder"]).draw(3)
    assert set(values) == {id(variable) for variable in network.get_layer("encoder").weights}


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "errors"),
    [
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            [0, 1],
            [[2.0, 1.0], [2.0, 1.0]],
            [0.0, 1.0],
        ),
        (
            keras.losses.CategoricalCrossentropy(),
            [[1.0, 0.0], [0.0, 1.0]],
            [[0.9, 0.1], [0.9, 0.1]],
            [0.0, 1.0],
        ),
        (
            keras.losses.BinaryCrossentropy(from_logits=True),
            [[1.0], [1.0]],
            [[0.3], [-0.3]],
            [0.0, 1.0],
        ),
        (keras.losses.BinaryCrossentropy(), [[1.0], [1.0]], [[0.6], [0.4]], [0.0, 1.0]),
        (keras.losses.MeanSquaredError(), [[0.0, 0.0], [1.0, 1.0]], [[1.0, 3.0]] * 2, [5.0, 2.0]),
    ],
)
def test_the_default_error(loss, targets, outputs, errors):
    result = default_error(loss)(tf.constant(targets), tf.constant(outputs))
    np.testing.assert_allclose(np.ravel(result), errors, rtol=1e-6)


def test_models_and_losses_that_cannot_be_used_are_refused():
    mse = keras.losses.MeanSquaredError()
    with pytest.raises(ValueError, match="no variables yet"):
        FunctionalModel(keras.Sequential([keras.layers.Dense(1)]), mse)
    with pytest.raises(TypeError, match=r"keras\.losses\.Loss"):
        FunctionalModel(model(), "mse")
    frozen = model()
    frozen.trainable = False
    with pytest.raises(ValueError, match="nothing to learn"):
        FunctionalModel(frozen, mse)


@pytest.mark.parametrize("reduction", ["sum", None])
def test_losses_that_are_not_a_mean_are_refused(reduction):
    with pytest.raises(ValueError, match="must be a mean over the batch"):
        FunctionalModel(model(), keras.losses.MeanSquaredError(reduction=reduction))


def test_losses_without_a_configuration_work():
    class Weighted(keras.losses.Loss):
        def __init__(self, alpha):
            super().__init__()
            self.alpha = alpha

        def call(self, targets, outputs):
            return self.alpha * tf.reduce_mean(tf.square(targets - outputs), axis=-1)

    error = FunctionalModel(model(), Weighted(7.0)).error
    result = error(tf.zeros((2, 2)), tf.constant([[1.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_allclose(result, [7.0, 14.0])


class Subclassed(keras.Model):
    """A model that does not pass `training` on: Keras itself tells its layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization(momentum=0.5)
        self.drop = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(2, kernel_regularizer="l2")

    def call(self, inputs, training=None):
        return self.out(self.drop(self.norm(inputs)))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_subclassed_models_run_as_keras_runs_them(policy):
    network = Subclassed(dtype=policy)
    inputs = np.random.default_rng(0).normal(3.0, 1.0, size=(64, 4))  # float64: Keras casts it
    targets = np.zeros((64, 2), "float32")
    network(inputs)
    functional = FunctionalModel(network, keras.losses.MeanSquaredError())
    state = functional.state(0)
    trained = functional.evaluate(
        functional.parameters(), state, Batch(inputs, targets), training=True
    )
    evaluated = functional.evaluate(
        functional.parameters(), state, Batch(inputs, targets), training=False
    )
    by_name = {
        variable.name: value
        for variable, value in zip(network.non_trainable_variables, trained.state)
    }
    np.testing.assert_allclose(by_name["moving_mean"], 0.5 * inputs.mean(axis=0), rtol=0.02)
    outputs = network(inputs, training=False)
    expected = np.mean(np.square(np.asarray(outputs, "float32")))
    assert float(evaluated.loss) == pytest.approx(expected, rel=1e-5)  # no penalty, no dropout
    penalty = float(sum(network.losses))
    assert penalty > 0
    assert float(trained.loss) > penalty
    np.testing.assert_array_equal(network.norm.moving_mean.numpy(), np.zeros(4))


class OwnStep(keras.Model):
    """A model with a training rule of its own."""

    def train_step(self, data):
        return super().train_step(data)


class OwnLoss(keras.Model):
    """A model with a loss of its own."""

    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(("kind", "rule"), [(OwnStep, "train_step"), (OwnLoss, "compute_loss")])
def test_models_with_a_training_rule_of_their_own_are_refused(kind, rule):
    inputs = keras.Input((4,))
    network = kind(inputs, keras.layers.Dense(2)(inputs), name="mine")
    with pytest.raises(UnsupportedModelError, match=f"'mine' has its own {rule}.*LeapOptimizer"):
        FunctionalModel(network, keras.losses.MeanSquaredError())


def test_a_training_rule_of_one_instance_is_found():
    network = model()
    network.train_step = lambda data: {}
    with pytest.raises(UnsupportedModelError, match="has its own train_step"):
        FunctionalModel(network, keras.losses.MeanSquaredError())


def test_loss_weights_of_a_compiled_model_are_refused():
    network = model()
    network.compile("sgd", "mse", loss_weights=0.5)
    with pytest.raises(UnsupportedModelError, match="loss_weights.*weight the loss that you pass"):
        FunctionalModel(network, keras.losses.MeanSquaredError())
    network.compile("sgd", "mse")
    FunctionalModel(network, keras.losses.MeanSquaredError())


def test_layers_frozen_after_the_trainer_was_made_are_refused():
    network = model()
    functional = FunctionalModel(network, keras.losses.MeanSquaredError())
    functional.initial_values(0, {})
    network.get_layer("head").trainable = False
    with pytest.raises(UnsupportedModelError, match="frozen or unfrozen after the trainer"):
        functional.initial_values(0, {})


def evaluated(network, batch, training=True):
    functional = FunctionalModel(network, keras.losses.MeanSquaredError())
    return functional.evaluate(
        functional.parameters(), functional.state(0), batch, training=training
    )


class Unowned(keras.layers.Layer):
    """A layer that draws from Keras's global seed."""

    def call(self, inputs):
        return inputs + keras.random.normal((4,))


def test_assigned_variables_that_would_be_lost_are_refused():
    normalized = keras.layers.SpectralNormalization(keras.layers.Dense(2, name="in"), name="unit")
    network = keras.Sequential([keras.Input((4,)), normalized])
    batch = Batch(tf.ones((3, 4)), tf.zeros((3, 2)))
    with pytest.raises(
        UnsupportedModelError, match="layer 'unit' assigns its trainable weight .*unit/in/kernel'"
    ):
        evaluated(network, batch)
    evaluated(network, batch, training=False)  # it assigns in training only
    network = keras.Sequential([keras.Input((4,)), Unowned(), keras.layers.Dense(2)], name="noisy")
    with pytest.raises(UnsupportedModelError, match="'noisy' changes a variable .*SeedGenerator"):
        evaluated(network, batch)


GENERATOR, COUNT = tf.random.Generator.from_seed(1), tf.Variable(0.0)


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: x + tf.random.normal(tf.shape(x)),
        lambda x: tf.nn.dropout(x, 0.5),
        lambda x: x + GENERATOR.uniform(tf.shape(x)),
        lambda x: x + COUNT.assign_add(1.0),
    ],
)
def test_state_of_tensorflow_is_refused(noise):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(noise)])
    network.add(keras.layers.Dense(2))
    batch = Batch(tf.ones((3, 4)), tf.zeros((3, 2)))
    with pytest.raises(UnsupportedModelError, match=r"whose state is TensorFlow's. Use keras.rand"):
        tf.function(lambda: evaluated(network, batch).loss)()


class Vector(keras.layers.Layer):
    """A layer that adds a loss for each example."""

    def call(self, inputs):
        self.add_loss(keras.ops.sum(inputs, axis=-1))
        return inputs


def test_losses_that_are_no_scalars_are_summed():
    """As `Model.compute_loss` does: 2 examples of 4 ones add 8."""
    network = keras.Sequential([keras.Input((4,)), Vector(), keras.layers.Dense(2)])
    network.compile("sgd", "mse")
    batch = Batch(tf.ones((2, 4)), tf.zeros((2, 2)))
    result = evaluated(network, batch)
    outputs = network(batch.inputs)
    assert float(result.loss) == pytest.approx(np.mean(np.square(outputs)) + 8.0, rel=1e-6)
    expected = network.compute_loss(batch.inputs, batch.targets, outputs)
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_masked_outputs_count_neither_in_the_loss_nor_in_errors(weights):
    """Steps of zeros are masked: the first example has two steps, the second one."""
    network = keras.Sequential(
        [keras.Input((3, 1)), keras.layers.Masking(), keras.layers.Dense(1, use_bias=False)]
    )
    network.layers[-1].kernel.assign([[2.0]])
    inputs = tf.constant([[[1.0], [2.0], [0.0]], [[3.0], [0.0], [0.0]]])
    targets = tf.constant([[[1.0], [1.0], [9.0]], [[4.0], [9.0], [9.0]]])
    sample_weight = None if weights is None else tf.constant([[weight] for weight in weights])
    result = evaluated(network, Batch(inputs, targets, sample_weight))
    first, second = weights or (1.0, 1.0)
    # squared errors: (2 − 1)², (4 − 1)² and (6 − 4)², of three steps that count
    assert float(result.loss) == pytest.approx((first * (1 + 9) + second * 4) / 3)
    np.testing.assert_allclose(result.errors, [5.0, 4.0])
    np.testing.assert_allclose(result.weights, [first, second])
    assert float(result.loss_weight) == 3.0
    network = keras.Sequential([keras.Input((3, 1)), keras.layers.Masking(), keras.layers.Dense(2)])
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    functional = FunctionalModel(network, labels)
    by_step = functional.evaluate(
        functional.parameters(),
        functional.state(0),
        Batch(inputs, tf.zeros((2, 3), tf.int32), sample_weight),
        training=False,
    )
    np.testing.assert_allclose(by_step.weights, [first, first, 0.0, second, 0.0, 0.0])


def of_identity(loss, targets, outputs, sample_weight=None, error=None):
    """Evaluates a model whose outputs are its inputs."""
    shape = np.shape(outputs)[1:]
    layers = [keras.Input(shape), keras.layers.Rescaling(1.0)]
    network = keras.Sequential([*layers, keras.layers.BatchNormalization(epsilon=0.0)])
    functional = FunctionalModel(network, loss, error)
    batch = Batch(tf.constant(outputs), tf.constant(targets), sample_weight)
    return functional.evaluate(
        functional.parameters(), functional.state(0), batch, training=False
    ), network


def test_an_ignored_class_counts_neither_in_the_loss_nor_in_errors():
    """Two of four labels count, and one of them is wrong."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    outputs = [[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0]]]
    result, _ = of_identity(loss, [[0, -1], [1, -1]], outputs)
    np.testing.assert_array_equal(result.weights, [1.0, 0.0, 1.0, 0.0])
    assert float(result.error) == 0.5
    assert float(result.loss_weight) == 2.0
    expected = (np.log(1 + np.exp(-2.0)) + np.log(1 + np.exp(1.0))) / 2
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="ignore_class is not supported"):
        TotalLoss([loss, keras.losses.MeanSquaredError()])


def test_outputs_without_a_last_dimension():
    """Errors 1 and 4; Keras's loss is their mean."""
    layers = [keras.layers.Dense(1, use_bias=False), keras.layers.Reshape(())]
    network = keras.Sequential([keras.Input((1,)), *layers])
    network.layers[0].kernel.assign([[1.0]])
    functional = FunctionalModel(network, keras.losses.MeanSquaredError())
    batch = Batch(tf.constant([[1.0], [2.0]]), tf.constant([0.0, 0.0]), None)
    result = functional.evaluate(
        functional.parameters(), functional.state(0), batch, training=False
    )
    np.testing.assert_allclose(result.errors, [1.0, 4.0])
    assert float(result.loss) == 2.5


class MeanOfAll(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred))


def test_errors_and_weights_that_do_not_belong_to_examples_are_refused():
    mse, ones = keras.losses.MeanSquaredError(), np.ones((2, 3, 1), "float32")
    for options, message in (
        ({"error": lambda targets, outputs: tf.reduce_mean(outputs)}, "one error for each example"),
        ({"sample_weight": tf.ones((2, 3))}, "sample_weight has the shape .2, 3."),
        ({"sample_weight": (tf.ones(2), tf.ones(2))}, "sample_weight must be one tensor"),
        ({"loss": MeanOfAll()}, "MeanOfAll.call.. must return one loss for each example"),
    ):
        with pytest.raises(ValueError, match=message):
            of_identity(**{"loss": mse, "targets": ones, "outputs": ones} | options)


def quiet_outputs(network, inputs):
    """Returns the outputs in training of a model without randomness, and its new state by name."""
    functional = FunctionalModel(network, keras.losses.MeanSquaredError()).without_randomness()
    parameters, state = functional.initial_values(7, {})
    targets = tf.zeros_like(network(inputs))
    result = functional.evaluate(parameters, state, Batch(inputs, targets), training=True)
    assert [id(each) for each in functional.variables] == [
        id(each) for each in network.trainable_variables
    ]
    paths = [variable.path for variable in network.non_trainable_variables]
    return result.outputs, dict(zip(paths, result.state, strict=True)), dict(zip(paths, state))


@pytest.mark.parametrize("inside", [False, True])
def test_random_layers_are_inactive_and_batch_norm_is_as_in_training(inside):
    """Batch (1, 3) has mean 2 and variance 1; the weight 2 and no dropout make ∓2 of it."""
    network = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.BatchNormalization(momentum=0.5, epsilon=0.0),
            keras.layers.Dropout(0.9),
            keras.layers.GaussianNoise(1.0),
            keras.layers.Dense(1, use_bias=False),
        ],
        name="inner",
    )
    network.layers[-1].kernel.assign([[2.0]])
    model = keras.Sequential([keras.Input((1,)), network, keras.layers.Dropout(0.9)])
    used = model if inside else network
    config = used.get_config()
    random = FunctionalModel(used, keras.losses.MeanSquaredError())
    inputs = tf.constant([[1.0], [3.0]])
    outputs, state, before = quiet_outputs(used, inputs)
    np.testing.assert_allclose(outputs, [[-2.0], [2.0]], rtol=1e-6)
    mean = next(value for path, value in state.items() if path.endswith("moving_mean"))
    np.testing.assert_allclose(mean, [1.0])  # half of 0 and half of 2
    for path, value in before.items():
        if path.endswith("seed_generator_state"):
            np.testing.assert_array_equal(state[path], value)
    batch = Batch(inputs, tf.zeros((2, 1)))
    noisy = random.evaluate(random.parameters(), random.state(7), batch, training=True)
    assert np.abs(noisy.outputs - outputs).max() > 0.1
    assert used.get_config() == config


def dropout_everywhere():
    inputs = keras.Input((4, 3))
    hidden = keras.layers.Masking()(inputs)
    hidden = keras.layers.Bidirectional(
        keras.layers.GRU(3, return_sequences=True, dropout=0.5, recurrent_dropout=0.5)
    )(hidden)
    attention = keras.layers.MultiHeadAttention(2, 2, dropout=0.5)
    hidden = hidden + attention(hidden, hidden)
    return keras.Model(inputs, keras.layers.TimeDistributed(keras.layers.Dropout(0.5))(hidden))


def test_dropout_inside_layers_is_inactive_too():
    network = dropout_everywhere()
    config = network.get_config()
    inputs = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    inputs[0, 2:] = 0.0  # masked
    outputs, _, _ = quiet_outputs(network, inputs)
    np.testing.assert_allclose(outputs, network(inputs, training=False), rtol=1e-5, atol=1e-6)
    assert network.get_config() == config


class NoisyNorm(keras.layers.Layer):
    """A layer that draws random numbers and keeps statistics."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)

    def call(self, inputs, training=None):
        return self.drop(self.norm(inputs, training=training), training=training)


def test_randomness_that_cannot_be_switched_off_is_refused():
    mse = keras.losses.MeanSquaredError()
    network = Subclassed(name="mine")
    network(np.zeros((1, 4), "float32"))
    with pytest.raises(UnsupportedModelError, match="subclassed model 'mine'.*keras.Sequential"):
        FunctionalModel(network, mse).without_randomness()
    network = keras.Sequential([keras.Input((4,)), NoisyNorm(name="noisy"), keras.layers.Dense(2)])
    with pytest.raises(UnsupportedModelError, match="'noisy' both draws random numbers and has"):
        FunctionalModel(network, mse).without_randomness()


def test_saved_arrays_round_trip():
    arrays, other = SavedArrays(), SavedArrays()
    other.deserialize(arrays.serialize())
    assert other.value is None
    arrays.value = [np.arange(3.0), np.array(7, np.int64)]
    other.deserialize(arrays.serialize())
    for a, b in zip(arrays.value, other.value, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_threads_do_not_lose_each_others_penalties():
    class Slow(keras.layers.Layer):
        def call(self, inputs):
            time.sleep(0.05)
            return inputs

    penalized = keras.layers.Dense(2, activity_regularizer="l2")
    model = keras.Sequential([keras.Input((3,)), penalized, Slow()])
    functional = FunctionalModel(model, keras.losses.MeanSquaredError())
    batch = Batch(tf.ones([4, 3]), tf.zeros([4, 2]))
    parameters = [variable.value for variable in functional.variables]

    def loss(_):
        return float(functional.evaluate(parameters, [], batch, training=True).loss)

    with ThreadPoolExecutor(4) as threads:
        losses = list(threads.map(loss, range(8)))
    assert losses == [loss(None)] * 8


def test_the_error_of_several_outputs_leaves_out_masked_steps():
    inputs = keras.Input((4, 2))
    masked = keras.layers.Masking()(inputs)
    outputs = [
        keras.layers.Dense(2, bias_initializer=keras.initializers.Constant([9.0, 0.0]))(masked)
        for _ in range(2)
    ]
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True)] * 2
    functional = FunctionalModel(keras.Model(inputs, outputs), TotalLoss(losses))
    x = np.zeros((1, 4, 2), np.float32)
    x[:, :2] = 1e-6  # the last two steps are masked
    labels = tf.constant([[1, 0, 0, 0]])  # the first is wrong, since all outputs say 0
    parameters = [variable.value for variable in functional.variables]
    batch = Batch(tf.constant(x), (labels, labels))
    found = functional.evaluate(parameters, [], batch, training=False)
    np.testing.assert_allclose(found.errors, [0.5])
