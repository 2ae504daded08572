"""Reinitialized layers have Keras's distributions, follow from a seed, and may be of any width."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.functional import FunctionalOptimizer, TaskLayers

# As configurations, so that their seeds are drawn after each test has set that of Python.
INITIALIZERS = {
    "glorot_uniform": "glorot_uniform",
    "glorot_normal": "glorot_normal",
    "he_normal": "he_normal",
    "lecun_uniform": "lecun_uniform",
    "variance_scaling": {
        "class_name": "VarianceScaling",
        "config": {"scale": 0.5, "mode": "fan_out", "distribution": "untruncated_normal"},
    },
    "random_normal": "random_normal",
    "truncated_normal": {"class_name": "TruncatedNormal", "config": {"stddev": 0.3}},
    "random_uniform": "random_uniform",
    "constant": {"class_name": "Constant", "config": {"value": 0.7}},
}


def model(initializer, units=40, features=50):
    keras.utils.set_random_seed(7)
    head = keras.layers.Dense(units, kernel_initializer=initializer, name="head")
    return keras.Sequential([keras.layers.Input((features,)), head])


@pytest.mark.parametrize("name", INITIALIZERS)
def test_values_have_the_distribution_of_keras(name):
    network = model(INITIALIZERS[name])
    kernel, bias = network.weights
    drawn = TaskLayers(network, ["head"]).draw(3)
    np.testing.assert_array_equal(drawn[id(bias)], np.zeros(40))
    drawn_kernel, keras_kernel = drawn[id(kernel)].numpy(), kernel.numpy()
    if name == "constant":
        np.testing.assert_array_equal(drawn_kernel, keras_kernel)
        return
    assert not np.allclose(drawn_kernel, keras_kernel)
    for moment in (1, 2, 4):
        scale = np.mean(np.abs(keras_kernel) ** moment)
        assert np.mean(np.abs(drawn_kernel) ** moment) == pytest.approx(scale, rel=0.15)
    assert abs(drawn_kernel.mean()) < 3 * keras_kernel.std() / np.sqrt(drawn_kernel.size)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_width_given_as_a_tensor_gives_the_same_values(name):
    network = model(INITIALIZERS[name])
    layers = TaskLayers(network, ["head"])
    kernel, bias = (id(variable) for variable in network.weights)

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.int32)])
    def draw(seed, units):
        values = layers.draw(seed, {"head": units})
        assert values[kernel].shape.as_list() == [50, None]
        return values[kernel], values[bias]

    for units in (7, 40):
        expected = layers.draw(11, {"head": units})
        graph_kernel, graph_bias = draw(11, units)
        np.testing.assert_allclose(graph_kernel, expected[kernel], rtol=1e-6)
        np.testing.assert_array_equal(graph_bias, expected[bias])
        assert graph_kernel.shape == (50, units)
    wide, narrow = (layers.draw(11, {"head": units})[kernel].numpy() for units in (4000, 10))
    if name.startswith("glorot"):  # its variance follows the width
        assert wide.std() / narrow.std() == pytest.approx(np.sqrt(60 / 4050), rel=0.1)


def test_the_seed_of_an_initializer_is_kept():
    network = model(keras.initializers.GlorotUniform(seed=5))
    layers = TaskLayers(network, ["head"])
    kernel = id(network.weights[0])
    np.testing.assert_array_equal(layers.draw(1)[kernel], layers.draw(2)[kernel])


def test_layers_that_cannot_have_another_width_are_refused():
    orthogonal = TaskLayers(model("orthogonal"), ["head"])
    assert orthogonal.draw(0, {"head": 7}) is not None  # a known number is no trouble
    with pytest.raises(ValueError, match="needs a fixed number of units"):
        orthogonal.draw(0, {"head": tf.constant(7)})
    normalizing = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.BatchNormalization(name="norm")]
    )
    with pytest.raises(ValueError, match="only Dense layers can be resized"):
        TaskLayers(normalizing, ["norm"]).draw(0, {"norm": 5})


def test_layers_that_make_weights_without_add_weight_are_refused():
    class Custom(keras.layers.Layer):
        def build(self, shape):
            self.scale = keras.Variable(np.ones(shape[-1], "float32"))

        def call(self, inputs):
            return inputs * self.scale

    network = keras.Sequential([keras.layers.Input((4,)), Custom(name="custom")])
    with pytest.raises(ValueError, match="creates weights without add_weight"):
        TaskLayers(network, ["custom"])


@pytest.mark.parametrize(
    "rate", [0.25, keras.optimizers.schedules.CosineDecay(0.25, 10)], ids=["constant", "schedule"]
)
def test_an_optimizer_can_start_with_another_learning_rate(rate):
    """All rates of a schedule are scaled, here by two."""
    variable = keras.Variable(np.array([1.0], "float32"))
    optimizer = FunctionalOptimizer(keras.optimizers.SGD(rate), [variable])
    paths = []
    for first in (None, 0.5):
        parameters = [tf.constant([1.0])]
        slots = optimizer.initial_slots(parameters, first)
        steps = []
        for _ in range(3):
            before = parameters[0]
            parameters, slots = optimizer.apply([tf.constant([1.0])], parameters, slots)
            steps.append(float((before - parameters[0])[0]))
        paths.append(steps)
    assert paths[0][0] == pytest.approx(0.25)
    np.testing.assert_allclose(np.array(paths[1]), 2 * np.array(paths[0]), rtol=1e-5)
    assert (paths[0][2] < paths[0][0]) == (rate != 0.25)


def test_a_schedule_that_starts_at_zero_cannot_be_scaled():
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=2)
    variable = keras.Variable(np.array([1.0], "float32"))
    optimizer = FunctionalOptimizer(keras.optimizers.SGD(schedule), [variable])
    with pytest.raises(ValueError, match="starts at zero"):
        optimizer.initial_slots([tf.constant([1.0])], 0.5)


def test_an_initializer_given_by_position_is_used():
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight((shape[-1],), "ones", name="scale")

        def call(self, inputs):
            return inputs * self.scale

    model = keras.Sequential([keras.Input((3,)), Scale(name="scale"), keras.layers.Dense(1)])
    (value,) = TaskLayers(model, ["scale"]).draw(0).values()
    np.testing.assert_array_equal(value, [1.0, 1.0, 1.0])
