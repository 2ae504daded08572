"""The programs leap-train, leap-evaluate, leap-export, leap-sweep, leap-compare, leap-report.

`bin/*.py` call the same functions. The package stands beside `leap_tf`, because `import leap_tf`
imports TensorFlow, and TensorFlow reads its log level before that. A program therefore parses its
flags first, and imports the library afterwards.
"""

import contextlib
import importlib
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

flags.disclaim_key_flags()  # flags count as the program's own and appear in its --help

# Lines that TensorFlow prints at every start, whatever its log level.
_NOISE = re.compile(rb"(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} )")


class _Path(flags.ArgumentParser):
    """A path, in which ~ is the home directory."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        path = os.path.expanduser(argument)
        if path.startswith("~"):
            raise ValueError(f"there is no such home directory. For a file of this name, ./{path}")
        return path


def path_flag(name: str, text: str, required: bool = False) -> flags.FlagHolder:
    """Defines a flag that is a path."""
    return flags.DEFINE(_Path(), name, None, text, required=required)


def paths_flag(name: str, text: str, required: bool = False) -> flags.FlagHolder:
    """Defines a flag that is a path and can be given several times."""
    serializer: flags.ArgumentSerializer = flags.ArgumentSerializer()
    default = None if required else ()
    return flags.DEFINE_multi(_Path(), serializer, name, default, text, required=required)


def gin_param_flag(text: str) -> flags.FlagHolder:
    """Defines --gin_param, which can be given several times."""
    return flags.DEFINE_multi_string("gin_param", [], text)


def data_dir_flag() -> flags.FlagHolder:
    """Defines --data_dir."""
    return path_flag("data_dir", "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR.")


def module_flag() -> flags.FlagHolder:
    """Defines --module, which can be given several times."""
    text = "Module of your own: an import name, or the path of a .py file; can be repeated."
    return flags.DEFINE_multi_string("module", [], text)


def pool_flags() -> Callable[[], dict[str, Any]]:
    """Defines --pool, --address, --workers and --deadline.

    Returns:
        A function that returns those that were given, as arguments of `commands.PoolChoice`.
    """
    found = {
        "kind": flags.DEFINE_enum("pool", "threads", ("threads", "ray"), "Where tasks run."),
        "address": flags.DEFINE_string(
            "address", None, "Address of a Ray cluster; by default Ray is started on this machine."
        ),
        "workers": flags.DEFINE_integer("workers", None, "Workers on Ray; by default one per CPU."),
        "deadline": flags.DEFINE_float(
            "deadline",
            None,
            "Seconds after which a task on Ray counts as hanging; 1800 by default.",
        ),
    }
    return lambda: {name: flag.value for name, flag in found.items() if flag.value is not None}


_GIN_FILE = "Configuration file, or the name of one that is shipped, such as unicode_cpu.gin"


def train() -> None:
    """Meta-trains a study and evaluates the learned initialization.

        leap-train --gin_file=unicode_cpu.gin --output_dir=runs/unicode

    The same command continues a run that was stopped. With --pool=ray tasks run on a Ray cluster,
    see docs/cluster.md.
    """
    gin_file = paths_flag("gin_file", f"{_GIN_FILE}; can be given several times.", required=True)
    gin_param = gin_param_flag("Binding that overrides the files, such as 'study.seed = 1'.")
    output_dir = path_flag("output_dir", "Folder of the run.", required=True)
    data_dir, module, pool = data_dir_flag(), module_flag(), pool_flags()
    if sweep := os.environ.get("LEAP_TF_SWEEP"):
        threading.Thread(target=_stop_after, args=[int(sweep)], daemon=True).start()

    def program(commands):
        commands.train(
            gin_file.value,
            gin_param.value,
            output_dir.value,
            data_dir.value,
            commands.PoolChoice(**pool()),
            module.value,
        )

    start(program, train.__doc__, parallel_tasks=0)


def _stop_after(parent: int) -> None:
    """Stops this process, with a checkpoint, when its parent has ended: a sweep that was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def evaluate() -> None:
    """Evaluates a finished run: its learned initialization against no pretraining.

        leap-evaluate --output_dir=runs/unicode --gin_param='evaluate.steps = 50'

    Results go to evaluation_again.json in the folder. The run's own evaluation stays as it is.
    """
    gin_file = paths_flag("gin_file", "Configuration file that overrides the run's own.")
    gin_param = gin_param_flag(
        "Binding that overrides the run's, such as 'evaluate.target_error = 0.1'."
    )
    output_dir = path_flag("output_dir", "Folder of the run.", required=True)
    data_dir, module = data_dir_flag(), module_flag()

    def program(commands):
        commands.evaluate(
            gin_file.value, gin_param.value, output_dir.value, data_dir.value, module.value
        )

    start(program, evaluate.__doc__, parallel_tasks=0)


def export() -> None:
    """Exports the learned initialization of a run for serving by any TensorFlow runtime.

        leap-export --output_dir=runs/unicode

    Writes a SavedModel that predicts and adapts, the Keras model, example requests and a model card
    to runs/unicode/export.
    """
    output_dir = path_flag("output_dir", "Folder of the run.", required=True)
    export_dir = path_flag(
        "export_dir", "Folder to write; by default 'export' in the run's folder."
    )
    checkpoint = path_flag(
        "checkpoint",
        "Prefix of a checkpoint, such as runs/unicode/checkpoints/step-00000060, to export instead "
        "of the learned initialization.",
    )
    gin_file = paths_flag("gin_file", "Configuration file that overrides the run's own.")
    gin_param = gin_param_flag("Binding that overrides the run's, such as 'export.requests = 8'.")
    data_dir, module = data_dir_flag(), module_flag()

    def program(commands):
        commands.export(
            gin_file.value,
            gin_param.value,
            output_dir.value,
            data_dir.value,
            export_dir=export_dir.value,
            checkpoint=checkpoint.value,
            modules=module.value,
        )

    start(program, export.__doc__)


