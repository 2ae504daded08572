"""Plots of a run: meta-training over meta-steps, and adaptation over gradient steps."""

import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd
import scipy.stats

from leap_tf.experiments.report import figures
from leap_tf.training import Evaluation


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of a mean, s/√n with s² = Σ(x − x̄)²/(n − 1); None if n < 2."""
    return float(scipy.stats.sem(values)) if len(values) > 1 else None


def plot_learning_curve(entries: Sequence[Mapping[str, float]], path: pathlib.Path) -> None:
    """Draws training loss, error and, if there is one, validation error over meta-steps.

    Args:
        entries: the lines of metrics.jsonl.
        path: the PNG file to write.
    """
    table = pd.DataFrame(entries).set_index("meta_step").astype(float)
    training = figures.look("training batches")
    errors = {training: table[["error"]]}
    if "val_error" in table:
        validated = table.loc[["val_error" in entry for entry in entries], ["val_error"]]
        errors[figures.look("held-out examples of validation tasks", 1)] = validated
    losses = {training: table[["loss"]]}
    panels = {"Loss along the paths over meta-steps": losses, "Error over meta-steps": errors}
    figures.save(figures.curves(panels), path)


def plot_adaptation(evaluations: Mapping[str, Evaluation], path: pathlib.Path) -> None:
    """Draws the training error over gradient steps, mean over tasks with one standard error.

    Tasks that diverged are left out, as in tables, and counted in the legend.

    Args:
        evaluations: evaluations by their names in the legend.
        path: the PNG file to write.
    """
    drawn = {}
    for place, (name, evaluation) in enumerate(evaluations.items()):
        lost = len(evaluation.diverged)
        label = f"{name} ({lost} diverged)" if lost else name
        drawn[figures.look(label, place)] = training_errors(evaluation, window=5)
    tasks = len(next(iter(evaluations.values())).tasks)
    title = f"Adaptation to {tasks} held-out tasks: training error over gradient steps"
    figures.save(figures.curves({title: drawn}), path)


def training_errors(evaluation: Evaluation, window: int) -> pd.DataFrame:
    """Returns the training errors of the tasks that did not diverge: a row a step, a column a task.

    They are running means of `window` batches, up to the end of the shortest curve.
    """
    whole = [task.training_errors for task in evaluation.tasks if not task.diverged]
    return pd.DataFrame(whole, dtype=float).T.dropna().rolling(window, min_periods=1).mean()
