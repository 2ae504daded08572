"""Returns, masks, loss and RMSProp against values computed by hand and against Keras."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    RMSProp,
    actor_critic_loss,
    bootstrapped_returns,
    transition_mask,
)
from leap_tf.functional import FunctionalOptimizer


def column(*numbers, dtype=np.float32):
    """One environment's history, time-major."""
    return np.array(numbers, dtype)[:, None]


def returns_of(rewards, discounts, values, is_last):
    return bootstrapped_returns(
        column(*rewards), column(*discounts), column(*values), column(*is_last, dtype=bool)
    ).numpy()[:, 0]


def test_an_unroll_inside_an_episode_bootstraps_from_the_last_value():
    # 3 + 0.5·10 = 8;  2 + 0.5·8 = 6;  1 + 0.5·6 = 4
    actual = returns_of([1, 2, 3], [0.5] * 3, [7, 7, 7, 10], [False] * 4)
    np.testing.assert_allclose(actual, [4, 6, 8])


def test_a_terminal_step_cuts_the_return_and_the_boundary_is_masked():
    # s1 → s2 ends the episode (discount 0); s2 is last, s3 the first of the next episode.
    is_last = [False, False, True, False, False]
    actual = returns_of([1, 2, 100, 4], [0.5, 0, 0.5, 0.5], [9, 9, 9, 9, 10], is_last)
    np.testing.assert_allclose(actual[[0, 1, 3]], [1 + 0.5 * 2, 2, 4 + 0.5 * 10])
    mask = transition_mask(column(*is_last, dtype=bool)).numpy()[:, 0]
    np.testing.assert_array_equal(mask, [1, 1, 0, 1])


def test_a_truncated_episode_bootstraps_from_the_value_of_its_last_observation():
    is_last = [False, False, True, False, False]
    actual = returns_of([1, 2, 100, 4], [0.5, 0.5, 0.5, 0.5], [9, 9, 6, 9, 10], is_last)
    np.testing.assert_allclose(actual[[0, 1]], [1 + 0.5 * 5, 2 + 0.5 * 6])


def test_the_last_observation_of_an_unroll_may_be_that_of_an_episode():
    ended = returns_of([1, 2], [0.5, 0], [9, 9, 6], [False, False, True])
    np.testing.assert_allclose(ended, [2, 2])
    cut_off = returns_of([1, 2], [0.5, 0.5], [9, 9, 6], [False, False, True])
    np.testing.assert_allclose(cut_off, [1 + 0.5 * 5, 5])


@hypothesis.given(strategies.data())
def test_returns_are_sums_up_to_where_the_episode_ends(data):
    steps, environments = data.draw(strategies.integers(1, 6)), data.draw(strategies.integers(1, 4))
    rng = np.random.default_rng(data.draw(strategies.integers(0, 2**32)))
    rewards = rng.normal(size=(steps, environments)).astype(np.float32)
    values = rng.normal(size=(steps + 1, environments)).astype(np.float32)
    is_last = rng.random((steps + 1, environments)) < 0.3
    terminal = is_last[1:] & (rng.random((steps, environments)) < 0.5)
    discounts = np.where(terminal, 0.0, 0.9).astype(np.float32)
    actual = bootstrapped_returns(rewards, discounts, values, is_last).numpy()
    for environment in range(environments):
        for start in range(steps):
            if is_last[start, environment]:
                continue
            expected, weight, t = 0.0, 1.0, start
            while t < steps and not is_last[t, environment]:
                expected += weight * rewards[t, environment]
                weight *= discounts[t, environment]
                t += 1
            expected += weight * values[t, environment]
            np.testing.assert_allclose(actual[start, environment], expected, rtol=1e-4, atol=1e-5)


