"""Functional optimizers make the steps of the Keras optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.functional import FunctionalOptimizer, OptimizerReset, check_optimizer

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "adamax": lambda: keras.optimizers.Adamax(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "muon": lambda: keras.optimizers.Muon(0.01),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 20), global_clipnorm=0.5
    ),
}


def variables():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in (("kernel", (3, 4)), ("bias", (4,)), ("scale", ()))
    ]


def gradient(values):
    return [tf.sin(3.0 * value) + value for value in values]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_functional_steps_equal_ordinary_steps(name):
    ordinary, model = OPTIMIZERS[name](), variables()
    if name == "muon":  # it takes matrices only
        model = model[:1]
    functional = FunctionalOptimizer(OPTIMIZERS[name](), model)
    parameters = [tf.convert_to_tensor(variable.value) for variable in model]

    @tf.function
    def run(parameters):
        slots = functional.initial_slots(parameters)
        for _ in tf.range(20):
            parameters, slots = functional.apply(gradient(parameters), parameters, slots)
        return parameters

    after = run(parameters)
    for variable, value in zip(model, parameters):
        np.testing.assert_array_equal(variable.numpy(), value)  # nothing was assigned
    ordinary.build(model)
    for _ in range(20):
        ordinary.apply(gradient([variable.value for variable in model]), model)
    for variable, value in zip(model, after):
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-5, atol=2e-6)


def test_a_reset_optimizer_starts_over():
    optimizer, model = keras.optimizers.Adam(0.01), variables()
    optimizer.build(model)
    reset = OptimizerReset(optimizer)
    first = [variable.numpy() for variable in optimizer.variables]
    optimizer.apply(gradient([variable.value for variable in model]), model)
    optimizer.learning_rate = 0.5
    assert int(optimizer.iterations.numpy()) == 1
    reset()
    for variable, value in zip(optimizer.variables, first):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_optimizers_with_hidden_state_are_refused():
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        FunctionalOptimizer(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), variables()
        )
    with pytest.raises(ValueError, match="or loss_scale_factor"):
        FunctionalOptimizer(keras.optimizers.SGD(loss_scale_factor=4.0), variables())
    with pytest.raises(ValueError, match="larger batches"):
        FunctionalOptimizer(keras.optimizers.SGD(gradient_accumulation_steps=4), variables())
    with pytest.raises(ValueError, match="role has use_ema"):
        check_optimizer(keras.optimizers.SGD(use_ema=True), role="role")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.ScheduleFreeAdamW(), "keeps copies of the parameters"),
        (
            lambda: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(keras.optimizers.SGD())
            ),
            "wraps other optimizers",
        ),
    ],
)
def test_optimizers_that_cannot_be_functional_are_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        FunctionalOptimizer(optimizer(), variables())


def test_variables_without_a_path_are_refused():
    scale = keras.Variable(1.0, name="scale")
    scale.overwrite_with_gradient = True
    with pytest.raises(ValueError, match="Keras overwrites the variables .*'scale'"):
        FunctionalOptimizer(keras.optimizers.SGD(), [scale])
    with pytest.raises(TypeError, match="need Keras variables, and there is a ResourceVariable"):
        FunctionalOptimizer(keras.optimizers.SGD(), [tf.Variable(1.0)])


def test_exclusions_from_weight_decay_are_kept():
    model = variables()
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model[0]], var_names=["bias"])
    functional = FunctionalOptimizer(optimizer, model)
    parameters = [tf.convert_to_tensor(variable.value) for variable in model]
    zeros = [tf.zeros_like(parameter) for parameter in parameters]
    after, _ = functional.apply(zeros, parameters, functional.initial_slots(parameters))
    np.testing.assert_array_equal(after[0], parameters[0])
    np.testing.assert_array_equal(after[1], parameters[1])
    np.testing.assert_allclose(after[2], 0.95 * parameters[2], rtol=1e-6)
