"""RMSProp by hand, against Keras, and as a function."""

import keras
import numpy as np
import pytest

from leap_tf.atari.rmsprop import RMSProp
from leap_tf.functional import FunctionalOptimizer


def steps_of(optimizer, gradients):
    variable = keras.Variable([1.0, -2.0])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


@pytest.mark.parametrize(("inside", "root"), [(False, 0.3 + 0.01), (True, (0.09 + 0.01) ** 0.5)])
def test_the_first_step_by_hand(inside, root):
    # v = 0.1 · 3² · 0.1 = 0.09 from g = (0.3/√0.1): chosen so that √v = 0.3
    gradient = 0.3 / np.sqrt(0.1)
    optimizer = RMSProp(0.5, decay=0.9, epsilon=0.01, epsilon_inside_root=inside)
    moved = steps_of(optimizer, [[gradient, 0.0]])
    np.testing.assert_allclose(moved, [1 - 0.5 * gradient / root, -2], rtol=1e-5)


def test_inside_it_is_keras_rmsprop():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 2)).astype(np.float32)
    ours = steps_of(RMSProp(0.1, 0.99, 1e-4, epsilon_inside_root=True), gradients)
    theirs = steps_of(keras.optimizers.RMSprop(0.1, rho=0.99, epsilon=1e-4), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_small_gradients_move_fifty_times_more_with_epsilon_outside():
    """With √v = g = ε = 10⁻⁴ a step is α g / 2 ε outside the root, and about α g / √ε inside."""
    gradients = [[1e-4, 0.0]] * 200
    moved = {
        inside: 1.0 - steps_of(RMSProp(1e-3, 0.9, 1e-4, inside), gradients)[0]
        for inside in (True, False)
    }
    np.testing.assert_allclose(moved[True], 200 * 1e-3 * 1e-2, rtol=0.01)
    assert 49 < moved[False] / moved[True] < 56  # v takes some steps to get there


def test_it_works_as_a_function_of_tensors():
    variable = keras.Variable([1.0, -2.0])
    optimizer = RMSProp(0.1, global_clipnorm=1.0)
    functional = FunctionalOptimizer(optimizer, [variable])
    parameters = [variable.value]
    slots = functional.initial_slots(parameters)
    gradients = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for gradient in gradients:
        gradient = keras.ops.convert_to_tensor(gradient)
        parameters, slots = functional.apply([gradient], parameters, slots)
    np.testing.assert_allclose(parameters[0], steps_of(optimizer, gradients), rtol=1e-6)
    np.testing.assert_array_equal(variable.numpy(), [1.0, -2.0])
