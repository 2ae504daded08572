"""A sweep: many training runs, the cells of one or more grids.

A cell is one training command with its own run directory, so it can be repeated alone, killed
and continued. The sweep adds the list of commands, worker processes and progress. A cell that is
finished (its folder has an evaluation.json of the same configuration) is skipped, and a crash costs
at most the work since the cells' last checkpoints.

    output_dir/sweep.json                                       the cells and their commands
    output_dir/cells/<value of axis 1>-<value of axis 2>-…/     a run directory
    output_dir/logs/<the same>.log                              output of the run
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import tqdm

from leap_tf.errors import LeapError
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.experiments.user_modules import UserModule, check_modules
from leap_tf.serialization import write_atomically

Axes = Mapping[str, Mapping[str, Sequence[str]]]


class SweepError(LeapError, RuntimeError):
    """Cells of a sweep failed, or its folder holds another sweep."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a sweep."""

    values: Mapping[str, str]  # the cell's value on each axis, by name of the axis
    bindings: tuple[str, ...]  # gin bindings that override the sweep's files

    @property
    def name(self) -> str:
        """The name of the cell's folder: its values, joined by hyphens."""
        return "-".join(self.values.values())


def cells_of(
    gin_files: Sequence[str], grids: Sequence[Axes], bindings: Sequence[str] = ()
) -> tuple[list[str], list[Cell]]:
    """Returns the configuration files of a sweep, and a cell for each combination of each grid.

    Each grid maps the name of an axis to its values, and each value to its gin bindings, which
    follow the `bindings` of all cells. The last axis varies fastest.

    Raises:
        ValueError: there are no cells, a value cannot be part of a folder's name, or two cells
            have the same name.
    """
    cells = [cell for axes in grids for cell in _product(axes, bindings)]
    names = [cell.name for cell in cells]
    if not cells or len(set(names)) < len(names):
        raise ValueError(f"A sweep needs cells with different names. These are {names}.")
    return list(gin_files), cells


def _product(axes, bindings):
    for value in itertools.chain.from_iterable(axes.values()):
        if not value or set(value) & set("-/\\ "):
            raise ValueError(
                f"{value!r} cannot be part of a folder's name. Leave out '-', '/', '\\' and spaces."
            )
    cells = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination))
        own = itertools.chain.from_iterable(axes[axis][value] for axis, value in values.items())
        cells.append(Cell(values, (*bindings, *own)))
    return cells


