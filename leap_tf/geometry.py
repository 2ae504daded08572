"""Length, energy and meta-gradient of a gradient path.

A learner that trains on a task walks over the task's manifold, the graph of its loss: a
point of its path is γⁱ = (θⁱ, f(θⁱ)) in R^(n+1), parameters and loss together. The path is
never stored. Only its last point is kept, and each new point closes one *segment*:

    symbol        name in the code     meaning
    θⁱ            point.position       parameters before gradient step i, a list of tensors
    f(θⁱ)         point.loss           loss of batch i at θⁱ, a scalar
    ∇f(θⁱ)        point.gradient       gradient of that loss, one tensor per parameter
    Δθⁱ           delta_position       θⁱ⁺¹ − θⁱ, whatever optimizer made the step
    Δfⁱ           delta_loss           f(θⁱ⁺¹) − f(θⁱ)
    ‖γⁱ⁺¹ − γⁱ‖²  squared_length       ‖Δθⁱ‖² + (Δfⁱ)²

Lengths are Euclidean, or those of the diagonal Fisher information (appendix A): with F(θⁱ) =
diag(∇f(θⁱ)²), a segment's ‖Δθ‖² becomes Σⱼ Fⱼ Δθⱼ². That F is *empirical*, and as coarse as it can
be had at no cost: the squared gradient of the batch at the segment's start stands for the mean
square of the examples' gradients, as in Adam.

Everything here is frozen: no gradient flows through a path, and the Jacobian of θⁱ with
respect to θ⁰ is taken as the identity (appendix D of the paper).

Source: Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019,
eq. 7 (distances) and eq. 8 (meta-gradient).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

DISTANCES = ("length", "energy")
METRICS = ("euclidean", "fisher")


@dataclasses.dataclass(frozen=True)
class PathGeometry:
    """Which distance along a gradient path the meta-gradient shortens.

    Args:
        distance: "length" sums the lengths of the segments (p = 1 in eq. 7), "energy" their
            squares (p = 2).
        include_loss: whether the loss is a coordinate of the path. Without it the path lies
            in parameter space alone.
        stabilizer: whether a rising loss counts as a falling one, Δf ← −|Δf|, so that the
            meta-gradient never points uphill (appendix C). Only matters with `include_loss`.
        metric: "euclidean", or "fisher" for the diagonal empirical Fisher information as the
            metric of the parameters. The loss coordinate, if there is one, stays Euclidean.

    Raises:
        ValueError: `distance` or `metric` is unknown.
    """

    distance: str = "length"
    include_loss: bool = True
    stabilizer: bool = True
    metric: str = "euclidean"

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise ValueError(
                f"distance must be one of {DISTANCES}, and is {self.distance!r}. 'length' sums "
                "segment lengths, 'energy' their squares."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, and is {self.metric!r}.")


class PathPoint(NamedTuple):
    """A point γⁱ = (θⁱ, f(θⁱ)) of a gradient path, with the gradient of the loss there."""

    position: Sequence[tf.Tensor]
    loss: tf.Tensor
    gradient: Sequence[tf.Tensor]


class GradientPath(NamedTuple):
    """What is known of a gradient path so far; its size does not grow with the steps.

    Attributes:
        last: the newest point, in accumulator precision.
        points: number of points seen, int32. K points make K − 1 segments.
        meta_gradient: sum of the segments' contributions, one tensor per parameter.
        length: Σ ‖γⁱ⁺¹ − γⁱ‖, eq. 7 with p = 1.
        energy: Σ ‖γⁱ⁺¹ − γⁱ‖², eq. 7 with p = 2.
    """

    last: PathPoint
    points: tf.Tensor
    meta_gradient: Sequence[tf.Tensor]
    length: tf.Tensor
    energy: tf.Tensor


def start_path(position: Sequence[tf.Tensor]) -> GradientPath:
    """Returns the empty path of a learner whose parameters look like `position`.

    Accumulators are float64 for float64 parameters and float32 for all others.
    """
    zeros = [tf.zeros_like(value, accumulator_dtype(value.dtype)) for value in position]
    zero = tf.zeros((), _scalar_dtype(zeros))
    return GradientPath(
        last=PathPoint(position=zeros, loss=zero, gradient=zeros),
        points=tf.constant(0),
        meta_gradient=zeros,
        length=zero,
        energy=zero,
    )


def extend_path(path: GradientPath, point: PathPoint, geometry: PathGeometry) -> GradientPath:
    """Walks to `point` and adds the segment this closes.

    The segment i → i + 1 adds to the meta-gradient (eq. 8 with J = I)

        − (Δf ∇f(θⁱ) + G Δθ) ‖γⁱ⁺¹ − γⁱ‖^(p − 2),

    with gradient and metric G (the identity, or F) taken where the segment *starts*. The factor
    p of eq. 8 is left to the meta learning rate, as in the original code. A segment of zero
    length adds zero, and so does the first point, which closes no segment.

    Args:
        path: the path so far.
        point: its next point. The loss and the gradient are of the same batch and belong to
            `point.position`, the parameters *before* the step that this batch causes.
        geometry: the distance that is measured.

    Returns:
        The path one point longer.
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
        # √F Δθ, up to signs that the square does not see, and F Δθ.
        measured = [root * delta for root, delta in zip(path.last.gradient, delta_position)]
        delta_position = [root * part for root, part in zip(path.last.gradient, measured)]
        squared_length = squared_norm(measured)
    else:
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

    return GradientPath(
        last=point,
        points=path.points + 1,
        meta_gradient=[
            total - _segment_gradient(delta, delta_loss, gradient, scale)
            for total, delta, gradient in zip(
                path.meta_gradient, delta_position, path.last.gradient
            )
        ],
        length=path.length + length,
        energy=path.energy + squared_length,
    )


def squared_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the squared Euclidean norm of all tensors together, Σ ‖t‖²."""
    dtype = _scalar_dtype(tensors)
    return 2.0 * tf.add_n([tf.cast(tf.nn.l2_loss(tensor), dtype) for tensor in tensors])


def accumulator_dtype(dtype: tf.DType) -> tf.DType:
    """Returns the precision in which sums over a path of `dtype` parameters are kept."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def _segment_gradient(delta_position, delta_loss, gradient, scale):
    """(Δf ∇f + Δθ) · scale, for one parameter; scalars are joined first to save a pass."""
    increment = tf.cast(scale, delta_position.dtype) * delta_position
    if delta_loss is None:
        return increment
    return increment + tf.cast(scale * delta_loss, gradient.dtype) * gradient


def _scalar_dtype(tensors):
    wide = any(tensor.dtype == tf.float64 for tensor in tensors)
    return tf.float64 if wide else tf.float32


def _cast_like(tensors, references):
    return [tf.cast(tensor, reference.dtype) for tensor, reference in zip(tensors, references)]


def mean_over_segments(path: GradientPath) -> list[tf.Tensor]:
    """Returns the meta-gradient of a path divided by its number of segments, at least 1."""
    segments = tf.maximum(path.points - 1, 1)
    return [total / tf.cast(segments, total.dtype) for total in path.meta_gradient]
