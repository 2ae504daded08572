"""Length, energy and meta-gradient of a gradient path.

Gradient descent on a task traces a path on the surface of the task's loss. A point of the path is
γⁱ = (θⁱ, f(θⁱ)) in R^(n+1): the n parameters and the loss. Two consecutive points are the ends of a
*segment*. The path is not stored: only its last point and running sums are kept.

    symbol        name in the code     meaning
    θⁱ            point.position       parameters before gradient step i, a list of tensors
    f(θⁱ)         point.loss           loss of batch i at θⁱ, a scalar
    ∇f(θⁱ)        point.gradient       gradient of that loss, one tensor per parameter
    Δθⁱ           delta_position       θⁱ⁺¹ − θⁱ, for any optimizer
    Δfⁱ           delta_loss           f(θⁱ⁺¹) − f(θⁱ), each on its own batch
    ‖γⁱ⁺¹ − γⁱ‖²  squared_length       ‖Δθⁱ‖² + (Δfⁱ)²

Lengths are Euclidean, or those of the diagonal Fisher information (appendix A): with F(θⁱ) =
diag(∇f(θⁱ)²), ‖Δθ‖² becomes Σⱼ Fⱼ Δθⱼ². This F is *empirical* and coarse: as in Adam, the squared
gradient of the batch at the start of the segment approximates the mean of the squared gradients
of the examples.

Leap does not differentiate through the path: the Jacobian J of θⁱ with respect to θ⁰ is taken as
the identity (appendix D).

Source: Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019,
eq. 7 (distances) and eq. 8 (meta-gradient).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

DISTANCES = ("length", "energy")
METRICS = ("euclidean", "fisher")

Tensors = Sequence[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class PathGeometry:
    """The distance along a gradient path, and the form of its meta-gradient.

    `leap_tf.Leap` and `leap_tf.LeapOptimizer` take these arguments too.

    Args:
        distance: "length" sums the lengths of the segments (p = 1 in eq. 7), "energy" their
            squares (p = 2).
        include_loss: whether the loss is a coordinate of the path. Otherwise the path lies in
            parameter space alone.
        stabilizer: whether Δf is replaced by −|Δf|, so that a rising loss does not turn the
            meta-gradient uphill (appendix C). Has no effect without `include_loss`.
        metric: metric of parameter space, "euclidean" or "fisher" (the diagonal empirical Fisher
            information). The loss coordinate is Euclidean in both cases.
        per_segment: whether to divide the meta-gradient by the number of segments, so that all
            tasks count the same, however many steps they have.
        scaled: whether to scale the meta-gradient of a task to the distance from the initialization
            to the task's final parameters, see `path_meta_gradient`. The paper does neither.

    Raises:
        ValueError: `distance` or `metric` is unknown, or both `per_segment` and `scaled` are set.
    """

    distance: str = "length"
    include_loss: bool = True
    stabilizer: bool = True
    metric: str = "euclidean"
    _: dataclasses.KW_ONLY
    per_segment: bool = False
    scaled: bool = False

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise ValueError(
                f"distance must be one of {DISTANCES}. Received: {self.distance!r}. 'length' sums "
                "the lengths of segments, 'energy' their squares."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}. Received: {self.metric!r}.")
        if self.per_segment and self.scaled:
            raise ValueError(
                "per_segment has no effect on scaled meta-gradients: their length is the distance "
                "that the task moved. Set only one of per_segment and scaled. With per_segment, "
                "also pass a meta_optimizer, since the default one sets scaled=True."
            )


class PathPoint(NamedTuple):
    """A point γⁱ = (θⁱ, f(θⁱ)) of a gradient path, with the gradient of the loss there."""

    position: Tensors
    loss: tf.Tensor
    gradient: Tensors


class GradientPath(NamedTuple):
    """The last point of a gradient path and sums over its segments, of constant size."""

    last: PathPoint  # in float32, or float64 where the parameters are
    points: tf.Tensor  # int32, their number K; they bound K − 1 segments
    meta_gradient: Tensors  # sum over the segments, one tensor per parameter
    length: tf.Tensor  # Σ ‖γⁱ⁺¹ − γⁱ‖, eq. 7 with p = 1
    energy: tf.Tensor  # Σ ‖γⁱ⁺¹ − γⁱ‖², eq. 7 with p = 2


def start_path(position: Tensors) -> GradientPath:
    """Returns an empty path for parameters with the shapes and dtypes of `position`."""
    zeros = [tf.zeros_like(value, accumulator_dtype(value.dtype)) for value in position]
    zero = tf.zeros((), _scalar_dtype(zeros))
    return GradientPath(PathPoint(zeros, zero, zeros), tf.constant(0), zeros, zero, zero)


def extend_path(path: GradientPath, point: PathPoint, geometry: PathGeometry) -> GradientPath:
    """Adds a point to a path, and the segment that ends there.

    The segment i → i + 1 adds to the meta-gradient (eq. 8 with J = I)

        − (Δf ∇f(θⁱ) + G Δθ) ‖γⁱ⁺¹ − γⁱ‖^(p − 2),

    where ∇f and the metric G (the identity, or F) are those at the *start* of the segment. With the
    stabilizer, −|Δf| replaces Δf in the bracket, but not in the norm. The factor p of eq. 8 is left
    to the meta learning rate, as in the original code. A segment of length zero adds zero. The
    first point ends no segment.

    Args:
        path: the path so far, from `start_path`.
        point: the parameters *before* a gradient step, with the loss (a scalar) and the gradient
            (one tensor per parameter) of the batch of that step.
        geometry: the distance along the path.

    Returns:
        The longer path, in the dtypes of `path`.
    """
    point = PathPoint(
        position=_cast_like(point.position, path.meta_gradient),
        loss=tf.cast(point.loss, path.length.dtype),
        gradient=_cast_like(point.gradient, path.meta_gradient),
    )
    closes_segment = path.points > 0
    delta_position = [new - old for new, old in zip(point.position, path.last.position)]
    delta_loss = point.loss - path.last.loss if geometry.include_loss else None

    if geometry.metric == "fisher":
        # √F Δθ up to signs, which cancel in the squared norm, and F Δθ.
        whitened = [each * delta for each, delta in zip(path.last.gradient, delta_position)]
        metric_delta = [each * delta for each, delta in zip(path.last.gradient, whitened)]
        squared_length = squared_norm(whitened)
    else:
        metric_delta = delta_position
        squared_length = squared_norm(delta_position)
    if delta_loss is not None:
        squared_length += tf.square(delta_loss)
    squared_length = tf.where(closes_segment, squared_length, tf.zeros_like(squared_length))
    length = tf.sqrt(squared_length)

    if geometry.distance == "length":
        scale = tf.math.divide_no_nan(tf.ones_like(length), length)
    else:
        scale = tf.cast(closes_segment, length.dtype)
    if delta_loss is not None and geometry.stabilizer:
        delta_loss = -tf.abs(delta_loss)

    meta_gradient = []
    for total, delta, gradient in zip(path.meta_gradient, metric_delta, path.last.gradient):
        # (Δf ∇f + G Δθ) · scale, with the scalars multiplied first.
        increment = tf.cast(scale, delta.dtype) * delta
        if delta_loss is not None:
            increment += tf.cast(scale * delta_loss, gradient.dtype) * gradient
        meta_gradient.append(total - increment)
    length, energy = path.length + length, path.energy + squared_length
    return GradientPath(point, path.points + 1, meta_gradient, length, energy)


def path_meta_gradient(
    path: GradientPath, geometry: PathGeometry, displacement: Tensors
) -> list[tf.Tensor]:
    """Returns the meta-gradient of a finished path, one tensor per parameter.

    Let g be the sum over the segments. The result is g, or g / (K − 1) with `per_segment`, or

        ‖θᴷ − θ⁰‖ g / ‖g‖

    with `scaled`: the direction of g with the length of the task's displacement. SGD(ε) moves the
    initialization along the mean over the tasks, so a meta-step is at most ε times as long as the
    mean displacement, for any number of steps and any inner optimizer, and shorter if tasks
    disagree. If g is zero, the result is zero.

    Args:
        path: the finished path.
        geometry: how its meta-gradient is formed.
        displacement: θᴷ − θ⁰, from the initialization to the parameters after the last step.
    """
    total = path.meta_gradient
    if geometry.per_segment:
        segments = tf.maximum(path.points - 1, 1)
        return [each / tf.cast(segments, each.dtype) for each in total]
    if not geometry.scaled:
        return list(total)
    length = tf.sqrt(squared_norm(displacement))
    factor = tf.math.divide_no_nan(length, tf.sqrt(squared_norm(total)))
    return [tf.cast(factor, each.dtype) * each for each in total]


def displacement_of(start: Tensors, end: Tensors) -> list[tf.Tensor]:
    """Returns end − start in accumulator precision, one tensor per parameter."""
    return [
        tf.cast(last, accumulator_dtype(last.dtype)) - tf.cast(first, accumulator_dtype(last.dtype))
        for first, last in zip(start, end)
    ]


def squared_norm(tensors: Tensors) -> tf.Tensor:
    """Returns Σ ‖t‖² over the tensors t."""
    dtype = _scalar_dtype(tensors)
    return 2.0 * tf.add_n([tf.cast(tf.nn.l2_loss(tensor), dtype) for tensor in tensors])


def accumulator_dtype(dtype: tf.DType) -> tf.DType:
    """Returns the dtype of sums over parameters: float64 for float64, else float32."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def _scalar_dtype(tensors):
    wide = any(tensor.dtype == tf.float64 for tensor in tensors)
    return tf.float64 if wide else tf.float32


def _cast_like(tensors, references):
    return [tf.cast(tensor, reference.dtype) for tensor, reference in zip(tensors, references)]
