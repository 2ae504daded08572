"""Training runs as tables: collected from their folders, read, and summarized over seeds.

runs.csv.gz     one row a training run: sweep, method, seed, axes, cost, machine, configuration
tasks.csv.gz    one row a held-out task of a run, for each initialization that was evaluated
curves.csv.gz   one row a curve: the training error or loss of a task that did not diverge over
                gradient steps, or a metric of meta-training; values are separated by spaces
jacobian.csv    one row a measurement of Jacobian precision, if there are any
"""

import contextlib
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats

from leap_tf.errors import LeapError
from leap_tf.experiments.run_directory import RunDirectory

# The initializations that evaluation.json compares, and what stands in for one in curves.csv.gz.
LEARNED, FRESH, META_TRAINING = "learned initialization", "no pretraining", "meta-training"

# From each file to its columns of text and of numbers.
COLUMNS = {
    file: (text.split(), numbers.split())
    for file, text, numbers in (
        (
            "runs.csv.gz",
            "run sweep method seed split batch_norm environment gin_files bindings config",
            "finished steps target_error meta_steps gradient_steps seconds tasks_skipped",
        ),
        (
            "tasks.csv.gz",
            "run initialization name",
            "index diverged error loss final_training_error area_under_error steps_to_target "
            "path_length path_energy examples parameters",
        ),
        ("curves.csv.gz", "run initialization quantity values", "index"),
        ("jacobian.csv", "task layer", "learning_rate step rho parameters matrix_bytes seconds"),
    )
}

_KEY = ("run", "initialization", "index")
_CURVES = ("training_errors", "training_losses")
# Learners whose method has another name than their class.
_METHODS = {"jointtraining": "finetuning", "": "leap", "nometalearning": "none",
            "progressivenets": "progressive"}  # fmt: skip


class ResultsError(LeapError, ValueError):
    """A folder or a file is not what a report is made of."""


def collect(folders: Iterable[str | os.PathLike]) -> dict[str, bytes]:
    """Collects runs into files for `read_results`, {name: content}; equal runs give equal bytes.

    Each folder is of a sweep, of a run, of Jacobian measurements, or of several such folders.
    Raises ResultsError if a folder holds no run, or a file does not have its form.
    """
    rows: dict[str, list[dict]] = {file: [] for file in COLUMNS}
    for folder in (pathlib.Path(each).expanduser() for each in folders):
        found = list(_runs_in(folder))
        measured = sorted(folder.rglob("learning_rate_*_task_*.json"))
        if not found and not measured:
            raise ResultsError(
                f"{folder} has neither a sweep.json nor a run's config.gin. Pass --runs a folder "
                "that bin/sweep.py, bin/train.py or bin/jacobian.py wrote."
            )
        for run in found:
            _add_run(rows, *run)
        for path in measured:
            with _form_of(path):
                record = json.loads(path.read_text())
                required = ("learning_rate", "task", "parameters", "matrix_bytes", "seconds")
                for step, rho in zip(record["steps"], record["rho"], strict=True):
                    row = {**record, "step": int(step), "rho": _number(rho)}
                    rows["jacobian.csv"].append(row | {name: row[name] for name in required})
    _tell_apart(rows["runs.csv.gz"])
    names = [row["run"] for row in rows["runs.csv.gz"]]
    if len(set(names)) < len(names):
        raise ResultsError(f"Two runs are {max(names, key=names.count)}. Pass each to --runs once.")
    tables = {file: _csv(rows[file], columns) for file, columns in COLUMNS.items()}
    if not rows["jacobian.csv"]:
        del tables["jacobian.csv"]
    return {
        file: gzip.compress(table, mtime=0) if file.endswith("gz") else table
        for file, table in tables.items()
    }


def _runs_in(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, dict]]:
    """Yields sweep, folder and index entry of every run in a folder."""
    if (index := folder / "sweep.json").exists():
        with _form_of(index):
            for entry in json.loads(index.read_text()):
                name, texts = entry["name"], [*entry["gin_files"], *entry["bindings"]]
                if not all(isinstance(e, str) for e in [name, *entry["values"].values(), *texts]):
                    raise ValueError("a name, value, file or binding is not text")
                if name in ("", ".", "..") or set(name) & set("/\\\0"):
                    raise ValueError(f"{name!r} is not the name of a folder")
                yield folder.resolve().name, folder / "cells" / name, entry
    elif (folder / "config.gin").exists() and not any(folder.rglob("learning_rate_*.json")):
        entry = {"name": folder.resolve().name, "values": {}, "gin_files": [], "bindings": []}
        yield folder.resolve().parent.name, folder, entry
    elif folder.is_dir():
        for child in natural_order(each.name for each in folder.iterdir() if each.is_dir()):
            yield from _runs_in(folder / child)


def _tell_apart(rows):
    """Makes the folder an axis of runs outside sweeps that have the same method and seed."""
    alone = [row for row in rows if not row["gin_files"]]
    keys = [(row["sweep"], row["method"], row["seed"]) for row in alone]
    for row, key in zip(alone, keys):
        if keys.count(key) > 1:
            row["axis.run"] = row["run"].rpartition("/")[2]


