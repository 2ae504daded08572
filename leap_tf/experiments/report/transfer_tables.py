"""The section on means over held-out data sets: which pretraining helps, and how Leap compares."""

from collections.abc import Mapping, Sequence

from leap_tf.experiments.report import paper_transfer, transfer_figures
from leap_tf.experiments.report.document import Block, Picture, Prose, Section, Table, Value
from leap_tf.experiments.report.methods import method_look
from leap_tf.experiments.report.paper_transfer import dataset_label
from leap_tf.experiments.report.results import SweepResults, natural_order
from leap_tf.experiments.report.statistics import Estimate, is_settled
from leap_tf.experiments.report.transfer import (
    Transfers,
    methods_of,
    over_datasets,
    relative_to_fresh,
    shared_datasets,
    transfers,
)
from leap_tf.experiments.report.transfer_findings import gaps_to_leap, transfer_findings
from leap_tf.experiments.report.wording import (
    CLEAR,
    NBSP,
    PERCENT,
    count,
    duration,
    emphasised,
    listing,
    missing_notice,
    named,
    number,
    per_seed,
    plus_minus,
)

MEASURES = {
    "error": f"test{NBSP}error,{PERCENT}",
    "training_error": f"training error,{PERCENT}",
    "area": f"area under training error,{NBSP}0–100",
}
PAPER = "paper: test / train / area"
PRETRAINING = "pretraining steps"
STEPS = (
    "Pretraining steps are gradient steps on the other data sets, in the mean of a run; methods "
    "differ in them."
)
_TITLE = "Which pretraining helps?"
_TIME = (
    "Wall time is that of the meta-steps of one run, judging left out; it is indicative only, "
    "because runs share a machine with each other and with other work."
)
_OF_HAT = (
    "HAT's training batches are measured while its attention is annealed, so its training error "
    "and area are those of a network that is only partly masked; its test error has hard attention."
)


def transfer_section(sweep: SweepResults) -> Section:
    """Returns the section with each method's means over held-out data sets."""
    blocks: list[Block] = [*missing_notice(sweep.missing, len(sweep.cells))]
    found = transfers(sweep)
    if not found:
        return Section("transfer", _TITLE, ("No cell is finished.",), tuple(blocks))
    datasets = shared_datasets(found)
    if datasets:
        blocks += [
            _means(sweep, found, datasets),
            *_overview(found, datasets),
            *_comparison(found, datasets),
        ]
    blocks.append(Prose(f"{paper_transfer.PROTOCOL} Source: {paper_transfer.SOURCE}."))
    return Section("transfer", _TITLE, tuple(transfer_findings(found)), tuple(blocks))


def _means(sweep, found: Transfers, datasets: Sequence[str]) -> Table:
    methods = methods_of(found)
    of_measures = {
        name: over_datasets(found, datasets, name)
        for name in (*MEASURES, "gradient_steps", "seconds")
    }
    rows = tuple(
        (
            named(method_look(method, methods).label, method_look(method, methods).light),
            *measured({name: of_measures[name] for name in MEASURES}, method),
            Value(steps_made(of_measures["gradient_steps"][method])),
            Value(wall_time(of_measures["seconds"][method])),
            papers(paper_transfer.mean_over(datasets, method)),
        )
        for method in methods
    )
    seeds = natural_order([cell.seed for cell in sweep.finished])
    names = listing([dataset_label(name) for name in datasets])
    each_seed = f"{'at' if len(seeds) == 1 else 'at each of'} {count(len(seeds), 'seed')}"
    caption = (
        f"Mean over {count(len(datasets), 'held-out data set')} ({names}), {each_seed} "
        f"({', '.join(seeds)}); mean ± standard error over the seeds' "
        "means; beneath, each seed's. Only data sets that every method has finished; a seed counts "
        "for a method when it has all of them. At the right, the paper's means over the same data "
        f"sets. {STEPS} {_TIME} Lower is better throughout.{measured_otherwise(methods)}"
    )
    header = ("method", *MEASURES.values(), PRETRAINING, "meta-training, mean a run", PAPER)
    return Table(caption, header, rows)


