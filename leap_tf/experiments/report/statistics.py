"""Means, standard errors and curves over seeds. Pure arithmetic."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from leap_tf.experiments.plots import running_mean, standard_error

# Student's t is within ± these in 95 % of cases, for 1, 2, … 29 degrees of freedom: NIST/SEMATECH
# e-Handbook of Statistical Methods, section 1.3.6.7.2.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with what it is a mean of.

    Attributes:
        values: from each seed to its value.
    """

    values: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; infinite if there are none."""
        return float(np.mean(list(self.values.values()))) if self.values else float("inf")

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over seeds; None below two seeds."""
        return standard_error(list(self.values.values()))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Returns first − second, seed by seed, over the seeds both have."""
    shared = [seed for seed in first.values if seed in second.values]
    return Estimate({seed: first.values[seed] - second.values[seed] for seed in shared})


def ratio(first: Estimate, second: Estimate) -> Estimate:
    """Returns first / second, seed by seed, over the seeds both have and the second is not 0 at."""
    shared = [seed for seed in first.values if second.values.get(seed)]
    return Estimate({seed: first.values[seed] / second.values[seed] for seed in shared})


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the mean of several estimates, seed by seed, over the seeds that all of them have."""
    if not estimates:
        return Estimate({})
    shared = [
        seed for seed in estimates[0].values if all(seed in each.values for each in estimates)
    ]
    return Estimate(
        {seed: float(np.mean([each.values[seed] for each in estimates])) for seed in shared}
    )


def is_settled(gap: Estimate) -> bool:
    """Whether a difference is clear of chance.

    It is if there are two seeds or more, all have the same sign, and zero is outside the mean's
    95 % confidence interval x̄ ± t s/√n, with Student's t for n − 1 degrees of freedom.
    """
    error = gap.standard_error
    signs = {np.sign(value) for value in gap.values.values()}
    if error is None or len(signs) > 1:
        return False
    return abs(gap.mean) > student_t(len(gap.values)) * error


def student_t(seeds: int) -> float:
    """Returns how many standard errors a 95 % confidence interval reaches to either side.

    Args:
        seeds: at least 2. Of more than 30 the value for 30, which is a little too large.
    """
    return _STUDENT_T[min(seeds - 1, len(_STUDENT_T)) - 1]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What several seeds of one configuration came to, diverged tasks left out of all means.

    Attributes:
        error: held-out error in %, of the means over tasks.
        area: area under the training error, 0–100.
        steps: gradient steps to the target error, of the means over tasks that reach it.
        capped_steps: the same with a task that does not reach it counted with all its steps.
        task_errors: held-out error in % of every task of every seed.
        tasks: how many tasks there were in all seeds.
        reached: how many of them reached the target.
        diverged: how many of them diverged.
    """

    error: Estimate
    area: Estimate
    steps: Estimate
    capped_steps: Estimate
    task_errors: tuple[float, ...]
    tasks: int
    reached: int
    diverged: int


def summarise(outcomes: Mapping[str, Mapping[str, Any]]) -> Summary:
    """Summarises what judging gave at each seed.

    Args:
        outcomes: from each seed to a record of `judgement.as_record`.
    """
    steps: dict[str, float] = {}
    capped: dict[str, float] = {}
    for seed, outcome in outcomes.items():
        whole = whole_tasks(outcome)
        arrived = [each["steps_to_target"] for each in whole if _reached(each)]
        if arrived:
            steps[seed] = float(np.mean(arrived))
        if whole:
            capped[seed] = float(np.mean([_capped_steps(each) for each in whole]))
    whole = [task for outcome in outcomes.values() for task in whole_tasks(outcome)]
    return Summary(
        error=_estimate(outcomes, "error", 100.0),
        area=_estimate(outcomes, "area_under_error", 1.0),
        steps=Estimate(steps),
        capped_steps=Estimate(capped),
        task_errors=tuple(100.0 * task["error"] for task in whole),
        tasks=sum(len(outcome["tasks"]) for outcome in outcomes.values()),
        reached=sum(_reached(task) for task in whole),
        diverged=sum(len(outcome["diverged"]) for outcome in outcomes.values()),
    )


def whole_tasks(outcome: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the tasks of a record whose numbers are all finite."""
    return [
        task
        for task in outcome["tasks"]
        if None
        not in (task["error"], task["loss"], *task["training_errors"], *task["training_losses"])
    ]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A mean curve with one standard error to either side, over seeds.

    Attributes:
        x: [K] where it was measured.
        mean: [K].
        spread: [K] standard errors; zeros below two seeds.
        runs: [seeds, K] what it is the mean of.
    """

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    runs: np.ndarray


def curve_over(runs: Sequence[ArrayLike], x: ArrayLike | None = None) -> Curve:
    """Returns the mean of curves, cut to the shortest.

    Args:
        runs: one curve a seed.
        x: where they were measured; 0, 1, … by default.
    """
    length = min(len(np.asarray(run)) for run in runs)
    stacked = np.stack([np.asarray(run, np.float64)[:length] for run in runs])
    error = standard_error(stacked)
    spread = np.zeros(length) if error is None else error
    where = np.arange(length) if x is None else np.asarray(x)[:length]
    return Curve(where, stacked.mean(axis=0), spread, stacked)


def adaptation_curve(outcomes: Sequence[Mapping[str, Any]], name: str, window: int) -> Curve | None:
    """Returns a training curve on held-out tasks: of each seed the mean over its whole tasks.

    Args:
        outcomes: records of `judgement.as_record`, one a seed.
        name: "training_errors" or "training_losses".
        window: batches in the running mean that smooths it.

    Returns:
        The curve, or None if no task of any seed is whole.
    """
    runs = []
    for outcome in outcomes:
        curves = [task[name] for task in whole_tasks(outcome)]
        if curves:
            shortest = min(len(curve) for curve in curves)
            mean = np.mean([curve[:shortest] for curve in curves], axis=0)
            runs.append(running_mean(mean, window))
    return curve_over(runs) if runs else None


def metric_curve(
    runs: Sequence[Sequence[Mapping[str, Any]]], name: str, window: int = 1
) -> Curve | None:
    """Returns a metric over meta-steps, at those where every run has a finite value.

    Args:
        runs: lines of metrics.jsonl, one sequence a seed.
        name: such as "loss", or "val_path_length", which only validated meta-steps have.
        window: meta-steps in the running mean that smooths each run.

    Returns:
        The curve, or None if no meta-step has the metric in every run.
    """
    tables = [
        {
            entry["meta_step"]: entry[name]
            for entry in run
            if entry.get(name) is not None and np.isfinite(entry[name])
        }
        for run in runs
    ]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    if not shared:
        return None
    return curve_over(
        [running_mean([table[step] for step in shared], window) for table in tables], shared
    )


def over_gradient_steps(curve: Curve, run: Sequence[Mapping[str, Any]]) -> Curve:
    """Returns a curve over meta-steps as one over the gradient steps made until each of them."""
    made = np.cumsum([entry.get("gradient_steps", 0) for entry in run])
    steps = {entry["meta_step"]: int(total) for entry, total in zip(run, made)}
    return dataclasses.replace(curve, x=np.array([steps[step] for step in curve.x]))


def _estimate(outcomes, name, factor):
    return Estimate(
        {
            seed: factor * outcome[name]
            for seed, outcome in outcomes.items()
            if outcome[name] is not None
        }
    )


def _reached(task):
    return task["steps_to_target"] is not None


def _capped_steps(task):
    return task["steps_to_target"] if _reached(task) else len(task["training_errors"])
