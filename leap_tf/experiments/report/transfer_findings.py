"""What the transfer table shows, in sentences that follow from its numbers."""

import dataclasses
from collections.abc import Mapping, Sequence

from leap_tf.experiments.report import paper_transfer
from leap_tf.experiments.report.document import KeyFigure
from leap_tf.experiments.report.methods import method_look
from leap_tf.experiments.report.paper_transfer import dataset_label
from leap_tf.experiments.report.results import SweepResults
from leap_tf.experiments.report.statistics import Estimate, difference, is_settled
from leap_tf.experiments.report.transfer import (
    Harm,
    Transfers,
    harms,
    methods_of,
    over_datasets,
    shared_datasets,
    transfers,
)
from leap_tf.experiments.report.wording import (
    CLEAR,
    PERCENT,
    count,
    diverged_sentence,
    first_place,
    listing,
    number,
    order_against,
    ranked,
)

# Each measure that findings are about: its name, and what is behind a value and a difference.
_WORDS = {
    "area": ("area under the training error", "", ""),
    "error": ("test error", PERCENT, " points"),
}


def transfer_key_figures(sweep: SweepResults | None) -> list[KeyFigure]:
    """Returns the smallest mean area, Leap's and no pretraining's, and where pretraining hurts."""
    found = transfers(sweep) if sweep is not None else {}
    datasets = shared_datasets(found)
    areas = over_datasets(found, datasets, "area")
    order = ranked(areas)
    shown = [method for method in dict.fromkeys([*order[:1], "leap", "none"]) if method in order]
    figures = [
        KeyFigure(
            f"area under training error, {method_look(method, areas).label}",
            number(areas[method].mean),
            _place(areas[method], order.index(method) + 1, len(order), len(datasets)),
            method_look(method, areas).light,
        )
        for method in shown
    ]
    hurt, pairs = harms(found, "error")
    if pairs:
        figures.append(
            KeyFigure(
                "pretraining hurts, by test error",
                f"{sum(each.settled for each in hurt)} of {pairs}",
                "pairs of method and held-out data set where the seeds settle it; "
                f"{len(hurt)} of {pairs} higher at all",
            )
        )
    return figures


def _place(area, place, methods, datasets):
    error = area.standard_error
    spread = f" ± {number(error)} over {len(area.values)} seeds" if error is not None else ""
    return f"mean over {count(datasets, 'data set')}{spread}, place {place} of {methods}"


