"""`LeapOptimizer` under `model.fit`, the functional loop and a served `adapt` do the same.

`tests/front_ends.py` has the kinds of models and the optimizers, and prints a table of both.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.functional import FunctionalModel, FunctionalOptimizer
from leap_tf.learners import Leap
from leap_tf.serving.adapter import weight_names
from leap_tf.training import InnerLoop
from tests import golden
from tests.front_ends import (
    BATCH,
    KINDS,
    OPTIMIZERS,
    SPARSE_DIFFERS,
    STEPS,
    TOLERANCE,
    Comparison,
    tolerance,
)

comparison = functools.cache(Comparison)


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def in_turn(kinds):
    """Returns each kind with one of the optimizers, all of which take their turn."""
    turns = itertools.cycle(OPTIMIZERS)
    return [
        (kind, next(name for name in turns if (kind, name) not in SPARSE_DIFFERS)) for kind in kinds
    ]


@pytest.mark.parametrize(("kind", "optimizer"), in_turn(KINDS))
def test_fit_and_the_loop_give_the_same_meta_gradients(eagerly, kind, optimizer):
    """Both run eagerly, with the same operations in the same order."""
    assert comparison(kind).differences(optimizer)["loop"] < 1e-6


def test_keras_squares_sparse_gradients_before_it_adds_them_up(eagerly):
    assert comparison("Embedding").differences("Adam")["loop"] > 1e-3


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    in_turn(["Conv2D", "Dropout", "MultiHeadAttention"]),
)
def test_the_loop_in_a_graph_and_a_served_adapt_give_the_numbers_of_fit(kind, optimizer):
    """`python -m tests.front_ends` holds all kinds with all optimizers to this."""
    found = comparison(kind).differences(optimizer)
    assert set(found) == {"loop", "adapt"}
    assert max(found.values()) < tolerance(kind)


def test_an_exported_model_adapts_like_fit(tmp_path):
    """Batch norm with Adam, from a SavedModel on disk."""
    compared = comparison("BatchNormalization")
    trainer = compared.trainer("Adam")
    leap_tf.export(trainer, tmp_path / "export")
    spec = compared.spec(trainer)
    loaded = tf.saved_model.load(tmp_path / "export" / "saved_model")
    inputs, targets = map(tf.constant, compared.task.train)
    answers = loaded.signatures["adapt_weights"](
        support_x=inputs,
        support_y=targets,
        steps=tf.constant(STEPS),
        batch_size=tf.constant(BATCH),
        learning_rate=tf.constant(0.01),
        seed=tf.constant(spec.seed, tf.int64),
    )
    _, weights = compared.fit(trainer, spec, "Adam")
    served = [answers[name].numpy() for name in weight_names(compared.model).values()]
    assert golden.relative_error(served, weights) < TOLERANCE


def recording(inner, meta_rate=1.0):
    return leap_tf.LeapOptimizer(inner, keras.optimizers.SGD(meta_rate))


def test_constraints_hold_in_every_step_and_after_the_meta_update():
    """The case of a MaxNorm constraint that an unconstrained step would leave."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 6)).astype("float32")
    labels = rng.integers(0, 3, 40)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    constraint = keras.constraints.MaxNorm(0.5)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, kernel_constraint=constraint)]
    )
    kernel = model.layers[0].kernel
    kernel.assign(constraint(kernel.value))
    start = [variable.numpy() for variable in model.trainable_variables]
    task = leap_tf.ArrayTask("task", (inputs, labels), (inputs, labels), batch_size=8)
    rate = 0.3
    assert np.linalg.norm(constraint(2.0 * kernel.value), axis=0).max() == pytest.approx(0.5)

    trainer = leap_tf.MetaTrainer(
        model, loss, keras.optimizers.SGD(rate), keras.optimizers.SGD(1.0),
        steps_per_task=10, meta_batch_size=1, pool=1,
    )  # fmt: skip
    trainer.problem.sampler.use_distribution(leap_tf.FiniteTasks([task]))
    (spec,) = trainer.problem.sampler.training_specs(0)
    looped = trainer.problem.train(spec).meta_gradient
    trainer.fit(leap_tf.FiniteTasks([task]), 1, verbose=False)
    after_loop = [variable.numpy() for variable in model.trainable_variables]

    for variable, value in zip(model.trainable_variables, start):
        variable.assign(value)
    optimizer, norms = recording(keras.optimizers.SGD(rate)), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append(
            np.linalg.norm(kernel.numpy(), axis=0).max()
        )
    )
    model.compile(optimizer, loss)
    with optimizer.task(model):
        model.fit(task.train_batches(spec.seed).take(10), verbose=0, callbacks=[record])
    gradients = optimizer.meta_gradients()
    optimizer.meta_update()

    assert golden.relative_error(looped, gradients) < TOLERANCE
    assert len(norms) == 10
    assert max(norms) < 0.5 + 1e-6
    assert max(norms) > 0.499  # the constraint is met
    for old, gradient, new in zip(start, gradients, after_loop):
        expected = old - gradient.numpy()
        expected = np.asarray(constraint(expected)) if expected.ndim == 2 else expected
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
    assert golden.relative_error(model.trainable_variables, after_loop) < TOLERANCE
    assert np.linalg.norm(kernel.numpy(), axis=0).max() < 0.5 + 1e-6


