"""Plots of a run: meta-training over meta-steps, and adaptation over gradient steps."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import overload

import matplotlib.figure
import numpy as np
from numpy.typing import ArrayLike

from leap_tf.training import Evaluation


@overload
def standard_error(values: Sequence[float]) -> float | None: ...
@overload
def standard_error(values: np.ndarray) -> np.ndarray | None: ...
def standard_error(values):
    """Returns the standard error of a mean, s/√n with s² = Σ(x − x̄)²/(n − 1).

    Args:
        values: n numbers, or an array [n, …] of curves.

    Returns:
        A number, or an array […] for curves; None if there are fewer than two values.
    """
    if len(values) < 2:
        return None
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    return error if error.ndim else float(error)


_COLOURS = ("#1b6ca8", "#b5651d", "#4f7942", "#7a4988")


def plot_learning_curve(entries: Sequence[Mapping[str, float]], path: pathlib.Path) -> None:
    """Draws training loss, error and, if there is one, validation error over meta-steps.

    Args:
        entries: the lines of metrics.jsonl.
        path: the PNG file to write.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    loss, error = figure.subplots(1, 2)
    steps = [entry["meta_step"] for entry in entries]
    loss.plot(steps, _numbers(entries, "loss"), color=_COLOURS[0])
    loss.set(title="Mean training loss along the paths", ylabel="loss")
    error.plot(steps, _numbers(entries, "error"), color=_COLOURS[0], label="training batches")
    validated = [entry for entry in entries if "val_error" in entry]
    if validated:
        error.plot(
            [entry["meta_step"] for entry in validated],
            _numbers(validated, "val_error"),
            color=_COLOURS[1],
            marker="o",
            markersize=3,
            label="held-out examples of validation tasks",
        )
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
        mean, spread = mean_training_error(evaluation, window)
        steps = np.arange(len(mean))
        axes.plot(steps, mean, color=colour, label=label)
        axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
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


def _numbers(entries, name):
    return [np.nan if entry[name] is None else entry[name] for entry in entries]


def mean_training_error(evaluation: Evaluation, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard error of the training error over tasks that did not diverge.

    Args:
        evaluation: the evaluation. Its curves are cut to the length of the shortest.
        window: number of batches in the running mean that smooths them.

    Returns:
        Two arrays [steps], empty if all tasks diverged. The standard error of one task is 0.
    """
    whole = [task.training_errors for task in evaluation.tasks if not task.diverged]
    if not whole:
        return np.zeros(0), np.zeros(0)
    shortest = min(len(errors) for errors in whole)
    curves = np.stack([running_mean(errors[:shortest], window) for errors in whole])
    error = standard_error(curves)
    return curves.mean(axis=0), np.zeros(shortest) if error is None else error


def running_mean(values: ArrayLike, window: int) -> np.ndarray:
    """Returns the mean of the last `window` values at each position, and of fewer at the start."""
    totals = np.cumsum(np.concatenate([[0.0], np.asarray(values, np.float64)]))
    ends = np.arange(1, len(totals))
    starts = np.maximum(ends - window, 0)
    return (totals[ends] - totals[starts]) / (ends - starts)


def _tidy(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