def _overview(found: Transfers, datasets: Sequence[str]) -> list[Block]:
    """The picture of every method relative to no pretraining; none without that."""
    measures = {"area": "Area under training error", "error": "Test error"}
    drawn: dict[str, list[tuple[str, Mapping[str, Estimate]]]] = {}
    for measure in measures:
        drawn[measure] = [
            (
                dataset_label(dataset),
                relative_to_fresh({m: getattr(each, measure) for m, each in of_methods.items()}),
            )
            for dataset, of_methods in found.items()
        ]
        mean = relative_to_fresh(over_datasets(found, datasets, measure))
        drawn[measure].append((f"mean over {len(datasets)}", mean))
    if not any(ratios for rows in drawn.values() for _, ratios in rows):
        return []
    looks = {method: method_look(method, methods_of(found)) for method in methods_of(found)}
    described = ", ".join(
        f"{looks[method].label} {plus_minus(ratio, 2)}"
        for method, ratio in drawn["area"][-1][1].items()
    )
    return [
        Picture(
            "relative",
            transfer_figures.relative_to_no_pretraining(drawn, measures, looks),
            "Divided by the same of no pretraining, seed by seed: left of the line, pretraining "
            "helps; right of it, it hurts. Line: ± 1 standard error over seeds. The last row is of "
            "the means over data sets.",
            "Dots of each method relative to no pretraining, by data set; of the mean area: "
            f"{described or 'none yet'}",
        )
    ]


def _comparison(found: Transfers, datasets: Sequence[str]) -> list[Block]:
    """The table of Leap's distance to every other method; none without Leap and another."""
    methods = methods_of(found)
    compared = gaps_to_leap(found, datasets)
    rows = tuple(
        (
            named(method_look(method, methods).label, method_look(method, methods).light),
            *(value for gap in of_measures.values() for value in _gap(gap)),
        )
        for method, of_measures in compared.items()
    )
    if not rows:
        return []
    header = (
        "Leap minus",
        "area under training error",
        "Leap is lower on",
        "test error, points",
        "Leap is lower on",
    )
    caption = (
        "Leap's mean over data sets minus the other method's, on the same seeds: below zero, Leap "
        f"is better. Settled: all seeds agree, and {CLEAR}. Beside it, on how many data sets "
        "Leap's mean over seeds is the lower."
    )
    return [Table(caption, header, rows)]


def _gap(gap):
    seeds = count(len(gap.over_datasets.values), "seed")
    verdict = "settled" if is_settled(gap.over_datasets) else f"not settled by {seeds}"
    minus = plus_minus(gap.over_datasets).replace("-", "−")
    yield Value(minus, verdict if gap.over_datasets.values else "")
    yield Value(f"{gap.lower} of {count(len(gap.by_dataset.values), 'data set')}")


def measured(of_measures: Mapping[str, Mapping[str, Estimate]], method: str) -> list[Value]:
    """Returns a method's cells, one a measure, each marked if no other method's is as low.

    Args:
        of_measures: from each measure to the estimate of every method.
        method: whose cells.
    """
    return [
        Value(
            plus_minus(of_methods[method]),
            per_seed(of_methods[method]),
            len(of_methods) > 1
            and method in emphasised({name: each.mean for name, each in of_methods.items()}),
        )
        for of_methods in of_measures.values()
    ]


def wall_time(seconds: Estimate) -> str:
    """Returns a mean wall time as text; a dash for a method that has none."""
    return duration(seconds.mean) if seconds.values else "–"


def steps_made(steps: Estimate) -> str:
    """Returns a mean number of gradient steps as text; a dash for a method that made none."""
    return f"{steps.mean:,.0f}" if steps.values else "–"


def measured_otherwise(methods: Sequence[str]) -> str:
    """Says what is peculiar to the training error of a method, with a space before it."""
    return f" {_OF_HAT}" if "hat" in methods else ""


def papers(row: Mapping[str, float]) -> Value:
    """Returns the cell with the paper's three figures; a dash if the row is empty."""
    text = " / ".join(number(row[measure]) for measure in paper_transfer.MEASURES) if row else "–"
    return Value(text, muted=True)
