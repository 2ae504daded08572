"""Sections made of curves: error over alphabets, learning on held-out tasks, meta-training."""

from collections.abc import Sequence

import numpy as np

from leap_tf.experiments.report import figures, paper
from leap_tf.experiments.report.document import Details, Picture, Section, Table, Value
from leap_tf.experiments.report.headline import at_alphabets, by_seed, enough, summaries
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.results import Cell, SweepResults
from leap_tf.experiments.report.statistics import (
    Curve,
    adaptation_curve,
    metric_curve,
    over_gradient_steps,
)
from leap_tf.experiments.report.wording import (
    PERCENT,
    change,
    count,
    diverged_sentence,
    emphasised,
    listing,
    named,
    number,
    plus_minus,
)

WINDOW = 5  # batches or meta-steps in the running mean of training curves


def alphabets_section(sweep: SweepResults) -> Section | None:
    """Returns held-out error against pretraining alphabets; None below two numbers of them."""
    numbers = sorted({cell.alphabets for cell in sweep.finished if cell.alphabets})
    if len(numbers) < 2:
        return None
    methods = in_order(cell.method for cell in sweep.finished)
    found = {n: summaries(sweep, n) for n in numbers}
    ours, changes, falling, rows = [], [], [], []
    for method in methods:
        look = method_look(method, methods)
        measured = {n: found[n][method].error for n in numbers if method in found[n]}
        measured = {n: estimate for n, estimate in measured.items() if estimate.values}
        means = np.array([estimate.mean for estimate in measured.values()])
        spread = np.array([estimate.standard_error or 0.0 for estimate in measured.values()])
        if len(measured) > 1 or method == "none":
            x = np.array(list(measured))
            if len(measured) == 1:  # nothing was pretrained, so the number makes no difference
                x = np.array(numbers)
                means, spread = (np.repeat(each, len(numbers)) for each in (means, spread))
            runs = np.stack([means, means]) if spread.any() else means[None]
            ours.append((look, Curve(x, means, spread, runs)))
        if len(measured) > 1 and method != "none":
            falling.append(bool(means[-1] < means[0]))
            own = min(measured), max(measured)
            ends = "" if own == (numbers[0], numbers[-1]) else f" ({own[0]} to {own[1]} alphabets)"
            changes.append(f"{look.label} {change(means[0], means[-1], unit=PERCENT)}{ends}")
        rows.append(
            (
                named(look.label, look.light),
                *(
                    Value(
                        plus_minus(measured[n]) if n in measured else "–",
                        best=method in _lowest(found[n]),
                    )
                    for n in numbers
                ),
            )
        )
    theirs = [
        (method_look(method), _exact(np.array(list(errors)), np.array(list(errors.values()))))
        for method, errors in paper.TABLE_1.items()
    ]
    lost = {
        method_look(method, methods).label: (
            sum(found[n][method].diverged for n in numbers if method in found[n]),
            sum(found[n][method].tasks for n in numbers if method in found[n]),
        )
        for method in methods
    }
    sentences = (
        f"More pretraining alphabets come with a lower held-out error for {sum(falling)} of "
        f"{count(len(falling), 'method')}."
        if falling
        else "No method has been pretrained on different numbers of alphabets.",
        f"From {numbers[0]} to {count(numbers[-1], 'alphabet')}: {'; '.join(changes)}."
        if changes
        else "",
        diverged_sentence(lost),
    )
    header = ("method", *(count(n, "alphabet") for n in numbers))
    caption = "Held-out error in %, mean ± standard error over seeds."
    return Section(
        "alphabets",
        "Error against pretraining alphabets",
        tuple(sentence for sentence in sentences if sentence),
        (
            Picture(
                "alphabets",
                figures.errors_over_alphabets(ours, theirs),
                "Held-out error against the number of pretraining alphabets, band ± 1 standard "
                f"error over seeds; at the right the paper's table 1. {paper.PROTOCOL}",
                "Curves of held-out error against the number of pretraining alphabets",
            ),
            Table(caption, header, tuple(rows)),
            Details("The whole of the paper's table 1", (_paper_table(),)),
        ),
    )


