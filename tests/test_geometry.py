"""The formula: against the original code, hand-computed paths and its closed form."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from leap_tf.geometry import PathGeometry, PathPoint, extend_path, start_path
from tests import golden


def walk(points, geometry):
    path = start_path(points[0].position)
    for point in points:
        path = extend_path(path, point, geometry)
    return path


def quadratic_path(learning_rate, steps, dtype=tf.float64):
    """The path of gradient descent on f(θ) = θ² from θ = 1."""
    theta, points = tf.constant(1.0, dtype), []
    for _ in range(steps):
        points.append(PathPoint([theta], theta**2, [2 * theta]))
        theta = theta - learning_rate * 2 * theta
    return points


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("switches", golden.SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("case", golden.OPTIMIZERS)
def test_recorded_paths_give_the_meta_gradients_of_the_original(case, switches, dtype, tolerance):
    trajectory = golden.parameters(f"{case}/{dtype}/traj")
    gradients = golden.parameters(f"{case}/{dtype}/grad")
    losses = golden.GOLDEN[f"{case}/{dtype}/losses"]
    total = [0.0] * len(golden.PARAMETERS)
    for task in range(golden.TASKS):
        points = [
            PathPoint(
                [tf.constant(theta[task, step]) for theta in trajectory],
                tf.constant(losses[task, step]),
                [tf.constant(gradient[task, step]) for gradient in gradients],
            )
            for step in range(golden.STEPS)
        ]
        assert points[0].position[0].dtype == dtype
        path = walk(points, PathGeometry(**switches))
        total = [a + b.numpy() for a, b in zip(total, path.meta_gradient)]
    mean = [array / golden.TASKS for array in total]
    assert golden.relative_error(mean, golden.meta_gradient(case, dtype, switches)) < tolerance


@pytest.mark.parametrize(
    ("distance", "include_loss", "expected"),
    [
        ("length", True, 4.118545237994326),
        ("energy", True, 1.44864),
        ("energy", False, 0.36),
        ("length", False, 2.0),
    ],
)
def test_descending_quadratic(distance, include_loss, expected):
    path = walk(quadratic_path(0.1, steps=3), PathGeometry(distance, include_loss))
    np.testing.assert_allclose(path.meta_gradient[0], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("distance", "stabilizer", "increments"),
    [
        ("length", True, [2.121320343559643, -4.024922359499621]),
        ("length", False, [-0.7071067811865476, 3.1304951684997055]),
        ("energy", True, [9.0, -54.0]),
        ("energy", False, [-3.0, 42.0]),
    ],
)
def test_ascending_quadratic(distance, stabilizer, increments):
    geometry = PathGeometry(distance, include_loss=True, stabilizer=stabilizer)
    points = quadratic_path(1.5, steps=3)
    first, both = walk(points[:2], geometry), walk(points, geometry)
    np.testing.assert_allclose(first.meta_gradient[0], increments[0], rtol=1e-14)
    np.testing.assert_allclose(both.meta_gradient[0], sum(increments), rtol=1e-14)


def test_length_and_energy_of_a_hand_drawn_path():
    # (θ, f): (0, 0; 0) → (3, 0; 4) → (3, 2; 3), segments of length 5 and √5.
    points = [
        PathPoint(
            [tf.constant([0.0]), tf.constant(0.0)], tf.constant(0.0), [tf.ones(1), tf.ones(())]
        ),
        PathPoint(
            [tf.constant([3.0]), tf.constant(0.0)], tf.constant(4.0), [tf.ones(1), tf.ones(())]
        ),
        PathPoint(
            [tf.constant([3.0]), tf.constant(2.0)], tf.constant(3.0), [tf.ones(1), tf.ones(())]
        ),
    ]
    path = walk(points, PathGeometry())
    np.testing.assert_allclose(path.length, 5 + 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(path.energy, 30.0, rtol=1e-6)
    in_parameters = walk(points, PathGeometry(include_loss=False))
    np.testing.assert_allclose(in_parameters.length, 5.0, rtol=1e-6)
    assert int(path.points) == 3


@hypothesis.given(
    theta=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    learning_rate=st.floats(1e-3, 1.0),
    loss=st.floats(0, 5),
    change=st.floats(-3, 3),
)
def test_each_increment_of_sgd_has_the_closed_form(theta, learning_rate, loss, change):
    """(α + |Δf|) g / √(Δf² + α²‖g‖²): a positive multiple of the inner gradient."""
    theta = tf.constant(theta, tf.float64)
    gradient = tf.sin(theta) + 0.1
    points = [
        PathPoint([theta], tf.constant(loss, tf.float64), [gradient]),
        PathPoint(
            [theta - learning_rate * gradient], tf.constant(loss + change, tf.float64), [gradient]
        ),
    ]
    increment = walk(points, PathGeometry()).meta_gradient[0]
    delta = (loss + change) - loss
    norm = np.sqrt(delta**2 + learning_rate**2 * np.sum(gradient.numpy() ** 2))
    expected = (learning_rate + abs(delta)) * gradient / norm
    np.testing.assert_allclose(increment, expected, rtol=1e-7, atol=1e-12)


@hypothesis.given(st.lists(st.floats(-2, 2), min_size=2, max_size=12))
def test_energy_without_loss_telescopes_to_the_distance_travelled(thetas):
    """Reptile's direction θ⁰ − θᴷ⁻¹, whatever the path."""
    points = [PathPoint([tf.constant(t, tf.float64)], t * t, [1.0 + t]) for t in thetas]
    path = walk(points, PathGeometry("energy", include_loss=False))
    np.testing.assert_allclose(path.meta_gradient[0], thetas[0] - thetas[-1], atol=1e-12)


