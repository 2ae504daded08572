"""Means over seeds, their errors and their differences."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `values` is from each seed to its value."""

    values: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; infinite if there are none."""
        return float(np.mean([*self.values.values()])) if self.values else float("inf")

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None below two seeds."""
        return float(scipy.stats.sem([*self.values.values()])) if len(self.values) > 1 else None

    def text(self, digits: int = 1, each: bool = True) -> str:
        """Formats as "42.1 ± 1.5 (42.8, 39.2, 44.4)", without the brackets unless `each`."""
        if self.standard_error is None:
            return f"{self.mean:.{digits}f} (one seed)" if self.values else "–"
        seeds = ", ".join(f"{value:.{digits}f}" for value in self.values.values())
        text = f"{self.mean:.{digits}f} ± {self.standard_error:.{digits}f}"
        return f"{text} ({seeds})" if each else text


def combine(function: Callable[[list[float]], float], *estimates: Estimate) -> Estimate:
    """Applies a function to the values of estimates, seed by seed, over the seeds that all have."""
    shared = [s for s in estimates[0].values if all(s in each.values for each in estimates)]
    return Estimate({s: float(function([each.values[s] for each in estimates])) for s in shared})


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Returns first − second, seed by seed, over the seeds that both have."""
    return combine(lambda pair: pair[0] - pair[1], first, second)


def is_settled(gap: Estimate) -> bool:
    """Returns whether a difference is clear of chance.

    It is if there are at least two seeds, all have the same sign, and zero is outside the 95 %
    confidence interval of Student's t.
    """
    values = [*gap.values.values()]
    if len(values) < 2 or len(set(np.sign(values))) > 1:
        return False
    reach = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return bool(abs(gap.mean) > reach)
