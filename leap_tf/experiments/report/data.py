"""Results of the runs of a study: means over held-out tasks, curves, estimates over seeds."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats

from leap_tf.experiments.run_tables import LEARNED, META_TRAINING, ResultsError, natural_order
from leap_tf.experiments.run_tables import read as read_tables


@dataclasses.dataclass(frozen=True)
class Results:
    """The tables of a study.

    `runs` are indexed by the run's name, "<sweep>/<cell>". Axes other than method and seed are
    columns "axis.<name>", empty for runs without them.
    """

    runs: pd.DataFrame
    tasks: pd.DataFrame  # indexed by the run; errors are in [0, 1]
    curves: pd.DataFrame  # one row a value, with the position `step` in its curve
    jacobian: pd.DataFrame  # empty without measurements

    def scores(self, initialization: str = LEARNED) -> pd.DataFrame:
        """Returns the finished runs with means over their held-out tasks that did not diverge.

        The means are `error`, `final_training_error` (in %), `area`, `steps` (to the target, over
        tasks that reach it), `capped` (other tasks count with all their steps), `examples` and
        `parameters`; `tasks`, `diverged` and `reached` are numbers of tasks.
        """
        tasks = self.tasks[self.tasks["initialization"] == initialization]
        tasks = tasks.assign(error=100 * tasks["error"], area=tasks["area_under_error"])
        tasks["final_training_error"] *= 100
        tasks["capped"] = tasks["steps_to_target"].fillna(self.runs["steps"].reindex(tasks.index))
        whole = tasks[tasks["diverged"] == 0].groupby(level=0)
        found = tasks.groupby(level=0)["diverged"].agg(tasks="size", diverged="sum")
        found["reached"] = whole["steps_to_target"].count().reindex(found.index, fill_value=0)
        means = whole.mean(numeric_only=True).rename(columns={"steps_to_target": "steps"})
        means = means.drop(columns="diverged").reindex(found.index)
        runs = self.runs.drop(columns="steps").assign(initialization=initialization)
        return runs.join(found, how="inner").join(means)

    def adaptation(self, scores: pd.DataFrame, quantity: str, window: int) -> pd.DataFrame:
        """Returns a curve of the tasks that did not diverge over steps: a column a run, their mean.

        `quantity` is "training_errors" or "training_losses", smoothed over `window` batches.
        """
        found = self._curves_of(scores, scores["initialization"]).query("quantity == @quantity")
        of_tasks = found.pivot(index="step", columns=["run", "index"], values="value").dropna()
        return of_tasks.T.groupby(level=0).mean().T.rolling(window, min_periods=1).mean()

    def metric(
        self, runs: pd.DataFrame, quantity: str, window: int = 1, over: str = "meta_step"
    ) -> pd.DataFrame:
        """Returns a metric of meta-training, at meta-steps where all runs have it: a column a run.

        It is smoothed over `window` meta-steps; `over` is "meta_step", or "gradient_steps" for
        those made by then in the first run.
        """
        found = self._curves_of(runs, [META_TRAINING])
        found = found.pivot(index=["step", "run"], columns="quantity", values="value")
        if not {quantity, "meta_step", "gradient_steps"} <= set(found):
            return pd.DataFrame()
        found = found.reset_index("run").set_index("meta_step")
        made = found[found["run"] == found["run"].iloc[0]]["gradient_steps"].cumsum()
        table = found.pivot(columns="run", values=quantity).dropna()
        table = table.rolling(window, min_periods=1).mean()
        return table.set_axis(made[table.index]) if over == "gradient_steps" else table

    def _curves_of(self, runs, initializations):
        wanted = self.curves["run"].isin(runs.index)
        return self.curves[wanted & self.curves["initialization"].isin(initializations)]


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of a mean, s/√n with s² = Σ(x − x̄)²/(n − 1); None if n < 2."""
    return float(scipy.stats.sem(values)) if len(values) > 1 else None


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
        return standard_error([*self.values.values()])

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


def estimate(scores: pd.DataFrame, column: str) -> Estimate:
    """Returns a column of one method's runs as an estimate over their seeds.

    Raises:
        ResultsError: two of the runs have the same seed.
    """
    twice = scores[scores["seed"].duplicated(keep=False)]
    if len(twice):
        raise ResultsError(
            f"{' and '.join(twice.index[:2])} are the same configuration with the same seed, "
            f"{twice['seed'].iloc[0]}. Add an axis to the sweep that tells them apart."
        )
    values = scores.set_index("seed")[column].dropna()
    return Estimate({seed: float(values[seed]) for seed in natural_order(values.index)})


def read_results(folder: pathlib.Path) -> Results:
    """Reads the tables in a folder. Raises a ResultsError if one is missing or another's."""
    runs, tasks, curves, jacobian = read_tables(folder)
    curves = curves.assign(value=curves.pop("values").str.split()).explode("value")
    curves["value"] = curves["value"].astype(float)
    curves["step"] = curves.groupby(level=0).cumcount()
    return Results(runs.set_index("run"), tasks.set_index("run"), curves, jacobian)