@pytest.mark.parametrize("distance", ["length", "energy"])
def test_a_segment_of_zero_length_adds_zero(distance):
    point = PathPoint([tf.ones(3)], tf.constant(2.0), [tf.ones(3)])
    path = walk([point, point, point], PathGeometry(distance))
    np.testing.assert_array_equal(path.meta_gradient[0], np.zeros(3))
    assert float(path.length) == float(path.energy) == 0.0


def test_one_point_makes_no_segment():
    path = walk([PathPoint([tf.ones(3)], tf.constant(2.0), [tf.ones(3)])], PathGeometry())
    np.testing.assert_array_equal(path.meta_gradient[0], np.zeros(3))
    assert float(path.length) == 0.0


def test_a_loss_that_is_not_finite_is_not_hidden():
    points = quadratic_path(0.1, steps=2)
    path = walk(
        [points[0], points[1]._replace(loss=tf.constant(np.nan, tf.float64))], PathGeometry()
    )
    assert np.isnan(path.length)
    assert np.isnan(path.meta_gradient[0])


def test_low_precision_parameters_are_summed_in_float32():
    path = start_path([tf.ones(2, tf.bfloat16), tf.ones(1, tf.float16)])
    assert {tensor.dtype for tensor in path.meta_gradient} == {tf.float32}


def test_unknown_distance_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'length', 'energy'"):
        PathGeometry("entropy")


def test_fisher_length_of_a_hand_computed_segment():
    # Δθ = (1, 2), Δf = −3, g = (2, −1) where the segment starts: F = diag(4, 1).
    points = [
        PathPoint([tf.constant([0.0, 0.0])], tf.constant(5.0), [tf.constant([2.0, -1.0])]),
        PathPoint([tf.constant([1.0, 2.0])], tf.constant(2.0), [tf.constant([7.0, 7.0])]),
    ]
    without_loss = walk(points, PathGeometry("length", include_loss=False, metric="fisher"))
    np.testing.assert_allclose(without_loss.energy, 4 * 1 + 1 * 4)
    np.testing.assert_allclose(without_loss.length, 8**0.5, rtol=1e-6)
    # −F Δθ / ‖·‖ = −(4, 2) / √8
    np.testing.assert_allclose(without_loss.meta_gradient[0], [-4 / 8**0.5, -2 / 8**0.5], rtol=1e-6)
    with_loss = walk(points, PathGeometry("energy", metric="fisher"))
    np.testing.assert_allclose(with_loss.energy, 8 + 9)
    # −(Δf g + F Δθ) = −(−3 (2, −1) + (4, 2))
    np.testing.assert_allclose(with_loss.meta_gradient[0], [2.0, -5.0])


def test_fisher_length_does_not_depend_on_the_unit_of_a_parameter():
    """Rescaling θ ← cθ takes g to g/c, so √F Δθ stays: what the metric is for."""
    first, second = quadratic_path(0.1, steps=2)
    scaled = [
        PathPoint([10 * point.position[0]], point.loss, [point.gradient[0] / 10])
        for point in (first, second)
    ]
    geometry = PathGeometry(metric="fisher")
    np.testing.assert_allclose(
        walk(scaled, geometry).length, walk([first, second], geometry).length, rtol=1e-12
    )


def test_unknown_metric_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'euclidean', 'fisher'"):
        PathGeometry(metric="manhattan")
