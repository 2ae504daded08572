"""The ConvNet and its batch norm: the paper's numbers, Keras's arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.models import BatchNormalization, MaxPooling2D, conv_net, mlp


def parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_the_conv_net_is_the_papers():
    model = conv_net()
    biases = 4 * 64
    assert parameters(model) + biases == 113_236  # as counted in the original code
    assert model.get_layer("flatten").output.shape == (None, 64)
    norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    assert conv_net((32, 32, 3), classes=7).output_shape == (None, 7)


def test_a_bias_before_batch_norm_has_no_effect_and_no_gradient():
    inputs = np.random.default_rng(0).normal(size=(5, 8, 8, 2)).astype("float32")
    convolution = keras.layers.Conv2D(3, 3, bias_initializer="random_normal")
    norm, without = BatchNormalization(), BatchNormalization()
    with tf.GradientTape() as tape:
        outputs = norm(convolution(inputs), training=True)
        loss = tf.reduce_sum(tf.sin(outputs))
    gradient = tape.gradient(loss, convolution.bias.value)
    bare = without(convolution(inputs) - convolution.bias.value, training=True)
    np.testing.assert_allclose(outputs, bare, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-4)


def test_pooling_before_relu_gives_what_the_papers_order_gives():
    model = conv_net(blocks=2, filters=4)
    features = images = keras.Input((28, 28, 1))
    for block in (1, 2):
        features = model.get_layer(f"conv{block}")(features)
        features = model.get_layer(f"norm{block}")(features)
        features = keras.layers.MaxPool2D(2)(keras.layers.ReLU()(features))
    paper = keras.Model(images, model.get_layer("head")(keras.layers.Flatten()(features)))
    inputs = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(model(inputs), paper(inputs), rtol=1e-6, atol=1e-6)


def both_norms():
    fused, plain = BatchNormalization(), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    rng = np.random.default_rng(0)
    for norm in (fused, plain):
        norm.build((None, 4, 4, 3))
    for a, b in zip(fused.weights, plain.weights):
        value = rng.uniform(0.5, 1.5, size=a.shape)
        a.assign(value)
        b.assign(value)
    return fused, plain, rng.normal(2.0, 3.0, size=(6, 4, 4, 3)).astype("float32")


def test_fused_batch_norm_is_kerass():
    fused, plain, inputs = both_norms()
    np.testing.assert_allclose(
        fused(inputs, training=True), plain(inputs, training=True), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(fused.moving_mean.numpy(), plain.moving_mean.numpy(), rtol=1e-5)


def test_its_running_variance_is_unbiased_as_in_pytorch():
    fused, _, inputs = both_norms()
    before = fused.moving_variance.numpy().copy()
    fused(inputs, training=True)
    expected = 0.9 * before + 0.1 * inputs.reshape(-1, 3).var(axis=0, ddof=1)
    np.testing.assert_allclose(fused.moving_variance.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("training", [False, None])
def test_outside_training_it_uses_the_running_statistics(training):
    fused, plain, inputs = both_norms()
    before = fused.moving_mean.numpy().copy()
    np.testing.assert_allclose(
        fused(inputs, training=training), plain(inputs, training=training), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(fused.moving_mean.numpy(), before)


def test_what_cannot_be_fused_goes_kerass_way():
    flat = BatchNormalization()
    inputs = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    outputs = flat(inputs, training=True).numpy()
    np.testing.assert_allclose(outputs.mean(axis=0), np.zeros(3), atol=1e-5)
    frozen, _, images = both_norms()
    frozen.trainable = False
    before = frozen.moving_mean.numpy().copy()
    frozen(images, training=True)
    np.testing.assert_array_equal(frozen.moving_mean.numpy(), before)


def test_models_survive_saving(tmp_path):
    for model in (conv_net(blocks=2, filters=4), mlp(inputs=3, outputs=2)):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_conv_net_of_few_shot_omniglot():
    """Strides halve 28 to 14, 7, 4 and 2, so a head on all positions has 4 · 64 inputs."""
    model = conv_net(classes=5, strided=True)
    assert not [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPool2D)]
    assert model.get_layer("conv4").output.shape == (None, 2, 2, 64)
    assert model.get_layer("head").kernel.shape == (256, 5)
    assert conv_net(classes=5, strided=True, average=True).get_layer("head").kernel.shape == (64, 5)


def derivatives_of_pooling(layer, images):
    """Output, gradient, and the gradient of a function of the gradient, in one traced function."""

    @tf.function
    def traced(images, weights):
        with tf.GradientTape() as outer:
            outer.watch(images)
            with tf.GradientTape() as inner:
                inner.watch(images)
                outputs = layer(images)
                loss = tf.reduce_sum(weights * outputs**3)
            gradient = inner.gradient(loss, images)
            objective = tf.reduce_sum(tf.sin(gradient)) + loss
        return outputs, gradient, outer.gradient(objective, images)

    shape = layer(images).shape
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return [each.numpy() for each in traced(tf.constant(images), tf.constant(weights))]


@pytest.mark.parametrize("size", [8, 7])
def test_derivatives_of_pooling_are_kerass(size):
    images = np.random.default_rng(0).normal(size=(3, size, size, 4)).astype(np.float32)
    images[0] = 0.5  # all pixels of a window are equal
    ours = derivatives_of_pooling(MaxPooling2D(), images)
    kerass = derivatives_of_pooling(keras.layers.MaxPooling2D(), images)
    for one, other in zip(ours, kerass, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.count_nonzero(ours[2])


@pytest.mark.parametrize("traced", [False, True])
def test_the_first_backward_pass_of_pooling_may_be_in_a_branch(traced):
    def twice(images):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(images)
            squares = layer(images) ** 2
        in_branch = tf.cond(
            tf.reduce_sum(images) > 0,
            lambda: tape.gradient(squares, images),
            lambda: tf.zeros_like(images),
        )
        return in_branch, tape.gradient(squares, images)

    images = tf.random.stateless_uniform((2, 4, 4, 1), seed=[0, 1])
    layer = MaxPooling2D()
    first, second = (tf.function(twice) if traced else twice)(images)
    assert np.count_nonzero(first) == 2 * 4
    np.testing.assert_array_equal(first, second)


def test_other_windows_are_pooled_by_keras():
    images = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
    layer = MaxPooling2D(3, padding="same")
    np.testing.assert_array_equal(
        layer(images), keras.layers.MaxPooling2D(3, padding="same")(images)
    )
    restored = MaxPooling2D.from_config(layer.get_config())
    assert restored.pool_size == (3, 3)