def learning_section(sweep: SweepResults) -> Section | None:
    """Returns learning curves on held-out tasks; None without cells of twenty alphabets."""
    if not enough(sweep):
        return None
    alphabets = enough(sweep)[0]
    cells = at_alphabets(sweep, alphabets)
    methods = in_order(cell.method for cell in cells)
    panels: dict[str, list] = {"training_errors": [], "training_losses": []}
    for method in methods:
        outcomes = [c.outcome for c in by_seed(_of(cells, method)).values()]
        for name, drawn in panels.items():
            curve = adaptation_curve(outcomes, name, WINDOW)
            if curve is not None:
                drawn.append((method_look(method, methods), curve))
    errors = panels["training_errors"]
    if not errors:
        return None
    length = min(len(curve.x) for _, curve in errors)
    leaders: dict[str, list[str]] = {}
    for step in dict.fromkeys([length // 10, length // 2, length - 1]):
        look, curve = min(errors, key=lambda pair: pair[1].mean[step])
        at_step = f"{step} steps ({100 * curve.mean[step]:.0f}{PERCENT})"
        leaders.setdefault(look.label, []).append(at_step)
    sentences = [f"{label} after {listing(steps)}" for label, steps in leaders.items()]
    return Section(
        "learning",
        "Learning on held-out tasks",
        (f"Lowest training error on held-out tasks: {'; '.join(sentences)}.",),
        (
            Picture(
                "learning",
                figures.training_curves(
                    errors,
                    panels["training_losses"],
                    ("Training error", "Training loss"),
                    "gradient step",
                ),
                f"Adaptation to held-out alphabets, {alphabets} pretraining alphabets: mean over "
                f"tasks, running mean of {WINDOW} batches; band ± 1 standard error over seeds' "
                "means. Diverged tasks are left out.",
                "Curves of training error and training loss over gradient steps, by method",
            ),
        ),
    )


def meta_training_section(sweep: SweepResults) -> Section | None:
    """Returns curves over meta-training; None if no cell of twenty alphabets made any."""
    if not enough(sweep):
        return None
    alphabets = enough(sweep)[0]
    cells = [cell for cell in at_alphabets(sweep, alphabets) if cell.metrics]
    methods = in_order(cell.method for cell in cells)
    panels: dict[str, list] = {"loss": [], "val_auc": []}
    sentences, falling, made = [], [], []
    for method in methods:
        runs = [cell.metrics for cell in by_seed(_of(cells, method)).values()]
        for name, drawn in panels.items():
            curve = metric_curve(runs, name, WINDOW if name == "loss" else 1)
            if curve is None:
                continue
            drawn.append((method_look(method, methods), over_gradient_steps(curve, runs[0])))
            if name == "loss":
                tenth = max(len(curve.x) // 10, 1)
                ends = curve.mean[:tenth].mean(), curve.mean[-tenth:].mean()
                falling.append(bool(ends[1] < ends[0]))
                sentences.append(f"{method_look(method, methods).label} {change(*ends, digits=2)}")
                made.append(int(curve.x[-1]))
    if not panels["loss"]:
        return None
    steps = " or ".join(f"{each:,}" for each in sorted(set(made)))
    skipped = {
        method_look(method, methods).label: round(
            sum(entry.get("tasks_skipped", 0) for c in _of(cells, method) for entry in c.metrics)
        )
        for method in methods
    }
    lost = [f"{label} {tasks}" for label, tasks in skipped.items() if tasks]
    findings = [
        "From the first to the last tenth of meta-training, the mean training loss along the "
        f"paths falls for {sum(falling)} of {count(len(falling), 'method')}.",
        f"{'; '.join(sentences)}.",
        f"Diverged training tasks, left out of meta-gradients: {listing(lost)}." if lost else "",
    ]
    return Section(
        "meta-training",
        "Meta-training",
        tuple(finding for finding in findings if finding),
        (
            Picture(
                "meta_training",
                figures.training_curves(
                    panels["loss"],
                    panels["val_auc"],
                    ("Training loss along the paths", "Area under training error, validation"),
                    "gradient step of meta-training",
                    points=True,
                ),
                f"{steps} meta-steps, {alphabets} pretraining alphabets; mean over seeds, band ± 1 "
                f"standard error, losses as a running mean of {WINDOW}. Methods that "
                "take fewer gradient steps a task average their loss over shorter paths, so levels "
                "at the left compare only between equal lengths.",
                "Curves of training loss and validation area over gradient steps, by method",
            ),
        ),
    )


def _of(cells: Sequence[Cell], method: str) -> list[Cell]:
    return [cell for cell in cells if cell.method == method]


def _lowest(found):
    return emphasised({method: summary.error.mean for method, summary in found.items()})


def _exact(x, values):
    return Curve(x, values, np.zeros(len(x)), values[None])


def _paper_table():
    methods = in_order(paper.TABLE_1)
    rows = tuple(
        (
            Value(str(alphabets)),
            *(Value(number(paper.TABLE_1[method][alphabets])) for method in methods),
        )
        for alphabets in paper.ALPHABETS
    )
    header = ("alphabets", *(method_look(method).label for method in methods))
    return Table(f"Held-out error in %. {paper.SOURCE}. {paper.PROTOCOL}", header, rows)
