"""The last section: what every number can be made again from."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from leap_tf.experiments.report.document import Block, Code, Details, Section, Table, Value
from leap_tf.experiments.report.methods import in_order, method_look
from leap_tf.experiments.report.results import Cell, StudyResults, SweepResults, natural_order
from leap_tf.experiments.report.wording import count, duration, listing

RUNS = pathlib.PurePosixPath("runs")  # where the commands put their output


def record_section(study: StudyResults) -> Section:
    """Returns configurations, seeds, machine, cost and commands of everything in the report."""
    cells = [cell for sweep in study.sweeps for cell in sweep.cells]
    seconds = sum(cell.seconds for cell in cells)
    seconds += sum(record["seconds"] for record in study.jacobian or ())
    steps = sum(cell.gradient_steps for cell in cells)
    finding = (
        f"Summed over cells, meta-training and measurements took {duration(seconds)} of wall time, "
        f"judging left out, and made {steps:,} gradient steps in meta-training."
    )
    blocks: list[Block] = [Details("Machine and versions", (_environment(cells),))]
    blocks += [_sweep_details(sweep) for sweep in study.sweeps]
    blocks += [Details(f"Commands of {each.name}, cell by cell", (_commands(each),))
               for each in study.sweeps]  # fmt: skip
    blocks += [_configurations(sweep) for sweep in study.sweeps]
    blocks.append(Details("Commands of the sweeps and of this report", (_outer_commands(study),)))
    return Section("record", "Cost, configurations, commands", (finding,), tuple(blocks))


def cell_command(cell: Cell, sweep: str) -> str:
    """Returns the command that trains and judges one cell again, quoted for a shell."""
    return shlex.join(
        [
            "python",
            "bin/train.py",
            *(f"--gin_file={file}" for file in cell.gin_files),
            *(f"--gin_param={binding}" for binding in cell.bindings),
            f"--output_dir={RUNS / sweep / 'cells' / cell.name}",
        ]
    )


def sweep_command(sweep: SweepResults) -> str:
    """Returns the command that runs a sweep again.

    A sweep's index does not name its own gin file; by the project's convention it stands beside
    the cells' file and is called after the sweep.
    """
    file = pathlib.PurePosixPath(sweep.cells[0].gin_files[0]).parent / f"{sweep.name}_cpu.gin"
    return shlex.join(
        ["python", "bin/sweep.py", f"--gin_file={file}", f"--output_dir={RUNS / sweep.name}"]
    )


def _outer_commands(study):
    commands = [sweep_command(sweep) for sweep in study.sweeps if sweep.cells]
    if study.jacobian is not None:
        commands.append(
            "python bin/jacobian.py --gin_file=gin_configs/omniglot/jacobian_cpu.gin "
            f"--output_dir={RUNS / 'jacobian'}"
        )
    commands.append(f"python bin/report.py --results={RUNS} --output_dir={RUNS / 'report'}")
    return Code("\n".join(commands))


def _commands(sweep):
    return Code("\n\n".join(cell_command(cell, sweep.name) for cell in sweep.cells))


def _sweep_details(sweep):
    axes = list(dict.fromkeys(axis for cell in sweep.cells for axis in cell.values))
    rows = tuple(
        (
            *(_axis_value(axis, cell.values.get(axis, "–"), sweep) for axis in axes),
            Value(cell.seed),
            Value(f"{len(cell.metrics):,}"),
            Value(f"{cell.gradient_steps:,}"),
            Value(f"{cell.seconds:,.0f}" if cell.metrics else "–"),
            Value("judged" if cell.finished else "not finished", numeric=False),
        )
        for cell in sweep.cells
    )
    seconds = duration(sum(cell.seconds for cell in sweep.cells))
    seeds = ", ".join(natural_order([cell.seed for cell in sweep.cells]))
    header = (*axes, "seed of the study", "meta-steps", "gradient steps", "wall time, s", "state")
    caption = "Wall time is that of the meta-steps, validation included and judging left out."
    return Details(
        f"Cells of {sweep.name}: {len(sweep.finished)} of {len(sweep.cells)} finished, {seconds}, "
        f"seeds {seeds}",
        (Table(caption, header, rows),),
    )


def _axis_value(axis, value, sweep):
    if axis != "method":
        return Value(value)
    look = method_look(value, in_order(cell.method for cell in sweep.cells))
    return Value(look.label, colour=look.light, numeric=False)


def _configurations(sweep):
    """One whole configuration a sweep, and of every cell what is bound over the files."""
    example = next((cell for cell in sweep.cells if cell.config), None)
    blocks: list[Block] = []
    if example is not None:
        blocks.append(Details(f"All of {example.name}, config.gin", (Code(example.config),)))
    bindings = "\n\n".join(f"# {cell.name}\n" + "\n".join(cell.bindings) for cell in sweep.cells)
    blocks.append(Details("Bindings of every cell over the files", (Code(bindings),)))
    files = listing(sorted({file for cell in sweep.cells for file in cell.gin_files}))
    return Details(f"Configurations of {sweep.name}, over {files}", tuple(blocks))


def _environment(cells: Sequence[Cell]):
    """Every environment that cells ran in, and how many starts were made in each."""
    starts: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        for start in cell.environment:
            starts.setdefault(_describe(start), []).append(start)
    text = "\n\n".join(
        f"{count(len(found), 'start')} of training runs\n{description}"
        for description, found in sorted(starts.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    return Code(text or "No run has left an environment.json.")


def _describe(start):
    packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items())
    return (
        f"{start['platform']}, {count(start['cores'], 'core')}, {start['intra_op_threads']} "
        f"intra-op × {start['inter_op_threads']} inter-op threads\n"
        f"Python {start['python']}, {packages}"
    )
