"""What pretraining on other data sets came to on a held-out one: the numbers of table 3.

Every cell of the sweep is one method, one seed and one held-out data set. Means over data sets are
taken seed by seed, and only over data sets that all methods have, so that methods compare.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from leap_tf.experiments.report.checks import ResultsError
from leap_tf.experiments.report.headline import by_seed
from leap_tf.experiments.report.methods import in_order
from leap_tf.experiments.report.paper_transfer import dataset_order
from leap_tf.experiments.report.results import Cell, SweepResults
from leap_tf.experiments.report.statistics import (
    Estimate,
    average,
    difference,
    is_settled,
    ratio,
    summarise,
    whole_tasks,
)

LAST_BATCHES = 50  # whose mean is the training error at the end; one batch alone is noisy


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One method on one held-out data set.

    Attributes:
        error: test error in %.
        training_error: error in % of the last training batches.
        area: area under the training error, 0–100.
        gradient_steps: made in meta-training; no seeds for a method that has none.
        seconds: wall time of meta-training, likewise.
        parameters: of the adapted models, each number once; empty in old results.
        examples: on which the test error was measured, each number once.
        diverged: how many tasks diverged. They have no value in the estimates.
        tasks: how many there were in all seeds.
    """

    error: Estimate
    training_error: Estimate
    area: Estimate
    gradient_steps: Estimate
    seconds: Estimate
    parameters: tuple[int, ...]
    examples: tuple[int, ...]
    diverged: int
    tasks: int


Transfers = Mapping[str, Mapping[str, Transfer]]  # of each held-out data set, of each method


def transfers(sweep: SweepResults) -> dict[str, dict[str, Transfer]]:
    """Returns what finished cells came to, data sets and methods in a report's order.

    Raises:
        ResultsError: a cell has no held-out data set or is not judged by test images, or two cells
            are the same.
    """
    for cell in sweep.cells:
        if cell.held_out is None:
            raise ResultsError(
                f'The cell {cell.name} of {sweep.name} has no value on the axis "heldout". Give '
                "the sweep that axis, with a value for every data set."
            )
        if cell.finished and cell.judged_by != "test":
            raise ResultsError(
                f"The cell {cell.name} of {sweep.name} is judged by {cell.judged_by}, which is for "
                "choosing rates. Run it again judged by test images."
            )
    return {
        str(dataset): {
            method: _transfer(by_seed(select(sweep, dataset, method)))
            for method in in_order(c.method for c in sweep.finished if c.held_out == dataset)
        }
        for dataset in dataset_order(str(cell.held_out) for cell in sweep.finished)
    }


def select(sweep: SweepResults, dataset: str, method: str) -> list[Cell]:
    """Returns the finished cells of a method on a data set, one a seed."""
    return [c for c in sweep.finished if c.held_out == dataset and c.method == method]


def last_error(errors: Sequence[float]) -> float:
    """Returns the mean in % of the last `LAST_BATCHES` training errors, of all if there are fewer.

    Args:
        errors: [K] errors on training batches, in [0, 1].
    """
    return 100.0 * float(np.mean(errors[-LAST_BATCHES:]))


def methods_of(found: Transfers) -> list[str]:
    """Returns all methods that have a finished cell."""
    return in_order(method for of_methods in found.values() for method in of_methods)


def shared_datasets(found: Transfers) -> list[str]:
    """Returns the data sets that every method has finished at one seed or more."""
    methods = methods_of(found)
    return [name for name, of_methods in found.items() if set(of_methods) == set(methods)]


def over_datasets(found: Transfers, datasets: Sequence[str], measure: str) -> dict[str, Estimate]:
    """Returns for each method the mean over data sets of a measure, seed by seed.

    Args:
        found: of `transfers`.
        datasets: over which; every method has them. A seed that lacks one is left out.
        measure: "error", "training_error", "area", "gradient_steps" or "seconds".
    """
    return {
        method: average([getattr(found[dataset][method], measure) for dataset in datasets])
        for method in methods_of(found)
    }


@dataclasses.dataclass(frozen=True)
class Harm:
    """A method that came out worse than no pretraining on a data set.

    Attributes:
        method, dataset: which.
        gap: how much worse, seed by seed.
        settled: whether that is clear of chance.
    """

    method: str
    dataset: str
    gap: Estimate
    settled: bool


def harms(found: Transfers, measure: str) -> tuple[list[Harm], int]:
    """Returns where pretraining hurt, and of how many pairs of method and data set.

    A pair counts if it and no pretraining have a seed in common. It hurts if the mean over these
    seeds of the measure is higher than without pretraining.

    Args:
        found: of `transfers`.
        measure: "error" or "area".
    """
    hurt, pairs = [], 0
    for method in methods_of(found):
        for dataset, of_methods in found.items():
            if method == "none" or not {method, "none"} <= set(of_methods):
                continue
            gap = difference(
                getattr(of_methods[method], measure), getattr(of_methods["none"], measure)
            )
            pairs += bool(gap.values)
            if gap.values and gap.mean > 0:
                hurt.append(Harm(method, dataset, gap, is_settled(gap)))
    return hurt, pairs


def relative_to_fresh(of_methods: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Returns the ratio of every pretrained method to no pretraining, seed by seed."""
    fresh = of_methods.get("none", Estimate({}))
    ratios = {method: ratio(each, fresh) for method, each in of_methods.items() if method != "none"}
    return {method: each for method, each in ratios.items() if each.values}


def _transfer(cells: Mapping[str, Cell]) -> Transfer:
    summary = summarise({seed: cell.outcome for seed, cell in cells.items()})
    tasks = {seed: whole_tasks(cell.outcome) for seed, cell in cells.items()}
    every = [task for cell in cells.values() for task in cell.outcome["tasks"]]
    return Transfer(
        error=summary.error,
        training_error=Estimate(
            {
                seed: float(np.mean([last_error(task["training_errors"]) for task in whole]))
                for seed, whole in tasks.items()
                if whole
            }
        ),
        area=summary.area,
        gradient_steps=Estimate(
            {seed: cell.gradient_steps for seed, cell in cells.items() if cell.metrics}
        ),
        seconds=Estimate({seed: cell.seconds for seed, cell in cells.items() if cell.metrics}),
        parameters=tuple(sorted({task["parameters"] for task in every if "parameters" in task})),
        examples=tuple(sorted({task["examples"] for task in every})),
        diverged=summary.diverged,
        tasks=summary.tasks,
    )
