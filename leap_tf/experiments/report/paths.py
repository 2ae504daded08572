"""The section on theorem 1: length and energy of the same paths over meta-training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leap_tf.experiments.report import figures
from leap_tf.experiments.report.document import Block, KeyFigure, Picture, Section, Table, Value
from leap_tf.experiments.report.headline import by_seed
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.results import Cell, SweepResults
from leap_tf.experiments.report.statistics import metric_curve
from leap_tf.experiments.report.wording import change, count, missing_notice, named, small

_PATHS = {
    "val_path_length": "Path length",
    "val_path_energy": "Path energy",
    "val_final_loss": "Final training loss",
}


def path_figure(sweep: SweepResults | None) -> list[KeyFigure]:
    """Returns how many times shorter Leap's paths became, or longer."""
    cells = [cell for cell in sweep.finished if cell.method == "leap"] if sweep else []
    curve = metric_curve(_runs(sweep, cells), "val_path_length") if sweep else None
    if curve is None or len(curve.x) < 2:
        return []
    factor = curve.mean[0] / curve.mean[-1]
    word, times = ("shorter", factor) if factor >= 1 else ("longer", 1 / factor)
    return [
        KeyFigure(
            f"Leap’s validation paths, {word} by a factor of",
            f"{times:.2f}",
            f"length {change(curve.mean[0], curve.mean[-1])}, meta-steps {curve.x[0]} to "
            f"{curve.x[-1]}",
            method_look("leap").light,
        )
    ]


def _runs(sweep: SweepResults, cells: Sequence[Cell]) -> list[Sequence[Mapping[str, Any]]]:
    """Metrics of the cells, each after those of the fresh initialization it started from.

    "No pretraining" validates it at its first meta-step, which moves nothing.
    """
    fresh = by_seed([cell for cell in sweep.finished if cell.method == "none" and cell.metrics])
    return [
        [*({**fresh[seed].metrics[0], "meta_step": 0} for _ in range(seed in fresh)), *cell.metrics]
        for seed, cell in by_seed(cells).items()
    ]


def paths_section(sweep: SweepResults) -> Section:
    """Returns length and energy of validation paths over meta-steps, which theorem 1 is about."""
    cells = [cell for cell in sweep.finished if cell.metrics and cell.method != "none"]
    methods = in_order(cell.method for cell in cells)
    drawn: dict[str, list] = {name: [] for name in _PATHS}
    rows, findings = [], []
    for method in methods:
        look = method_look(method, methods)
        runs = _runs(sweep, [cell for cell in cells if cell.method == method])
        curves = {name: metric_curve(runs, name) for name in _PATHS}
        row = [named(look.label, look.light)]
        for name, curve in curves.items():
            if curve is None:
                row.append(Value("–"))
                continue
            drawn[name].append((look, curve))
            first, last = curve.mean[0], curve.mean[-1]
            factor = f"{first / last:.2f}×" if last else "–"
            ends = f"{small(first)} → {small(last)}"
            row.append(Value(f"{factor}", ends))
        length = curves["val_path_length"]
        if length is not None and len(length.x) > 1:
            falls = np.diff(length.runs, axis=1) <= 0
            row.append(Value(f"{falls.sum()} of {falls.size}"))
            findings.append(
                f"{look.label}: path length {change(length.mean[0], length.mean[-1])} between "
                f"meta-steps {length.x[0]} and {length.x[-1]}, a factor of "
                f"{length.mean[0] / length.mean[-1]:.2f} (first/last); it did not rise in "
                f"{falls.sum()} of {count(falls.size, 'interval')} between validations."
            )
        else:
            row.append(Value("–"))
        rows.append(tuple(row))
    shown = {name: curves for name, curves in drawn.items() if curves}
    blocks: list[Block] = [*missing_notice(sweep.missing, len(sweep.cells))]
    if shown:
        blocks += [
            Picture(
                "paths",
                figures.path_curves(shown, _PATHS),
                "Gradient paths on validation tasks over meta-steps; tasks, seeds and batches are "
                "the same at every validation. Thin: seeds; marked: their mean ± 1 standard error.",
                "Curves of path length, path energy and final loss over meta-steps",
            ),
            Table(
                "First validation divided by last, of the means over seeds; beneath, both. Last "
                "column: intervals between successive validations, of all seeds, in which the "
                "length did not rise.",
                ("method", "length", "energy", "final loss", "intervals without a rise"),
                tuple(rows),
            ),
        ]
    return Section(
        "paths",
        "Theorem 1: do the paths get shorter?",
        tuple(findings) or ("No finished cell has validations.",),
        tuple(blocks),
    )
