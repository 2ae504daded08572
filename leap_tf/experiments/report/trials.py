"""The section on learning-rate trials: what was tried, on what, and what was chosen."""

from collections.abc import Sequence

from leap_tf.experiments.report.document import Block, Section, Table, Value
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.results import Cell, SweepResults, natural_order
from leap_tf.experiments.report.wording import count, listing, missing_notice, named, number


def chosen(cells: Sequence[Cell]) -> Cell | None:
    """Returns the trial with the smallest area under the training error, the first of equals.

    None if no trial has a finite one.
    """
    finite = [cell for cell in cells if cell.outcome["area_under_error"] is not None]
    return min(finite, key=lambda cell: cell.outcome["area_under_error"], default=None)


_AXES = {"batch": "meta-batch", "outer": "outer rate", "inner": "inner rate"}


def trials_section(sweep: SweepResults) -> Section:
    """Returns the section with all trials, those chosen in each method marked."""
    blocks: list[Block] = [*missing_notice(sweep.missing, len(sweep.cells))]
    methods = in_order(cell.method for cell in sweep.cells)
    findings = [_trials_each(sweep, methods)]
    axes = list(dict.fromkeys(axis for cell in sweep.cells for axis in cell.values))
    axes = [axis for axis in axes if axis not in ("method", "seed")]
    rows = []
    for method in methods:
        look = method_look(method, methods)
        cells = [cell for cell in sweep.finished if cell.method == method]
        best = chosen(cells)
        planned = sum(cell.method == method for cell in sweep.cells)
        if best is not None:
            findings.append(_choice(look.label, best, cells, planned))
        for cell in cells:
            marked = cell is best
            outcome = cell.outcome
            error = None if outcome["error"] is None else 100 * outcome["error"]
            rows.append(
                (
                    named(look.label, look.light),
                    *(Value(cell.values.get(axis, "–")) for axis in axes),
                    Value(number(outcome["area_under_error"]), best=marked),
                    Value(number(error)),
                    Value(f"{len(outcome['diverged'])} of {len(outcome['tasks'])}"),
                    Value("✓ chosen" if marked else "", numeric=False),
                )
            )
    if rows:
        header = (
            "method", *(_AXES.get(axis, axis) for axis in axes), "validation area, 0–100",
            "validation error, %", "diverged tasks", "",
        )  # fmt: skip
        seeds = natural_order([cell.seed for cell in sweep.finished])
        splits = sorted({str(cell.judged["split"]) for cell in sweep.finished})
        caption = (
            f"Judged on the {listing(splits)} split, seed {listing(seeds)}. Chosen in each method: "
            "the smallest area under the training error."
        )
        blocks.append(Table(caption, header, tuple(rows)))
    return Section("rates", "Learning-rate trials", tuple(findings), tuple(blocks))


def _trials_each(sweep, methods):
    planned = {m: sum(cell.method == m for cell in sweep.cells) for m in methods}
    if len(set(planned.values())) == 1:
        each = count(next(iter(planned.values())), "trial")
        return f"Every one of {count(len(methods), 'method')} has {each}."
    counts = [f"{method_look(m, methods).label} {trials}" for m, trials in planned.items()]
    return f"Methods have different numbers of trials: {listing(counts)}."


def _choice(label, best, cells, planned):
    """One sentence; a choice at the end of its range may not be the best there is."""
    so_far = f" (so far, of {len(cells)} of {planned})" if len(cells) < planned else ""
    text = f"{label}{so_far}: "
    parts, ends = [], []
    for axis in best.values:
        if axis not in _AXES:
            continue
        tried = natural_order([cell.values[axis] for cell in cells if axis in cell.values])
        tried.sort(key=float)
        if len(tried) < 2:
            continue
        value = best.values[axis]
        parts.append(f"{_AXES[axis]} {value}")
        if value in (tried[0], tried[-1]):
            ends.append(f"the {'lowest' if value == tried[0] else 'highest'} {_AXES[axis]} tried")
    text += ", ".join(parts) or "the only setting tried"
    return f"{text} ({', '.join(ends)})." if ends else f"{text}."