def transfer_findings(found: Transfers) -> list[str]:
    """Says which method is lowest, how Leap compares with each other one, and the paper's order."""
    datasets = shared_datasets(found)
    if not datasets:
        return ["No held-out data set is finished by every method that has begun."]
    labels = {method: method_look(method, methods_of(found)).label for method in methods_of(found)}
    over = f"over {count(len(datasets), 'held-out data set')}"
    findings, means = [], {}
    for measure, (what, unit, points) in _WORDS.items():
        of_methods = over_datasets(found, datasets, measure)
        means[measure] = {labels[method]: each for method, each in of_methods.items()}
        findings.append(first_place(means[measure], f"mean {what} {over}", unit, points))
    if "leap" in labels:
        findings += _leap_against_others(found, datasets, labels)
    for measure, (what, *_) in _WORDS.items():
        held = order_against(ranked(means[measure]), _their_order(datasets, measure, labels))
        if held:
            findings.append(f"By mean {what}: {held[0].lower()}{held[1:]}")
    findings.append(diverged_sentence(_diverged(found, labels)))
    return [finding for finding in findings if finding]


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far Leap is from another method in one measure.

    Attributes:
        over_datasets: Leap's mean over data sets minus the other's, seed by seed.
        by_dataset: the same over shared seeds, data set by data set.
    """

    over_datasets: Estimate
    by_dataset: Estimate

    @property
    def lower(self) -> int:
        """On how many data sets Leap is the lower one."""
        return sum(gap < 0 for gap in self.by_dataset.values.values())


def gaps_to_leap(found: Transfers, datasets: Sequence[str]) -> dict[str, dict[str, Gap]]:
    """Returns of each method but Leap, of area and test error, the gap; empty without Leap."""
    methods = methods_of(found)
    if "leap" not in methods:
        return {}
    return {
        other: {measure: _gap(found, datasets, other, measure) for measure in _WORDS}
        for other in methods
        if other != "leap"
    }


def _gap(found, datasets, other, measure):
    means = over_datasets(found, datasets, measure)
    single = {
        name: difference(
            getattr(found[name]["leap"], measure), getattr(found[name][other], measure)
        )
        for name in datasets
    }
    by_dataset = Estimate({name: gap.mean for name, gap in single.items() if gap.values})
    return Gap(difference(means["leap"], means[other]), by_dataset)


def harm_findings(found: Transfers) -> list[str]:
    """Says, measure by measure, on which data sets pretraining is worse than none."""
    labels = {method: method_look(method, methods_of(found)).label for method in methods_of(found)}
    sentences = []
    for measure, (what, *_) in _WORDS.items():
        hurt, pairs = harms(found, measure)
        if not pairs:
            continue
        every = count(pairs, "pair") + " of method and data set"
        if not hurt:
            sentences.append(f"By {what}, pretraining hurts in none of {every}.")
            continue
        text = f"By {what}, pretraining is worse than none in {len(hurt)} of {every}: "
        text += f"{_pairs(hurt, labels)}."
        settled = [each for each in hurt if each.settled]
        if all(len(each.gap.values) < 2 for each in hurt):
            sentences.append(f"{text} With one seed there is no telling whether that is chance.")
            continue
        text += f" All seeds agree, and {CLEAR}, in {len(settled)} of them"
        few = 0 < len(settled) < len(hurt)
        sentences.append(f"{text}: {_pairs(settled, labels)}." if few else f"{text}.")
    return sentences or ["There is no method to hold against no pretraining yet."]


def _leap_against_others(found, datasets, labels):
    """Says of each measure which methods Leap is below and above, and what the seeds settle."""
    compared = gaps_to_leap(found, datasets)
    sentences = []
    for measure, (what, *_) in _WORDS.items():
        gaps = {
            labels[method]: of_measures[measure]
            for method, of_measures in compared.items()
            if of_measures[measure].over_datasets.values
        }
        if not gaps:
            continue
        lower = [label for label, gap in gaps.items() if gap.over_datasets.mean < 0]
        others = [label for label, gap in gaps.items() if gap.over_datasets.mean >= 0]
        settled = [label for label, gap in gaps.items() if is_settled(gap.over_datasets)]
        everywhere = [label for label, gap in gaps.items() if is_settled(gap.by_dataset)]
        parts = [f"lower than {listing(lower)}"] if lower else []
        parts += [f"not lower than {listing(others)}"] if others else []
        sentences.append(
            f"By mean {what} on the same seeds, Leap is {listing(parts)}; "
            + (f"the seeds settle it for {listing(settled)}." if settled else "no gap is settled.")
            + (
                f" Data set by data set, it has the same sign on all of them for "
                f"{listing(everywhere)}, and {CLEAR}."
                if everywhere
                else ""
            )
        )
    return sentences


def _their_order(datasets: Sequence[str], measure: str, labels: Mapping[str, str]) -> list[str]:
    """Returns the labels of the paper's methods by its mean over the same data sets."""
    theirs = {method: paper_transfer.mean_over(datasets, method) for method in labels}
    figures = {method: row[measure] for method, row in theirs.items() if row}
    return [labels[method] for method in sorted(figures, key=lambda each: figures[each])]


def _diverged(found, labels):
    return {
        label: (
            sum(of[method].diverged for of in found.values() if method in of),
            sum(of[method].tasks for of in found.values() if method in of),
        )
        for method, label in labels.items()
    }


def _pairs(hurt: Sequence[Harm], labels: Mapping[str, str]) -> str:
    """Returns "HAT on MNIST and SVHN; Finetuning on CIFAR-100"."""
    by_method: dict[str, list[str]] = {}
    for each in hurt:
        by_method.setdefault(labels[each.method], []).append(dataset_label(each.dataset))
    return "; ".join(f"{label} on {listing(names)}" for label, names in by_method.items())