def sweep() -> None:
    """Runs a sweep of many training runs, the cells of a table, in worker processes.

        leap-sweep --gin_file=omniglot/table1_cpu.gin --output_dir=runs/table1

    The same command continues a sweep that was stopped, and skips finished cells.
    """
    gin_file = path_flag("gin_file", f"{_GIN_FILE}, of the sweep.", required=True)
    gin_param = gin_param_flag("Binding over the sweep's file, of 'sweep' or a macro.")
    output_dir = path_flag("output_dir", "Folder of the sweep.", required=True)
    workers = flags.DEFINE_integer(
        "workers",
        os.cpu_count(),
        "Number of cells that run at the same time. Bind MetaTrainer.pool = 1 for one core a cell.",
    )
    data_dir, module = data_dir_flag(), module_flag()

    def program(commands):
        commands.sweep(
            gin_file.value,
            gin_param.value,
            output_dir.value,
            workers.value,
            train_command=[sys.executable, "-P", "-m", "leap_tf_cli", "train"],
            data_dir=data_dir.value,
            modules=module.value,
        )

    start(program, sweep.__doc__)


def compare() -> None:
    """Compares methods on the tasks and the model of a study, at equal numbers of gradient steps.

        leap-compare --gin_file=unicode_cpu.gin --gin_param='compare.budget = 10000' \\
            --output_dir=runs/comparison

    Rates are chosen on validation tasks, for joint training and no pretraining too. The same
    command continues a comparison that was stopped.
    """
    gin_file = paths_flag("gin_file", f"{_GIN_FILE}; can be given several times.", required=True)
    gin_param = gin_param_flag("Binding over the files, such as 'compare.seeds = [0, 1, 2]'.")
    output_dir = path_flag("output_dir", "Folder of the table, the figure and the runs.", True)
    data_dir, module = data_dir_flag(), module_flag()

    def program(commands):
        commands.compare(
            gin_file.value, gin_param.value, output_dir.value, data_dir.value, module.value
        )

    start(program, compare.__doc__, parallel_tasks=0)


def report() -> None:
    """Writes a page on a study: tables, figures and the findings beside them.

        leap-report --runs=runs/my_sweep --output_dir=runs/my_report
        leap-report --runs=runs/omniglot --study=omniglot --output_dir=runs/report
        leap-report --results=docs/results --output_dir=docs/results

    --runs collects the folders of sweeps and runs into tables, which go into --output_dir with the
    page; --results makes the page of such tables again. Runs that are not finished are named.
    """
    runs = paths_flag(
        "runs", "A folder of leap-sweep, leap-train or bin/jacobian.py, or of several such."
    )
    results = path_flag("results", "A folder with the tables of a study, or with such folders.")
    study = flags.DEFINE_string(
        "study", None, "Layout: omniglot, multi_cv, or any name for a page on sweeps of any axes."
    )
    output_dir = path_flag("output_dir", "The report's folder.", required=True)

    def program(page):
        if bool(runs.value) == bool(results.value):
            raise app.UsageError("Pass either --runs or --results.")
        pages = page.write_report(
            output_dir.value, results=results.value, runs=runs.value, study=study.value
        )
        for path in pages:
            print(f"The report is in {path}.")

    start(program, report.__doc__, "leap_tf.experiments.report.page")


def start(
    program: Callable[[Any], None],
    description: str | None,
    module: str = "leap_tf.experiments.commands",
    *,
    parallel_tasks: int | None = None,
) -> None:
    """Parses the flags, imports a module of the library, runs the program and exits.

    Errors that a user can act on end in one line, packages that are not installed among them.

    Args:
        program: called with the module.
        description: the text of --help.
        module: the name of the module.
        parallel_tasks: as for `leap_tf.configure_threads`, 0 for one per core. By default
            TensorFlow's threads are not configured.
    """

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments: {argv[1:]}")
        try:
            with _no_startup_messages():
                import leap_tf

                if parallel_tasks is not None:  # before anything else touches TensorFlow
                    leap_tf.configure_threads(parallel_tasks)
                imported = importlib.import_module(module)
                from leap_tf.experiments.commands import one_line_errors
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except ModuleNotFoundError as error:
            advice = f"{error.name} is not installed. Run: pip install 'leap-tf[experiments]'"
            raise SystemExit(advice) from error
        except ImportError as error:
            if error.name:
                raise
            raise SystemExit(str(error)) from error  # leap_tf.atari's own, which says what to do
        with one_line_errors():
            program(imported)

    sys.modules["__main__"].__doc__ = inspect.cleandoc(description or "")
    app.run(main)


@contextlib.contextmanager
def _no_startup_messages() -> Iterator[None]:
    """Sets TensorFlow's log level to 3, unless it is set, and drops what ignores the level.

    TensorFlow writes some messages to standard error before it reads its level. A child process
    passes the other lines on, so that those of a crash arrive too. Level 0 shows everything.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        yield
        return
    reading, writing = os.pipe()
    child = os.fork()  # before there are any threads
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(writing)
        with open(reading, "rb") as lines:
            for line in lines:
                if not _NOISE.match(line):
                    os.write(2, line)
        os._exit(0)
    sys.stderr.flush()
    errors = os.dup(2)
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(errors, 2)
        os.close(errors)
        os.waitpid(child, 0)
