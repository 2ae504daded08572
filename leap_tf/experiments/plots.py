"""Plots of a run: meta-training over meta-steps, and adaptation over gradient steps."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.figure
import pandas as pd
import scipy.stats

from leap_tf.training import Evaluation


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of a mean, s/√n with s² = Σ(x − x̄)²/(n − 1); None if n < 2."""
    return float(scipy.stats.sem(values)) if len(values) > 1 else None


_COLOURS = ("#1b6ca8", "#b5651d", "#4f7942", "#7a4988")


def plot_learning_curve(entries: Sequence[Mapping[str, float]], path: pathlib.Path) -> None:
    """Draws training loss, error and, if there is one, validation error over meta-steps.

    Args:
        entries: the lines of metrics.jsonl.
        path: the PNG file to write.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    loss, error = figure.subplots(1, 2)
    table = pd.DataFrame(entries).astype(float).set_index("meta_step")
    loss.plot(table["loss"], color=_COLOURS[0])
    loss.set(title="Mean training loss along the paths", ylabel="loss")
    error.plot(table["error"], color=_COLOURS[0], label="training batches")
    if "val_error" in table:
        validated = table.loc[["val_error" in entry for entry in entries], "val_error"]
        label = "held-out examples of validation tasks"
        error.plot(validated, color=_COLOURS[1], marker="o", markersize=3, label=label)
    error.set(title="Error", ylabel="error")
    error.legend(frameon=False)
    for axes in (loss, error):
        axes.set(xlabel="meta-step", ylim=(0, None))
        _tidy(axes)
    figure.savefig(path, dpi=120)


def plot_adaptation(
    evaluations: Mapping[str, Evaluation], path: pathlib.Path, window: int = 5
) -> None:
    """Draws the training error over gradient steps, mean over tasks with one standard error.

    Tasks that diverged are left out, as in tables, and counted in the legend.

    Args:
        evaluations: evaluations by their names in the legend.
        path: the PNG file to write.
        window: number of batches in the running mean that smooths the curves.
    """
    figure = matplotlib.figure.Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (name, evaluation) in zip(_COLOURS, evaluations.items()):
        lost = len(evaluation.diverged)
        label = f"{name} ({lost} diverged)" if lost else name
        curves = adaptation_curves(evaluation, window)
        mean, spread = curves.mean(axis=1), curves.sem(axis=1).fillna(0.0)
        axes.plot(mean, color=colour, label=label)
        axes.fill_between(
            curves.index, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0
        )
    tasks = len(next(iter(evaluations.values())).tasks)
    axes.set(
        title=f"Adaptation to {tasks} held-out tasks",
        xlabel="gradient step",
        ylabel=f"training error (mean of {window} batches)",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.legend(frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=120)


def adaptation_curves(evaluation: Evaluation, window: int) -> pd.DataFrame:
    """Returns the training errors of the tasks that did not diverge: steps × tasks.

    The curves are cut to the length of the shortest and smoothed by a running mean over `window`
    batches, and over fewer at the start.
    """
    whole = [task.training_errors for task in evaluation.tasks if not task.diverged]
    curves = pd.DataFrame(whole).T.dropna()
    return curves.rolling(window, min_periods=1).mean()


def _tidy(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