def loss_of(settings, is_last=(False, False, False)):
    # Two steps, two actions with equal odds: log π = −log 2, entropy log 2.
    return actor_critic_loss(
        logits=tf.zeros((2, 1, 2)),
        values=column(1, 2, 10),
        actions=column(0, 1, dtype=np.int32),
        rewards=column(1, 2),
        discounts=column(1, 1),
        is_last=column(*is_last, dtype=bool),
        settings=settings,
    )


def test_the_loss_of_two_steps_by_hand():
    settings = ActorCriticLoss(0.5, entropy_cost=0.1, value_cost=2.0)
    loss = loss_of(settings)
    # R = (1 + 0.5·7, 2 + 0.5·10) = (4.5, 7);  A = (3.5, 5)
    log_2 = np.log(2)
    np.testing.assert_allclose(loss.policy, 8.5 * log_2 / 2, rtol=1e-6)
    np.testing.assert_allclose(loss.value, 0.5 * (3.5**2 + 5**2) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss.entropy, log_2, rtol=1e-6)
    expected = (8.5 * log_2 + 3.5**2 + 5**2 - 0.2 * log_2) / 2
    np.testing.assert_allclose(loss.total, expected, rtol=1e-6)


def test_the_mean_is_over_the_transitions_that_count():
    # R_0 = 1 + 0.99·2, and the second transition, from the last step, does not count.
    loss = loss_of(ActorCriticLoss(), (False, True, False))
    np.testing.assert_allclose(loss.entropy, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(loss.value, 0.5 * (1 + 0.99 * 2 - 1) ** 2, rtol=1e-6)


def test_boundaries_leave_no_gradient():
    logits, values = tf.random.normal((3, 4, 5)), tf.random.normal((4, 4))
    is_last = np.zeros((4, 4), bool)
    is_last[1] = True
    with tf.GradientTape() as tape:
        tape.watch([logits, values])
        actions, ones = tf.zeros((3, 4), tf.int32), tf.ones((3, 4))
        loss = actor_critic_loss(
            logits,
            values,
            actions=actions,
            rewards=ones,
            discounts=ones,
            is_last=is_last,
            settings=ActorCriticLoss(),
        )
    logits_gradient, values_gradient = tape.gradient(loss.total, [logits, values])
    assert not np.any(logits_gradient[1])
    assert not np.any(values_gradient[1])
    assert np.all(np.any(logits_gradient.numpy()[[0, 2]], axis=-1))
    assert not np.any(values_gradient[3])  # it only bootstraps
    assert np.all(values_gradient.numpy()[[0, 2]])


def test_the_advantage_is_a_constant():
    # Where the policy is certain, the critic's loss is all that its value's gradient comes from.
    values = tf.constant(column(1, 0))
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = actor_critic_loss(
            tf.zeros((1, 1, 2)),
            values,
            actions=column(0, dtype=np.int32),
            rewards=column(3),
            discounts=column(0),
            is_last=column(False, False, dtype=bool),
            settings=ActorCriticLoss(),
        )
    np.testing.assert_allclose(tape.gradient(loss.total, values)[:, 0], [1 - 3, 0])


def steps_of(optimizer, gradients):
    variable = keras.Variable([1.0, -2.0])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


@pytest.mark.parametrize(("inside", "root"), [(False, 0.3 + 0.01), (True, (0.09 + 0.01) ** 0.5)])
def test_the_first_step_of_rmsprop_by_hand(inside, root):
    # v = 0.1 · 3² · 0.1 = 0.09 from g = (0.3/√0.1): chosen so that √v = 0.3
    gradient = 0.3 / np.sqrt(0.1)
    optimizer = RMSProp(0.5, decay=0.9, epsilon=0.01, epsilon_inside_root=inside)
    moved = steps_of(optimizer, [[gradient, 0.0]])
    np.testing.assert_allclose(moved, [1 - 0.5 * gradient / root, -2], rtol=1e-5)


def test_with_epsilon_inside_it_is_keras_rmsprop():
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


def test_rmsprop_works_as_a_function_of_tensors():
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
