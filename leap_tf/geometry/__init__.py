"""Gradient paths as pure functions of tensors. The only place where the formula is written."""

from leap_tf.geometry.path import (
    GradientPath,
    PathGeometry,
    PathPoint,
    accumulator_dtype,
    extend_path,
    mean_over_segments,
    start_path,
)

__all__ = [
    "GradientPath",
    "PathGeometry",
    "PathPoint",
    "accumulator_dtype",
    "extend_path",
    "mean_over_segments",
    "start_path",
]