@dataclasses.dataclass
class Sweep:
    """Runs cells in worker processes.

    The folder may hold other cells of the same axes, from earlier runs of the sweep. The index
    keeps them.
    """

    cells: Sequence[Cell]  # in the order in which they are run
    gin_files: Sequence[str | os.PathLike]  # configuration files of every cell
    output_dir: str | os.PathLike
    _: dataclasses.KW_ONLY
    data_dir: str | os.PathLike | None  # folder of prepared data sets
    train_command: Sequence[str]  # starts the training program, without flags
    # Returns the whole configuration of files and bindings as text.
    read_configuration: Callable[[Sequence[str | os.PathLike], Sequence[str]], str]
    modules: Sequence[UserModule] = ()  # modules of the user that every cell imports

    def __post_init__(self):
        self._folder = pathlib.Path(self.output_dir).expanduser()
        self._index = self._folder / "sweep.json"
        self._running: dict[str, subprocess.Popen] = {}
        self._stopped = False

    def command(self, cell: Cell) -> list[str]:
        """Returns the command that trains and evaluates one cell."""
        command = [*self.train_command, *(module.flag for module in self.modules)]
        command += [f"--gin_file={file}" for file in self.gin_files]
        command += [f"--gin_param={binding}" for binding in cell.bindings]
        command += [f"--output_dir={self._run(cell.name).path}"]
        return command + ([f"--data_dir={self.data_dir}"] if self.data_dir else [])

    def _run(self, name):
        return RunDirectory(self._folder / "cells" / name)

    def unfinished(self) -> list[Cell]:
        """Returns the cells without an evaluation, and checks all configurations and modules."""
        left = []
        for cell in self.cells:
            run = self._run(cell.name)
            config = self.read_configuration(self.gin_files, cell.bindings)
            check_modules(run.path, self.modules, same_run=True)
            run.check(config)
            if not run.is_finished(config):
                left.append(cell)
        return left

    def run(self, workers: int) -> None:
        """Runs the unfinished cells, `workers` of them at the same time.

        Raises:
            ValueError: `workers` is below 1.
            SweepError: the folder holds a sweep over other axes, or cells failed.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1. Received: workers={workers}.")
        index = {entry["name"]: entry for entry in [*self._indexed(), *self._description()]}
        left = self.unfinished()
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        write_atomically(self._index, json.dumps(list(index.values()), indent=1) + "\n")
        failed: list[str] = []
        with (
            tqdm.tqdm(total=len(self.cells), initial=len(self.cells) - len(left)) as bar,
            concurrent.futures.ThreadPoolExecutor(workers) as executor,
        ):
            try:
                waiting = {executor.submit(self._train, cell): cell for cell in left}
                while waiting:
                    done, _ = concurrent.futures.wait(
                        waiting, timeout=5.0, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        cell, code = waiting.pop(future), future.result()
                        if code and self._stopped:
                            continue  # it will continue with the sweep
                        if code:
                            failed.append(cell.name)
                        bar.update(1)
                    bar.set_postfix_str(self._progress(failed))
            except BaseException:  # or the executor would run all other cells first
                self.stop()
                raise
        if failed:
            logs = "\n".join(str(self._log(name)) for name in failed)
            raise SweepError(f"{len(failed)} of {len(left)} cells failed. Their logs:\n{logs}")

    def _indexed(self):
        """Returns the entries of the folder's index.

        Raises:
            SweepError: an entry has other axes than this sweep.
        """
        if not self._index.exists():
            return []
        entries = json.loads(self._index.read_text())
        axes = {tuple(cell.values) for cell in self.cells}
        others = [entry["name"] for entry in entries if tuple(entry["values"]) not in axes]
        if others:
            raise SweepError(
                f"{self._index} is of a sweep over other axes, with cells such as {others[0]}. "
                "Pass a different --output_dir."
            )
        return entries

    def _description(self):
        return [
            {
                "name": cell.name,
                "values": dict(cell.values),
                "gin_files": [pathlib.Path(file).as_posix() for file in self.gin_files],
                "bindings": list(cell.bindings),
            }
            for cell in self.cells
        ]

    def stop(self) -> None:
        """Starts no more cells, and lets running ones save and end. Safe in a signal handler."""
        self._stopped = True
        for process in list(self._running.values()):
            process.terminate()

    def _train(self, cell) -> int:
        run = self._run(cell.name)
        while run.is_in_use() and not self._stopped:  # by a cell of a sweep that was killed
            time.sleep(1.0)
        if self._stopped:
            return 1
        command = self.command(cell)
        with self._log(cell.name).open("a") as log:
            print(f"{time.strftime('%F %T')}  {shlex.join(command)}", file=log, flush=True)
            # In a new session, so that Ctrl-C reaches only the sweep, which then stops its cells.
            env = os.environ | {"LEAP_TF_SWEEP": str(os.getpid())}
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
            self._running[cell.name] = process
            if self._stopped:
                process.terminate()
            code = process.wait()
            del self._running[cell.name]
        return code

    def _log(self, name):
        return self._folder / "logs" / f"{name}.log"

    def _progress(self, failed):
        steps = [f"{name} {_meta_steps(self._run(name))}" for name in list(self._running)]
        return ", ".join(steps + ([f"{len(failed)} failed"] if failed else []))


def _meta_steps(run):
    try:
        return json.loads(run.metrics.read_text().splitlines()[-1])["meta_step"]
    except (OSError, IndexError, ValueError, KeyError):
        return 0
