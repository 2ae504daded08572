"""The section on how each held-out data set is learned, from every method's initialization."""

import numpy as np

from leap_tf.experiments.report import transfer_figures
from leap_tf.experiments.report.document import Picture, Section
from leap_tf.experiments.report.headline import by_seed
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.paper_transfer import dataset_label, dataset_order
from leap_tf.experiments.report.results import SweepResults
from leap_tf.experiments.report.statistics import Curve, adaptation_curve
from leap_tf.experiments.report.transfer import select
from leap_tf.experiments.report.transfer_tables import measured_otherwise
from leap_tf.experiments.report.wording import count, listing

WINDOW = 20  # batches in the running mean of training errors

Curves = dict[str, dict[str, Curve]]  # of each held-out data set, of each method


def transfer_curves(sweep: SweepResults) -> Curves:
    """Returns training errors over gradient steps, mean over seeds, diverged runs left out."""
    found: Curves = {}
    for dataset in dataset_order(str(cell.held_out) for cell in sweep.finished):
        for method in in_order(c.method for c in sweep.finished if c.held_out == dataset):
            cells = by_seed(select(sweep, dataset, method))
            curve = adaptation_curve(
                [cell.outcome for cell in cells.values()], "training_errors", WINDOW
            )
            if curve is not None:
                found.setdefault(dataset, {})[method] = curve
    return found


def transfer_learning_section(sweep: SweepResults) -> Section | None:
    """Returns the learning curves on every held-out data set; None if there are none."""
    found = transfer_curves(sweep)
    if not found:
        return None
    methods = in_order(method for of_methods in found.values() for method in of_methods)
    drawn = {
        dataset_label(dataset): [
            (method_look(method, methods), curve) for method, curve in of_methods.items()
        ]
        for dataset, of_methods in found.items()
    }
    length = min(len(curve.x) for of_methods in found.values() for curve in of_methods.values())
    findings = [
        _leaders(found, methods, step)
        for step in dict.fromkeys([length // 10, length // 2, length - 1])
    ]
    return Section(
        "learning",
        "Learning the held-out data set",
        tuple(findings),
        (
            Picture(
                "learning",
                transfer_figures.learning_by_dataset(drawn),
                "Training error over gradient steps on each held-out data set, running mean of "
                f"{WINDOW} batches, on a logarithmic axis; mean over seeds, band ± 1 standard "
                f"error. Diverged runs are left out.{measured_otherwise(methods)}",
                "Curves of training error over gradient steps, a panel for each held-out data set, "
                "a line for each method",
            ),
        ),
    )


def _leaders(found: Curves, methods, step):
    """Says which method has the lowest training error after some steps, on which data sets."""
    won: dict[str, list[str]] = {}
    for dataset, of_methods in found.items():
        heights = {method: curve.mean[step] for method, curve in of_methods.items()}
        lowest = np.min(list(heights.values()))
        for method in (each for each, height in heights.items() if height == lowest):
            won.setdefault(method_look(method, methods).label, []).append(dataset_label(dataset))
    most_first = sorted(won.items(), key=lambda pair: -len(pair[1]))
    parts = [f"{label} on {len(names)} ({listing(names)})" for label, names in most_first]
    return (
        f"Lowest training error after {count(step, 'step')}, of "
        f"{count(len(found), 'data set')}: {'; '.join(parts)}."
    )
