"""The section with the whole transfer table, every held-out data set beside the paper's table 3."""

from collections.abc import Mapping

from leap_tf.experiments.report import paper_transfer
from leap_tf.experiments.report.document import Details, Section, Table, Value
from leap_tf.experiments.report.methods import method_look
from leap_tf.experiments.report.paper_transfer import dataset_label, dataset_order
from leap_tf.experiments.report.results import SweepResults
from leap_tf.experiments.report.transfer import (
    LAST_BATCHES,
    Transfer,
    Transfers,
    methods_of,
    transfers,
)
from leap_tf.experiments.report.transfer_findings import harm_findings
from leap_tf.experiments.report.transfer_tables import (
    MEASURES,
    PAPER,
    PRETRAINING,
    STEPS,
    measured,
    measured_otherwise,
    papers,
    steps_made,
    wall_time,
)
from leap_tf.experiments.report.wording import named


def datasets_section(sweep: SweepResults) -> Section | None:
    """Returns the section with every held-out data set; None as long as no cell is finished."""
    found = transfers(sweep)
    if not found:
        return None
    return Section(
        "datasets",
        "Data set by data set: does any pretraining hurt?",
        tuple(harm_findings(found)),
        (
            _whole_table(sweep, found),
            Details("The whole of the paper's table 3", (_paper_table(),)),
        ),
    )


def _whole_table(sweep, found: Transfers) -> Table:
    rows: list[tuple[Value, ...]] = []
    held_out = {str(cell.held_out) for cell in sweep.cells}
    for dataset in dataset_order([*held_out, *paper_transfer.TABLE_3]):
        if dataset in found:
            rows += _rows_of(dataset, found[dataset], methods_of(found))
        elif dataset in held_out:
            rows.append((Value(dataset_label(dataset), "not finished"),))
        else:
            why = paper_transfer.UNOBTAINABLE.get(dataset, "is not part of this sweep")
            rows.append((Value(dataset_label(dataset), why),))
    caption = (
        "Mean ± standard error over seeds; beneath, each seed's. Test error is on the data set's "
        f"test images, training error the mean over the last {LAST_BATCHES} training batches. "
        "Parameters are the numbers in all trainable variables of the model that is adapted; those "
        "of HAT and Progressive Nets include the heads of all tasks, and of Progressive Nets all "
        f"columns. {STEPS} Wall time is that of one run's meta-steps, and indicative only. The "
        "lowest of each data set is marked; a diverged task has no value."
        f"{measured_otherwise(methods_of(found))}"
    )
    header = ("method", *MEASURES.values(), "parameters", PRETRAINING, "meta-training", PAPER)
    return Table(caption, header, tuple(rows))


def _rows_of(dataset, of_methods: Mapping[str, Transfer], methods):
    of_measures = {
        name: {method: getattr(each, name) for method, each in of_methods.items()}
        for name in MEASURES
    }
    examples = sorted({number for each in of_methods.values() for number in each.examples})
    note = f"{' or '.join(f'{number:,}' for number in examples)} test images"
    yield (Value(dataset_label(dataset), note),)
    for method, each in of_methods.items():
        yield (
            named(method_look(method, methods).label, method_look(method, methods).light),
            *measured(of_measures, method),
            Value(" or ".join(f"{number:,}" for number in each.parameters) or "–"),
            Value(steps_made(each.gradient_steps)),
            Value(wall_time(each.seconds)),
            papers(paper_transfer.TABLE_3.get(dataset, {}).get(method, {})),
        )


def _paper_table() -> Table:
    rows = tuple(
        (
            Value(dataset_label(dataset), numeric=False),
            *(papers(of_methods[method]) for method in paper_transfer.METHODS),
        )
        for dataset, of_methods in paper_transfer.TABLE_3.items()
    )
    header = ("held out", *(method_look(method).label for method in paper_transfer.METHODS))
    caption = (
        "Test error in % / training error in % / area under the training error, 0–100. "
        f"{paper_transfer.SOURCE}. {paper_transfer.PROTOCOL}"
    )
    return Table(caption, header, rows)
