"""The section on learning-rate trials: what was tried, on what, and what was chosen.

A trial is one setting of a method. It is one cell, or one for every held-out data set and seed it
was judged on, and stands by their mean.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from leap_tf.experiments.report.document import Block, Section, Table, Value
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.paper_transfer import dataset_label, dataset_order
from leap_tf.experiments.report.results import Cell, SweepResults, natural_order
from leap_tf.experiments.report.wording import (
    PERCENT,
    count,
    listing,
    missing_notice,
    named,
    number,
)

_AXES = {"batch": "meta-batch", "outer": "outer rate", "inner": "inner rate"}
_REPEATS = ("seed", "heldout")  # axes on which a trial is repeated


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a method, and the cells that try it.

    Attributes:
        values: from each axis to its value, those left out on which it is repeated.
        cells: all of them, unfinished ones too.
    """

    values: Mapping[str, str]
    cells: tuple[Cell, ...]

    @property
    def finished(self) -> bool:
        """Whether all its cells have been judged."""
        return all(cell.finished for cell in self.cells)

    @property
    def area(self) -> float | None:
        """Mean area under the training error of its finished cells; None if one diverged."""
        return _mean(cell.outcome["area_under_error"] for cell in self.cells if cell.finished)

    @property
    def error(self) -> float | None:
        """Mean held-out error of its finished cells in %; None if one diverged."""
        error = _mean(cell.outcome["error"] for cell in self.cells if cell.finished)
        return None if error is None else 100 * error

    def area_on(self, dataset: str) -> float | None:
        """Its mean area on one held-out data set; None if one diverged or none is finished."""
        cells = [cell for cell in self.cells if cell.finished and cell.held_out == dataset]
        return _mean(cell.outcome["area_under_error"] for cell in cells)


def trials_of(cells: Sequence[Cell]) -> list[Trial]:
    """Returns the trials that cells make up, in the cells' order."""
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(_setting(cell).items()), []).append(cell)
    return [Trial(_setting(same[0]), tuple(same)) for same in found.values()]


def chosen(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the smallest mean area under the training error, the first of equals.

    Only trials whose cells are all finished compete: means over different data sets do not
    compare. None if no such trial has a finite mean.
    """
    areas = {
        place: trial.area
        for place, trial in enumerate(trials)
        if trial.finished and trial.area is not None
    }
    return trials[min(areas, key=lambda place: areas[place])] if areas else None


def trials_section(sweep: SweepResults) -> Section:
    """Returns the section with all trials, those chosen in each method marked."""
    blocks: list[Block] = [*missing_notice(sweep.missing, len(sweep.cells))]
    methods = in_order(cell.method for cell in sweep.cells)
    findings = [_trials_each(sweep, methods)]
    axes = list(dict.fromkeys(axis for cell in sweep.cells for axis in _setting(cell)))
    axes = [axis for axis in axes if axis != "method"]
    datasets = dataset_order(cell.held_out for cell in sweep.cells if cell.held_out)
    rows = []
    for method in methods:
        look = method_look(method, methods)
        planned = trials_of([cell for cell in sweep.cells if cell.method == method])
        begun = [trial for trial in planned if any(cell.finished for cell in trial.cells)]
        best = chosen(begun)
        if best is not None:
            findings.append(_choice(look.label, best, begun, planned))
        for trial in begun:
            outcomes = [cell.outcome for cell in trial.cells if cell.finished]
            lost = sum(len(outcome["diverged"]) for outcome in outcomes)
            tasks = sum(len(outcome["tasks"]) for outcome in outcomes)
            rows.append(
                (
                    named(look.label, look.light),
                    *(Value(trial.values.get(axis, "–")) for axis in axes),
                    *(Value(number(trial.area_on(dataset))) for dataset in datasets),
                    Value(number(trial.area), best=trial is best),
                    Value(number(trial.error)),
                    Value(f"{lost} of {tasks}"),
                    Value(_state(trial, best), numeric=False),
                )
            )
    if rows:
        header = (
            "method",
            *(_AXES.get(axis, axis) for axis in axes),
            *(f"area, {dataset_label(dataset)}" for dataset in datasets),
            "mean area" if datasets else "validation area, 0–100",
            f"mean error,{PERCENT}" if datasets else "validation error, %",
            "diverged tasks",
            "",
        )
        blocks.append(Table(_caption(sweep, datasets), header, tuple(rows)))
    return Section("rates", "Learning-rate trials", tuple(findings), tuple(blocks))


def _setting(cell: Cell) -> dict[str, str]:
    return {axis: value for axis, value in cell.values.items() if axis not in _REPEATS}


def _mean(values: Iterable[float | None]) -> float | None:
    every = list(values)
    finite = [value for value in every if value is not None]
    return sum(finite) / len(finite) if finite and len(finite) == len(every) else None


def _state(trial, best):
    if trial is best:
        return "✓ chosen"
    made = sum(cell.finished for cell in trial.cells)
    return "" if trial.finished else f"{made} of {count(len(trial.cells), 'cell')}"


def _caption(sweep, datasets):
    seeds = natural_order([cell.seed for cell in sweep.finished])
    splits = sorted({cell.judged_by for cell in sweep.finished})
    caption = f"Judged on the {listing(splits)} split, seed {listing(seeds)}. "
    if datasets:
        names = listing([dataset_label(dataset) for dataset in datasets])
        caption += (
            f"Each trial on {count(len(datasets), 'held-out data set')}: {names}. Chosen in each "
            "method: the smallest mean over them of the area under the training error."
        )
        return caption
    return f"{caption}Chosen in each method: the smallest area under the training error."


def _trials_each(sweep, methods):
    planned = {m: len(trials_of([c for c in sweep.cells if c.method == m])) for m in methods}
    if len(set(planned.values())) == 1:
        each = count(next(iter(planned.values())), "trial")
        return f"Every one of {count(len(methods), 'method')} has {each}."
    counts = [f"{method_look(m, methods).label} {trials}" for m, trials in planned.items()]
    return f"Methods have different numbers of trials: {listing(counts)}."


def _choice(label, best, begun, planned):
    """One sentence; a choice at the end of its range may not be the best there is."""
    whole = [trial for trial in begun if trial.finished]
    so_far = f" (so far, of {len(whole)} of {len(planned)})" if len(whole) < len(planned) else ""
    text = f"{label}{so_far}: "
    parts, ends = [], []
    for axis in best.values:
        if axis not in _AXES:
            continue
        tried = natural_order([trial.values[axis] for trial in whole if axis in trial.values])
        tried.sort(key=float)
        if len(tried) < 2:
            continue
        value = best.values[axis]
        parts.append(f"{_AXES[axis]} {value}")
        if value in (tried[0], tried[-1]):
            ends.append(f"the {'lowest' if value == tried[0] else 'highest'} {_AXES[axis]} tried")
    text += ", ".join(parts) or "the only setting tried"
    return f"{text} ({', '.join(ends)})." if ends else f"{text}."
