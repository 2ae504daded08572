"""The table of methods at twenty pretraining alphabets or more, and the figures above it all."""

from collections.abc import Mapping, Sequence

from leap_tf.experiments.plots import standard_error
from leap_tf.experiments.report import figures, paper
from leap_tf.experiments.report.checks import ResultsError
from leap_tf.experiments.report.document import (
    Block,
    Details,
    KeyFigure,
    Picture,
    Prose,
    Section,
    Table,
    Value,
)
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.results import Cell, SweepResults, natural_order
from leap_tf.experiments.report.statistics import Summary, summarise
from leap_tf.experiments.report.wording import (
    PERCENT,
    count,
    diverged_sentence,
    emphasised,
    first_place,
    missing_notice,
    named,
    number,
    order_against,
    per_seed,
    plus_minus,
    ranked,
)

ENOUGH_ALPHABETS = 20


def by_seed(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Returns cells by their seed, in the seeds' order.

    Raises:
        ResultsError: two cells of the same configuration have the same seed.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        if cell.seed in found:
            raise ResultsError(
                f"{found[cell.seed].name} and {cell.name} are the same configuration with the "
                f"same seed, {cell.seed}. Give the sweep an axis that tells them apart."
            )
        found[cell.seed] = cell
    return {seed: found[seed] for seed in natural_order(list(found))}


def at_alphabets(sweep: SweepResults, alphabets: int) -> list[Cell]:
    """Returns finished cells of a number of pretraining alphabets, and those that use none."""
    return [
        cell
        for cell in sweep.finished
        if cell.alphabets == alphabets or (cell.method == "none" and cell.alphabets == 0)
    ]


def summaries(sweep: SweepResults, alphabets: int) -> dict[str, Summary]:
    """Returns the summary of each method that has finished cells at a number of alphabets."""
    cells = at_alphabets(sweep, alphabets)
    return {
        method: summarise(
            {
                seed: cell.outcome
                for seed, cell in by_seed([c for c in cells if c.method == method]).items()
            }
        )
        for method in in_order(cell.method for cell in cells)
    }


def enough(sweep: SweepResults) -> list[int]:
    """Returns the numbers of pretraining alphabets, twenty or more, that cells are finished for."""
    present = {cell.alphabets for cell in sweep.finished if cell.alphabets is not None}
    return sorted(each for each in present if each >= ENOUGH_ALPHABETS)


def headline_section(sweep: SweepResults) -> Section:
    """Returns the section that compares methods on held-out alphabets."""
    notices = missing_notice(sweep.missing, len(sweep.cells))
    numbers = enough(sweep)
    if not numbers:
        finding = f"No finished cell has {ENOUGH_ALPHABETS} pretraining alphabets or more."
        return Section("methods", "Methods compared", (finding,), tuple(notices))
    blocks: list[Block] = [*notices]
    for alphabets in numbers:
        blocks += _blocks(sweep, alphabets)
    blocks.append(Prose(f"{paper.PROTOCOL} Source: {paper.SOURCE}."))
    findings = _findings(summaries(sweep, numbers[0]), numbers[0])
    return Section("methods", "Methods compared", tuple(findings), tuple(blocks))


def key_figures(sweep: SweepResults | None) -> list[KeyFigure]:
    """Returns the lowest held-out error, its distance to no pretraining, and Leap's own place."""
    if sweep is None or not enough(sweep):
        return []
    alphabets = enough(sweep)[0]
    found = summaries(sweep, alphabets)
    order = ranked({method: summary.error for method, summary in found.items()})
    shown = [method for method in dict.fromkeys([*order[:1], "leap", "none"]) if method in order]
    return [
        KeyFigure(
            label=f"held-out error, {method_look(method).label}",
            value=f"{number(found[method].error.mean)}{PERCENT}",
            note=_place(method, order, found),
            colour=method_look(method, found).light,
        )
        for method in shown
    ]


def _place(method, order, found):
    error = found[method].error.standard_error
    spread = f"± {number(error)} over {len(found[method].error.values)} seeds" if error else ""
    place = f"place {order.index(method) + 1} of {len(order)}"
    return ", ".join(part for part in (spread, place) if part)


def _findings(found: Mapping[str, Summary], alphabets: int) -> list[str]:
    labels = {method: method_look(method, found).label for method in found}
    errors = {labels[method]: summary.error for method, summary in found.items()}
    order = ranked(errors)
    findings = [first_place(errors, "held-out error", PERCENT, " points")]
    if "none" in found and found["none"].error.values:
        fresh = labels["none"]
        place = order.index(fresh)
        findings.append(
            f"Of {count(len(order) - 1, 'pretrained method')}, {place} "
            f"{'has' if place == 1 else 'have'} a lower held-out error than no pretraining "
            f"({plus_minus(errors[fresh])}{PERCENT})."
        )
    reference = [
        labels[method]
        for method in sorted(paper.TABLE_1, key=lambda each: _theirs(each, alphabets))
        if method in found and errors[labels[method]].values
    ]
    findings.append(order_against(order, reference))
    areas = ranked({labels[method]: summary.area for method, summary in found.items()})
    if areas:
        also = "also " if areas[0] == order[0] else ""
        findings.append(f"The smallest area under the training error {also}goes to {areas[0]}.")
    lost = {labels[each]: (summary.diverged, summary.tasks) for each, summary in found.items()}
    findings.append(diverged_sentence(lost))
    return [finding for finding in findings if finding]


def _theirs(method, alphabets):
    errors = paper.TABLE_1[method]
    return errors[min(errors, key=lambda each: abs(each - alphabets))]


def _blocks(sweep, alphabets) -> list[Block]:
    found = summaries(sweep, alphabets)
    cells = at_alphabets(sweep, alphabets)
    seeds = natural_order([cell.seed for cell in cells])
    best_error = emphasised({each: summary.error.mean for each, summary in found.items()})
    best_area = emphasised({each: summary.area.mean for each, summary in found.items()})
    best_steps = emphasised({each: summary.capped_steps.mean for each, summary in found.items()})
    target, steps = cells[0].judged["target_error"], cells[0].judged["steps"]
    rows = tuple(
        (
            named(method_look(method, found).label, method_look(method, found).light),
            Value(plus_minus(summary.error), per_seed(summary.error), method in best_error),
            Value(plus_minus(summary.area), per_seed(summary.area), method in best_area),
            Value(
                plus_minus(summary.steps, 0),
                f"{summary.reached} of {summary.tasks} tasks",
                method in best_steps,
            ),
            Value(f"{summary.diverged} of {summary.tasks}"),
            Value(number(paper.TABLE_1.get(method, {}).get(alphabets)), muted=True),
        )
        for method, summary in found.items()
    )
    tasks = sorted({len(cell.outcome["tasks"]) for cell in cells})
    caption = (
        f"Held-out alphabets after {steps} gradient steps, {alphabets} pretraining alphabets: "
        f"{' or '.join(map(str, tasks))} tasks at each of {count(len(seeds), 'seed')} "
        f"({', '.join(seeds)}). Mean ± standard error over the seeds' means; beneath, each seed's. "
        f"Batch norm {_policy(cells)}. Steps are a mean over the tasks that come to "
        f"{100 * target:g} % training error; best is judged with the others counted at all "
        f"{steps} steps. Lower is better throughout."
    )
    header = (
        "method",
        "held-out error, %",
        "area under training error, 0–100",
        f"steps to {100 * target:g} % training error",
        "diverged tasks",
        f"paper, {alphabets} alphabets: error, %",
    )
    bars = figures.errors_as_bars(
        [
            (method_look(method, found), found[method].error)
            for method in ranked({each: summary.error for each, summary in found.items()})
        ],
        "held-out error, % (bar: mean over seeds; line: ± 1 standard error; dots: seeds)",
    )
    return [
        Table(caption, header, rows),
        Picture(
            f"methods_{alphabets}",
            bars,
            f"Held-out error at {alphabets} pretraining alphabets.",
            "Bars of held-out error: "
            + ", ".join(
                f"{method_look(each, found).label} {plus_minus(summary.error)} %"
                for each, summary in found.items()
            ),
        ),
        Details("Standard errors over all tasks", (_over_tasks(found),)),
    ]


def _over_tasks(found):
    rows = tuple(
        (
            named(method_look(method, found).label, method_look(method, found).light),
            Value(number(sum(errors) / len(errors) if errors else None)),
            Value(number(standard_error(errors), 2)),
            Value(str(len(errors))),
            Value(plus_minus(summary.capped_steps, 0)),
        )
        for method, summary in found.items()
        for errors in [summary.task_errors]
    )
    caption = (
        "Over the tasks of all seeds at once. Tasks of one seed share an initialization, so these "
        "standard errors are too small for a comparison of methods. The last column counts tasks "
        "that do not reach the target with all their steps."
    )
    header = ("method", "held-out error, %", "standard error", "tasks", "steps, capped")
    return Table(caption, header, rows)


def _policy(cells):
    policies = {bool(cell.judged["transductive"]) for cell in cells}
    words = {True: "transductive", False: "inductive"}
    text = " or ".join(words[each] for each in sorted(policies))
    flags = " or ".join(str(each).lower() for each in sorted(policies))
    return f"{text} (“transductive”: {flags})"