def _add_run(rows, sweep, folder, entry):
    run, name = RunDirectory(folder), f"{sweep}/{entry['name']}"
    config = run.config.read_text(errors="replace") if run.config.exists() else ""
    settings, axes = "\n".join([config, *entry["bindings"]]), dict(entry["values"])
    learner = re.split("[/.]", setting(settings, "MetaTrainer.learner").strip("@()"))[-1].lower()
    row = {
        "run": name,
        "sweep": sweep,
        "method": axes.pop("method", "") or _METHODS.get(learner, learner),
        "seed": axes.pop("seed", "") or setting(settings, "study.seed") or "0",
        "finished": int(run.evaluation.exists()),
        "gin_files": "\n".join(entry["gin_files"]),
        "bindings": "\n".join(entry["bindings"]),
        "config": config,
        **{f"axis.{axis}": value for axis, value in axes.items()},
    }
    rows["runs.csv.gz"].append(row)
    with _form_of(run.environment):
        for start in json.loads(run.environment.read_text()) if run.environment.exists() else []:
            packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items())
            row["environment"] = f"{start['platform']}, {start['cores']} cores, Python "
            row["environment"] += f"{start['python']}, {packages}"
    with _form_of(run.metrics):
        lines = run.metrics.read_bytes().splitlines(True) if run.metrics.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
        metrics = [{name: _number(value) for name, value in line.items()} for line in entries]
        meta_steps = [line["meta_step"] for line in metrics]
        if meta_steps != sorted(set(meta_steps)):
            raise ValueError("the meta-steps do not ascend")
        row["meta_steps"] = len(meta_steps)
        for total in ("gradient_steps", "seconds", "tasks_skipped"):
            row[total] = sum(line.get(total) or 0 for line in metrics)
        for quantity in dict.fromkeys(name for line in metrics for name in line):
            values = [line.get(quantity) for line in metrics]
            _add_curve(rows, (name, META_TRAINING, 0), quantity, values)
    with _form_of(run.evaluation):
        if not row["finished"]:
            return
        evaluation = json.loads(run.evaluation.read_text())
        row["steps"] = int(evaluation["steps"])
        row["batch_norm"] = "transductive" if evaluation["transductive"] else "inductive"
        row["target_error"] = float(evaluation["target_error"])
        # A task of Multi-CV is evaluated on its test or on its validation images.
        row["split"] = setting(settings, "multi_cv_splits.evaluate_on") or str(evaluation["split"])
        evaluation["results"][LEARNED]  # a KeyError says that it is missing
        for initialization, result in evaluation["results"].items():
            for index, task in enumerate(result["tasks"]):
                _add_task(rows, (name, initialization, index), task)


def _add_task(rows, key, task):
    curves = {name: [_number(value) for value in task[name]] for name in _CURVES}
    row = {name: _number(task.get(name)) for name in COLUMNS["tasks.csv.gz"][1]}
    numbers = (row["error"], row["loss"], *itertools.chain(*curves.values()))
    row["diverged"] = int(None in numbers or not task["finite"])
    if not row["diverged"]:
        for quantity, values in curves.items():
            _add_curve(rows, key, quantity, values)
    row |= dict(zip(_KEY, key)) | {"name": str(task["name"])}
    rows["tasks.csv.gz"].append(row)


def _add_curve(rows, key, quantity, values):
    text = " ".join("nan" if value is None else f"{value:.6g}" for value in values)
    rows["curves.csv.gz"].append(dict(zip(_KEY, key)) | {"quantity": quantity, "values": text})


def _number(value) -> float | None:
    """Returns a number; None for one that is missing, not finite, or overflows in sums."""
    return float(value) if value is not None and abs(float(value)) < 1e15 else None


def _csv(rows, columns) -> bytes:
    axes = dict.fromkeys(name for row in rows for name in row if name.startswith("axis."))
    table = pd.DataFrame(rows, columns=[*columns[0], *axes, *columns[1]]).convert_dtypes()
    return table.to_csv(index=False, lineterminator="\n").encode(errors="replace")


def natural_order(names: Iterable[str]) -> list[str]:
    """Returns names once each, numbers in them by size: "2" before "10"."""
    return sorted(set(names), key=lambda name: [
        (part, 0.0) if place % 2 == 0 else ("", float(part))
        for place, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))
    ])  # fmt: skip


def setting(configuration: str, name: str) -> str:
    """Returns what a configuration binds to a name last, such as "study.seed"; "" if nothing."""
    pattern = rf"^{re.escape(name)}\s*=\s*(.+?)\s*(?:#.*)?$"
    found = next(iter(re.findall(pattern, configuration, re.M)[-1:]), "").strip("'\"")
    return setting(configuration, found[1:]) if found.startswith("%") else found  # a macro


@contextlib.contextmanager
def _form_of(path):
    """Turns what a missing, foreign or damaged file raises into a ResultsError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"{path.parent} has no {path.name}. Collect it from run folders with --runs."
        raise ResultsError(message) from error
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError,
            gzip.BadGzipFile, zlib.error) as error:  # fmt: skip
        why = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        message = f"{path} does not have the form that this project writes: {why[:300]}."
        raise ResultsError(message) from error


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
    tables = []
    for file, (texts, numbers) in COLUMNS.items():
        table = pd.DataFrame(columns=[*texts, *numbers])
        if file != "jacobian.csv" or (folder / file).exists():
            with _form_of(folder / file):
                table = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
                table = table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
                table[texts]  # a KeyError names a column that is missing
        tables.append(table)
    runs, tasks, curves, jacobian = tables
    curves = curves.assign(value=curves.pop("values").str.split()).explode("value")
    curves["value"] = curves["value"].astype(float)
    curves["step"] = curves.groupby(level=0).cumcount()
    return Results(runs.set_index("run"), tasks.set_index("run"), curves, jacobian)
