"""Reads what sweeps and measurements left behind. Nothing here computes a result."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leap_tf.experiments.report import checks
from leap_tf.experiments.report.checks import ResultsError, read_json
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.experiments.study import LEARNED
from leap_tf.training import read_metrics

_OMNIGLOT, _MULTI_CV = ("table1", "ablation", "paths", "jacobian"), ("table3",)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep, finished or not.

    Attributes:
        name: its folder's name.
        values: from each axis of the sweep to this cell's value on it.
        gin_files: configuration files under it.
        bindings: gin bindings over them.
        evaluation: its evaluation.json, or None as long as there is none.
        metrics: lines of its metrics.jsonl, one a meta-step.
        config: its config.gin, empty as long as there is none.
        environment: entries of its environment.json, one for every start.
    """

    name: str
    values: Mapping[str, str]
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    evaluation: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    config: str
    environment: tuple[Mapping[str, Any], ...]

    @property
    def finished(self) -> bool:
        """Whether it has been judged."""
        return self.evaluation is not None

    @property
    def judged(self) -> Mapping[str, Any]:
        """Its evaluation.json.

        Raises:
            ResultsError: the cell is not finished.
        """
        if self.evaluation is None:
            raise ResultsError(f"The cell {self.name} has not been judged.")
        return self.evaluation

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What judging the learned initialization gave. Errors as for `judged`."""
        return self.judged["results"][LEARNED]

    @property
    def method(self) -> str:
        """Its value on the axis "method"; "leap" in sweeps without one."""
        return self.values.get("method", "leap")

    @property
    def seed(self) -> str:
        """Its value on the axis "seed", or else the study's seed; "0" if neither is known."""
        return self.values.get("seed") or self.setting("study.seed") or "0"

    @property
    def alphabets(self) -> int | None:
        """Pretraining alphabets: its value on that axis, or else the configuration's."""
        text = self.values.get("alphabets") or self.setting("alphabet_splits.train_alphabets")
        return int(text) if text and text.isdecimal() else None

    @property
    def held_out(self) -> str | None:
        """Its value on the axis "heldout", the data set it is judged on; None without that axis."""
        return self.values.get("heldout")

    @property
    def judged_by(self) -> str:
        """The part of the data that judged it, "test" or "validation". Errors as for `judged`.

        Omniglot has tasks for validation; a task of Multi-CV has images for it.
        """
        return self.setting("multi_cv_splits.evaluate_on") or str(self.judged["split"])

    @property
    def seconds(self) -> float:
        """Wall time of its meta-steps, validation included and judging not."""
        return float(sum(entry["seconds"] for entry in self.metrics))

    @property
    def gradient_steps(self) -> int:
        """Gradient steps made on training tasks in all meta-steps."""
        return round(sum(entry.get("gradient_steps", 0) for entry in self.metrics))

    def setting(self, name: str) -> str | None:
        """Returns what is bound to a name, such as "study.seed", as text; None if nothing is."""
        pattern = re.compile(rf"^{re.escape(name)}\s*=\s*(.+?)\s*(?:#.*)?$", re.MULTILINE)
        found = pattern.findall("\n".join([self.config, *self.bindings]))
        return found[-1].strip("'\"") if found else None


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """The cells of one sweep, in its order.

    Attributes:
        name: the sweep's folder, such as "table1".
        cells: all of them, unfinished ones too.
    """

    name: str
    cells: tuple[Cell, ...]

    @property
    def finished(self) -> tuple[Cell, ...]:
        """The cells that have been judged."""
        return tuple(cell for cell in self.cells if cell.finished)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the cells that have not been judged."""
        return tuple(cell.name for cell in self.cells if not cell.finished)


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Everything a results folder holds; None stands for a part it does not have.

    Attributes:
        rates, table1, table3, ablation, paths: sweeps. table3 is of the Multi-CV study, rates of
            either study, all else of the Omniglot study.
        jacobian: records of Jacobian precision, one a learning rate and task.
    """

    rates: SweepResults | None = None
    table1: SweepResults | None = None
    table3: SweepResults | None = None
    ablation: SweepResults | None = None
    paths: SweepResults | None = None
    jacobian: tuple[Mapping[str, Any], ...] | None = None

    @property
    def sweeps(self) -> tuple[SweepResults, ...]:
        """The sweeps that are there, in the report's order."""
        every = (self.table1, self.table3, self.ablation, self.paths, self.rates)
        return tuple(sweep for sweep in every if sweep is not None)

    @property
    def is_multi_cv(self) -> bool:
        """Whether data sets are held out, and not alphabets."""
        return self.table3 is not None or any(
            cell.held_out is not None for sweep in self.sweeps for cell in sweep.cells
        )


