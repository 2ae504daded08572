"""Tests of Hessians and Jacobians against algebra, and of the experiment on a tiny network."""

import functools
import json
import pathlib

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.experiments.config import read_configuration
from leap_tf.functional import Batch, FunctionalModel
from leap_tf.models import conv_net
from leap_tf.tasks import ArrayTask, FiniteTasks, TaskSplits
from studies.jacobian import (
    advance_jacobian,
    check_no_stopped_gradients,
    hessian_block,
    hessian_vector_products,
    jacobian_precision,
    relative_precision,
    table,
)

CONFIGURATIONS = (pathlib.Path(__file__).parents[2] / "gin_configs" / "omniglot").glob(
    "jacobian_*.gin"
)
CLASSES = 4


class ExplicitBatchNormalization(keras.layers.BatchNormalization):
    """The textbook formula on batch statistics, which can be differentiated any number of times."""

    def call(self, inputs, training=None, mask=None):
        centred = inputs - tf.reduce_mean(inputs, [0, 1, 2])
        variance = tf.reduce_mean(centred * centred, [0, 1, 2])
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.convert_to_tensor(self.gamma)
        return centred * scale + tf.convert_to_tensor(self.beta)


def cross_entropy(dtype="float32"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)


def tiny_net(blocks=1):
    return conv_net(image_shape=(8, 8, 1), classes=CLASSES, filters=3, blocks=blocks)


def tiny_net_in_float64(normalization=ExplicitBatchNormalization, blocks=1):
    """The same layers in the same order, so that weights can be carried over."""
    features = images = keras.Input((8, 8, 1), dtype="float64")
    for _ in range(blocks):
        features = keras.layers.Conv2D(3, 3, padding="same", use_bias=False, dtype="float64")(
            features
        )
        features = normalization(epsilon=1e-5, dtype="float64")(features)
        features = keras.layers.MaxPool2D(2, dtype="float64")(features)
        features = keras.layers.ReLU(dtype="float64")(features)
    features = keras.layers.Flatten(dtype="float64")(features)
    return keras.Model(images, keras.layers.Dense(CLASSES, dtype="float64")(features))


def examples(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 8, 1)).astype("float32"), rng.integers(CLASSES, size=count)


def loss_of_kernel(network, batch):
    """The training loss as a function of the first kernel, and that kernel."""
    kernel, *others = network.parameters()
    state = network.state(0)
    return (
        lambda point: network.evaluate([point, *others], state, batch, training=True).loss,
        kernel,
    )


def block(loss, point, chunk=3):
    products = tf.function(functools.partial(hessian_vector_products, loss, point))
    return hessian_block(products, point.shape, point.dtype, chunk)


def splits(seed, data_dir):
    tasks = [
        ArrayTask(f"task {index}", examples(seed=index), examples(seed=index), batch_size=10)
        for index in range(3)
    ]
    return TaskSplits(train=FiniteTasks(tasks), validation=[], test=[])


def measure(folder, **arguments):
    settings = {"learning_rates": (0.01, 0.5), "task_count": 2, "steps": 4, "every": 2} | arguments
    return jacobian_precision(tiny_net, splits, cross_entropy(), folder, **settings)


def without_times(records):
    return [
        {key: value for key, value in record.items() if "seconds" not in key} for record in records
    ]


def test_precision_of_known_matrices():
    assert relative_precision(np.eye(5)) == 0.0
    assert relative_precision(np.diag([0.5, 2.0, 1.0])) == pytest.approx(1.5 / 3.5)
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])  # both singular values of I − R are √2
    assert relative_precision(rotation) == pytest.approx(np.sqrt(2))
    assert np.isnan(relative_precision(np.diag([1.0, np.inf])))


def test_jacobian_of_a_quadratic_loss():
    curvatures = np.array([3.0, 1.0, 0.0, -0.5])
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    expected = basis * curvatures @ basis.T
    matrix = tf.constant(expected)

    def loss(point):
        column = tf.reshape(point, (4, 1))
        return 0.5 * tf.squeeze(tf.transpose(column) @ matrix @ column)

    hessian = block(loss, tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64))
    np.testing.assert_allclose(hessian, expected, atol=1e-14)
    jacobian = np.eye(4)
    for _ in range(5):
        jacobian = advance_jacobian(jacobian, hessian, 0.1)
    eigenvalues = (1 - 0.1 * curvatures) ** 5
    np.testing.assert_allclose(jacobian, basis * eigenvalues @ basis.T, atol=1e-14)
    rho = np.abs(1 - eigenvalues).sum() / np.abs(eigenvalues).sum()
    assert relative_precision(jacobian) == pytest.approx(rho, rel=1e-12)


def test_later_hessians_stand_to_the_left():
    first, second = np.random.default_rng(0).normal(size=(2, 3, 3))
    jacobian = advance_jacobian(advance_jacobian(np.eye(3), first, 0.1), second, 0.1)
    np.testing.assert_allclose(jacobian, (np.eye(3) - 0.1 * second) @ (np.eye(3) - 0.1 * first))


