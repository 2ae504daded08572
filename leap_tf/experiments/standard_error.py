"""The standard error of a mean, for every table and every band."""

from collections.abc import Sequence
from typing import overload

import numpy as np


@overload
def standard_error(values: Sequence[float]) -> float | None: ...
@overload
def standard_error(values: np.ndarray) -> np.ndarray | None: ...
def standard_error(values):
    """Returns s/√n with s² = Σ(x − x̄)²/(n − 1); None below two values.

    Args:
        values: n numbers, or an array [n, …] of curves, whose errors are […].
    """
    if len(values) < 2:
        return None
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    return error if error.ndim else float(error)