def read_study(folder: str | os.PathLike) -> StudyResults:
    """Reads the parts of a study that a folder has.

    Args:
        folder: holds any of rates/, table1/, ablation/, paths/ (sweeps) and jacobian/ of the
            Omniglot study, or of rates/ and table3/ of the Multi-CV study.

    Raises:
        ResultsError: it has none of them, one that cannot be read, or parts of both studies.
    """
    folder = pathlib.Path(folder)
    present = [name for name in (*_OMNIGLOT, *_MULTI_CV, "rates") if (folder / name).is_dir()]
    if not present:
        raise ResultsError(
            f"{folder} has no folder rates, table1, ablation, paths, jacobian or table3. Give "
            "--results the folder that your sweeps' output folders are in."
        )
    if set(present) & set(_OMNIGLOT) and set(present) & set(_MULTI_CV):
        raise ResultsError(
            f"{folder} has {', '.join(present)}: parts of two studies, Omniglot and Multi-CV (its "
            "table3). A report is on one of them. Put each into a folder of its own."
        )
    sweeps = {name: read_sweep(folder / name) for name in present if name != "jacobian"}
    jacobian = read_jacobian(folder / "jacobian") if "jacobian" in present else None
    return StudyResults(**sweeps, jacobian=jacobian)


def read_sweep(folder: pathlib.Path) -> SweepResults:
    """Reads a sweep's folder, whatever share of its cells is finished.

    Raises:
        ResultsError: it holds no sweep.json, or a file is not what its name says.
    """
    index = folder / "sweep.json"
    if not index.exists():
        raise ResultsError(f"{folder} has no sweep.json. Run bin/sweep.py into it, or remove it.")
    cells = []
    for entry in read_json(index, checks.SWEEP):
        checks.check_folder_name(entry["name"], str(index))
        run = RunDirectory(folder / "cells" / entry["name"])
        evaluation = (
            read_json(run.evaluation, checks.EVALUATION) if run.evaluation.exists() else None
        )
        if evaluation is not None and LEARNED not in evaluation["results"]:
            raise ResultsError(
                f"{run.evaluation} has no results of the {LEARNED}. Judge the run again with "
                "bin/evaluate.py."
            )
        cells.append(
            Cell(
                name=entry["name"],
                values=entry["values"],
                gin_files=tuple(entry["gin_files"]),
                bindings=tuple(entry["bindings"]),
                evaluation=evaluation,
                metrics=_metrics(run.metrics) if run.metrics.exists() else (),
                config=run.config.read_text() if run.config.exists() else "",
                environment=tuple(read_json(run.environment, checks.ENVIRONMENT))
                if run.environment.exists()
                else (),
            )
        )
    return SweepResults(folder.name, tuple(cells))


def read_jacobian(folder: pathlib.Path) -> tuple[Mapping[str, Any], ...]:
    """Reads all records of Jacobian precision under a folder, by learning rate and task."""
    measured = []
    for path in sorted(folder.rglob("*.json")):
        record = read_json(path)
        if isinstance(record, dict) and "rho" in record:
            checks.check(record, checks.JACOBIAN, str(path))
            measured.append(record)
    return tuple(sorted(measured, key=lambda each: (each["learning_rate"], str(each["task"]))))


def natural_order(names: Sequence[str]) -> list[str]:
    """Returns names once each, numbers in them by size: "2" before "10"."""

    def key(name):
        return [
            (0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name)
            if part
        ]

    return sorted(set(names), key=key)


def _metrics(path):
    entries = read_metrics(path)
    checks.check(entries, checks.METRICS, str(path))
    checks.check(entries, [checks.METRIC], str(path))
    return tuple(entries)