def test_a_linear_loss_has_no_curvature():
    assert not block(tf.reduce_sum, tf.ones((3, 2))).any()


def test_convolutional_hessian_is_that_of_tape_jacobian_and_of_differences():
    network = FunctionalModel(tiny_net_in_float64(), cross_entropy("float64"))
    inputs, targets = examples()
    loss, kernel = loss_of_kernel(network, Batch(tf.constant(inputs, tf.float64), targets))
    hessian = block(loss, kernel)

    def gradient(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = loss(point)
        return tape.gradient(value, point)

    with tf.GradientTape() as tape:
        tape.watch(kernel)
        slope = gradient(kernel)
    reference = tf.reshape(tape.jacobian(slope, kernel), hessian.shape).numpy()
    np.testing.assert_allclose(hessian, reference, atol=1e-12)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    direction = tf.constant(np.random.default_rng(1).normal(size=kernel.shape))
    difference = (gradient(kernel + 1e-6 * direction) - gradient(kernel - 1e-6 * direction)) / 2e-6
    expected = hessian @ direction.numpy().ravel()
    np.testing.assert_allclose(difference.numpy().ravel(), expected, atol=1e-6)


def test_fused_batch_norm_has_the_exact_hessian():
    keras.utils.set_random_seed(1)  # no two inputs of a max-pool are equal to float32 precision
    model = tiny_net(blocks=2)
    reference = tiny_net_in_float64(blocks=2)
    reference.set_weights(model.get_weights())
    inputs, targets = examples()
    hessian, expected = (
        block(*loss_of_kernel(FunctionalModel(net, cross_entropy(dtype)), Batch(cast, targets)))
        for net, dtype, cast in (
            (model, "float32", tf.constant(inputs)),
            (reference, "float64", tf.constant(inputs, tf.float64)),
        )
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(hessian, expected, atol=1e-4 * scale)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4 * scale)


def test_normalization_with_wrong_second_derivatives_is_refused():
    inputs, targets = examples()
    batch = Batch(tf.constant(inputs, tf.float64), targets)
    network = FunctionalModel(
        tiny_net_in_float64(keras.layers.BatchNormalization), cross_entropy("float64")
    )
    with pytest.raises(ValueError, match="wrong second derivatives"):
        check_no_stopped_gradients(network, network.parameters(), network.state(0), batch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    return folder, measure(folder)


def test_the_experiment_writes_a_record_per_cell(measured):
    folder, records = measured
    names = [
        f"learning_rate_{rate}_task_{task}.json" for task in (0, 1) for rate in ("0.01", "0.5")
    ]
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    assert [json.loads((folder / name).read_text()) for name in names] == records
    for record in records:
        assert record["steps"] == [0, 2, 4]
        assert record["rho"][0] == 0.0
        assert record["rho"][1] > 0.0
        assert len(record["losses"]) == 4
        assert record["parameters"] == 27
        assert record["matrix_bytes"] == 16 * 27**2
    low, high = records[:2]
    assert low["task_name"] == high["task_name"]
    assert low["losses"][0] == high["losses"][0]  # the same point and batch
    assert low["rho"][1] < high["rho"][1]


def test_a_cell_repeats_whatever_else_is_asked_for(measured, tmp_path):
    assert without_times(measure(tmp_path, learning_rates=(0.5,))) == without_times(
        measured[1][1::2]
    )


def test_finished_cells_are_skipped(measured, tmp_path):
    folder, records = measured
    for file in folder.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    kept, removed = (tmp_path / f"learning_rate_{rate}_task_0.json" for rate in ("0.01", "0.5"))
    kept.write_text(json.dumps(records[0] | {"rho": ["untouched"]}))
    removed.unlink()
    again = measure(tmp_path)
    assert again[0]["rho"] == ["untouched"]
    assert without_times(again[1:]) == without_times(records[1:])
    with pytest.raises(ValueError, match="with other settings"):
        measure(tmp_path, steps=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "conv9"}, "No layer 'conv9'.*conv1"),
        ({"layer": "pool1"}, "with a trainable kernel"),
        ({"task_count": 4}, "no 4 different training tasks"),
        ({"every": 0}, "must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_the_table():
    records = [
        {"learning_rate": 0.1, "steps": [0, 5], "rho": [0.0, rho]} for rho in (0.1, 0.3, None)
    ]
    assert [line.split() for line in table(records).splitlines()] == [
        ["learning", "rate", "step", "0", "step", "5"],
        ["0.1", "0.00e+00", "±", "0e+00", "2.00e-01", "±", "1e-01"],
    ]


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS), ids=lambda path: path.stem)
def test_shipped_configurations_build_their_model(path):
    read_configuration([path])
    model, loss = (
        gin.query_parameter(f"jacobian_precision.{name}").scoped_configurable_fn()
        for name in ("model", "loss")
    )
    gin.clear_config()
    filters = {"jacobian_cpu": 32, "jacobian_paper": 64}[path.stem]
    assert model.get_layer("conv1").kernel.shape == (3, 3, 1, filters)
    assert isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
