"""The section on the Jacobian approximation (appendix D, figure 4)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leap_tf.experiments.plots import standard_error
from leap_tf.experiments.report import figures
from leap_tf.experiments.report.document import Picture, Prose, Section, Table, Value
from leap_tf.experiments.report.methods import rate_look
from leap_tf.experiments.report.wording import NBSP, count, duration, listing, named, small


def jacobian_section(records: Sequence[Mapping[str, Any]]) -> Section:
    """Returns the section on ρ, the relative precision of J ≈ I, for every learning rate."""
    title = "How far is the Jacobian from the identity?"
    if not records:
        return Section("jacobian", title, ("No measurement is finished.",), ())
    rates = sorted({record["learning_rate"] for record in records})
    drawn, rows, last = [], [], []
    for index, rate in enumerate(rates):
        own = [record for record in records if record["learning_rate"] == rate]
        steps = np.asarray(own[0]["steps"])
        rho = np.array([record["rho"] for record in own], np.float64)  # None becomes NaN
        look = rate_look(index, len(rates), f"learning rate {rate:g}")
        drawn.append((look, steps, rho))
        rows.append((named(look.label, look.light), *(_cell(column) for column in rho.T)))
        whole = rho[np.isfinite(rho[:, -1]), -1]
        if len(whole):
            last.append(f"{small(float(whole.mean()))} at learning rate {rate:g}")
    steps = drawn[0][1]
    lost = sum(None in record["rho"] for record in records)
    findings = []
    if last:
        findings.append(
            f"After {steps[-1]} steps ρ, which is 0 where the Jacobian is the identity, is on "
            f"average {listing(last)}."
        )
    if lost:
        findings.append(f"{lost} of {count(len(records), 'path')} ended in non-finite Jacobians.")
    tasks = sorted({sum(r["learning_rate"] == rate for r in records) for rate in rates})
    layers = listing(sorted({record["layer"] for record in records if "layer" in record}))
    caption = (
        f"ρ of {layers or 'one layer'} over gradient steps, {' or '.join(map(str, tasks))} tasks "
        "a learning rate. Thin: tasks; marked: their mean."
    )
    return Section(
        "jacobian",
        title,
        tuple(findings),
        (
            Picture(
                "jacobian",
                figures.jacobian_precision(drawn),
                caption,
                "Curves of the Jacobian's relative distance from the identity over steps",
            ),
            Table(
                "ρ, mean ± standard error over tasks.",
                ("", *(f"step {step}" for step in steps)),
                tuple(rows),
            ),
            Prose(_cost(records)),
        ),
    )


def _cell(column):
    whole = column[np.isfinite(column)]
    if not len(whole):
        return Value("–")
    error, mean = standard_error(list(whole)), float(whole.mean())
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 0  # three significant ones
    spread = "" if error is None else f"{NBSP}±{NBSP}{error:.{digits}f}"
    note = "" if len(whole) == len(column) else f"{len(whole)} of {len(column)} tasks"
    return Value(f"{mean:.{digits}f}{spread}", note)


def _cost(records):
    parameters = listing([f"{n:,}" for n in sorted({record["parameters"] for record in records})])
    memory = max(record["matrix_bytes"] for record in records) / 2**20
    seconds = sum(record["seconds"] for record in records)
    return (
        f"The kernel has {parameters} numbers; its matrices take {memory:.1f} MiB, whatever the "
        f"number of steps. All {count(len(records), 'path')} took {duration(seconds)}."
    )