def test_the_constraint_holds_after_every_step_of_the_loop():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, kernel_constraint="max_norm")]
    )
    constraint = model.layers[0].kernel.constraint
    optimizer = FunctionalOptimizer(keras.optimizers.Adam(0.5), model.trainable_variables)
    parameters = [tf.convert_to_tensor(each.value) for each in model.trainable_variables]
    slots = optimizer.initial_slots(parameters)
    for _ in range(5):
        gradients = [-tf.ones_like(parameter) for parameter in parameters]
        parameters, slots = optimizer.apply(gradients, parameters, slots)
        norms = np.linalg.norm(parameters[0], axis=0)
        assert np.all(norms < constraint.max_value + 1e-5)
    np.testing.assert_allclose(norms, constraint.max_value, rtol=1e-5)
    assert np.all(parameters[1] > constraint.max_value)  # the bias has none


# -- layers and gradients that are Keras's business --------------------------------------------


def same_start(build):
    keras.utils.set_random_seed(1)
    return build()


def trained_plainly_and_recorded(build, optimizer, inputs, targets):
    """Returns the weights after `fit` with an optimizer, and with it inside a LeapOptimizer."""
    ends = []
    for wrap in (lambda plain: plain, recording):
        model = same_start(build)
        model.compile(wrap(OPTIMIZERS[optimizer]()), "mse")
        model.fit(inputs, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    return ends


def with_embedding():
    layers = [keras.layers.Embedding(5, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])


def with_spectral_normalization():
    layers = [keras.layers.SpectralNormalization(keras.layers.Dense(4)), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((6,)), *layers])


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [(with_embedding, "SGD"), (with_embedding, "AdamW"), (with_spectral_normalization, "Adam")],
)
def test_leap_optimizer_trains_to_the_bit_as_keras_does(build, optimizer):
    """Sparse gradients reach the inner optimizer, and layers may assign their weights."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 5, (16, 6))
    targets = rng.normal(size=(16, 2)).astype("float32")
    for plain, recorded in zip(*trained_plainly_and_recorded(build, optimizer, inputs, targets)):
        np.testing.assert_array_equal(recorded, plain)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_embeddings_are_trained_in_the_loop_like_one_hot_inputs(optimizer):
    """Repeated indices are added up before an optimizer squares their gradient."""
    rng = np.random.default_rng(0)
    numbers, targets = rng.integers(0, 5, (32, 6)), rng.normal(size=(32, 2)).astype("float32")
    embedded = same_start(with_embedding)
    one_hot = keras.Sequential(
        [
            keras.Input((6, 5)),
            keras.layers.Dense(4, use_bias=False),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    one_hot.set_weights(embedded.get_weights())
    ends = []
    for model, inputs in ((embedded, numbers), (one_hot, np.eye(5, dtype="float32")[numbers])):
        functional = FunctionalModel(model, keras.losses.MeanSquaredError())
        inner = FunctionalOptimizer(OPTIMIZERS[optimizer](), functional.variables)
        loop = InnerLoop(functional, inner, Leap(), range(len(functional.variables)))
        batches = iter(tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(8))
        result = loop.train(batches, tf.constant(4), functional.parameters(), functional.state(0))
        ends.append(result.parameters)
    assert golden.relative_error(*ends) < 3e-7
