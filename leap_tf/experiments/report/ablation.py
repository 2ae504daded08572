"""The section on Leap's switches: distance, loss in the path, stabilizer (figure 5)."""

import itertools
from collections.abc import Mapping

from leap_tf.experiments.report import figures
from leap_tf.experiments.report.document import Block, Details, Picture, Section, Table, Value
from leap_tf.experiments.report.headline import by_seed
from leap_tf.experiments.report.methods import ablation_look
from leap_tf.experiments.report.results import SweepResults, natural_order
from leap_tf.experiments.report.statistics import (
    Estimate,
    Summary,
    difference,
    is_settled,
    metric_curve,
    summarise,
)
from leap_tf.experiments.report.wording import (
    PERCENT,
    count,
    diverged_sentence,
    emphasised,
    first_place,
    missing_notice,
    named,
    per_seed,
    plus_minus,
)

# Each switch: what it is called when it is the paper's full method, and when it is not.
SWITCHES = {
    "distance": {"length": "path length", "energy": "path energy"},
    "loss": {"loss": "the loss in the path", "noloss": "no loss in the path"},
    "stabilizer": {"stab": "the stabilizer", "nostab": "no stabilizer"},
}
WINDOW = 5  # meta-steps in the running mean of losses; every meta-step is of other tasks
Configuration = tuple[str, ...]


def ablation_section(sweep: SweepResults) -> Section:
    """Returns the section that compares configurations of Leap."""
    found: dict[Configuration, Summary] = {}
    curves = []
    for configuration in itertools.product(*SWITCHES.values()):
        cells = by_seed(
            [
                cell
                for cell in sweep.finished
                if tuple(cell.values.get(switch) for switch in SWITCHES) == configuration
            ]
        )
        if not cells:
            continue
        found[configuration] = summarise({seed: cell.outcome for seed, cell in cells.items()})
        curve = metric_curve([cell.metrics for cell in cells.values()], "loss", WINDOW)
        if curve is not None:
            curves.append((ablation_look(*configuration), curve))
    blocks: list[Block] = [*missing_notice(sweep.missing, len(sweep.cells))]
    if not found:
        return Section("ablation", "Ablation", ("No cell is finished.",), tuple(blocks))
    steps = sweep.finished[0].judged["steps"]
    blocks.append(_bars(found, steps))
    if curves:
        blocks.append(
            Picture(
                "ablation_training",
                figures.loss_curves(curves),
                "Mean training loss along the paths over meta-steps (the paper's figure 5), "
                f"running mean of {WINDOW}; mean over seeds, band ± 1 standard error. Dashed: no "
                "stabilizer.",
                "Curves of training loss over meta-steps, one for each configuration",
            )
        )
    blocks.append(Details("Numbers", (_table(found),)))
    return Section("ablation", "Ablation of Leap", tuple(_findings(found)), tuple(blocks))


def effect(errors: Mapping[Configuration, Estimate], switch: int) -> Estimate:
    """Returns what leaving the full method in one switch costs, all others held fixed.

    Args:
        errors: from each configuration to its held-out error.
        switch: which of `SWITCHES`.

    Returns:
        Of each seed, the mean over pairs of configurations that differ in the switch alone, of
        the error of the second setting minus that of the first. Only seeds that have all pairs.
    """
    first, second = list(list(SWITCHES.values())[switch])
    gaps = []
    for configuration, error in errors.items():
        other = (*configuration[:switch], second, *configuration[switch + 1 :])
        if configuration[switch] == first and other in errors:
            gaps.append(difference(errors[other], error))
    if not gaps:
        return Estimate({})
    seeds = set.intersection(*(set(gap.values) for gap in gaps))
    return Estimate(
        {
            seed: sum(gap.values[seed] for gap in gaps) / len(gaps)
            for seed in natural_order(list(seeds))
        }
    )


def _findings(found):
    labels = {each: ablation_look(*each).label for each in found}
    errors = {each: summary.error for each, summary in found.items()}
    named_errors = {f"“{labels[each]}”": error for each, error in errors.items()}
    findings = [first_place(named_errors, "held-out error", PERCENT, " points")]
    for index, names in enumerate(SWITCHES.values()):
        gap = effect(errors, index)
        if not gap.values:
            continue
        with_it, without = names.values()
        size = plus_minus(Estimate({seed: abs(v) for seed, v in gap.values.items()}))
        if is_settled(gap):
            direction = "higher" if gap.mean > 0 else "lower"
            findings.append(
                f"With {without} instead of {with_it}, the held-out error is {size} points "
                f"{direction} on average over the other switches."
            )
        else:
            findings.append(
                f"Between {with_it} and {without}, {count(len(gap.values), 'seed')} "
                f"{'does' if len(gap.values) == 1 else 'do'} not settle which is better "
                f"(difference {plus_minus(gap)} points)."
            )
    lost = {labels[each]: (summary.diverged, summary.tasks) for each, summary in found.items()}
    return [finding for finding in [*findings, diverged_sentence(lost)] if finding]


def _bars(found, steps):
    rows = [(ablation_look(*each), summary.error) for each, summary in found.items()]
    return Picture(
        "ablation",
        figures.errors_as_bars(
            rows, "held-out error, % (bar: mean over seeds; line: ± 1 standard error; dots: seeds)"
        ),
        f"Final held-out error after {steps} gradient steps, by configuration. Pale hue: no loss "
        "in the path; see-through: no stabilizer.",
        "Bars of held-out error: "
        + ", ".join(f"{look.label} {plus_minus(error)} %" for look, error in rows),
    )


def _table(found):
    best_error = emphasised({each: summary.error.mean for each, summary in found.items()})
    best_area = emphasised({each: summary.area.mean for each, summary in found.items()})
    rows = tuple(
        (
            named(ablation_look(*each).label, ablation_look(*each).light),
            Value(plus_minus(summary.error), per_seed(summary.error), each in best_error),
            Value(plus_minus(summary.area), per_seed(summary.area), each in best_area),
            Value(f"{summary.diverged} of {summary.tasks}"),
        )
        for each, summary in found.items()
    )
    header = ("configuration", "held-out error, %", "area, 0–100", "diverged tasks")
    return Table("Mean ± standard error over seeds; beneath, each seed's.", header, rows)
