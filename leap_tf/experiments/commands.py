"""The functions behind the command-line programs: train, evaluate, export, sweep, compare.

Each reads a configuration, builds its study and works in a run's folder. Helpers for all programs
are here too: signals and errors in one line.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl import flags
from absl import logging as absl_logging
from matplotlib.figure import Figure

from leap_tf.cluster import RayPool, StudyFactory
from leap_tf.errors import LeapError
from leap_tf.experiments.config import (
    ConfigurationError,
    configuration_file,
    configured_cells,
    configured_comparison,
    configured_evaluate,
    configured_export,
    configured_meta_train,
    configured_study,
    operative_configuration,
    parse_configuration,
    read_configuration,
)
from leap_tf.experiments.run_directory import RunDirectory, changed_bindings, write_atomically
from leap_tf.experiments.sweep import Sweep
from leap_tf.experiments.user_modules import (
    RECORD,
    UserModule,
    UserModuleError,
    check_modules,
    load_modules,
    record_of,
)
from leap_tf.training import MetaTrainer, Study


@contextlib.contextmanager
def exit_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Calls `stop` on the first SIGTERM, SIGHUP or Ctrl-C; a second one kills the process.

    If a signal was received, the process exits at the end of the block with 128 + the signal's
    number, as shells expect, so that the run does not look finished.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        print(
            "Stopping. The current meta-step is discarded; completed ones are saved.",
            file=sys.stderr,
        )
        stop()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        print("Stopped. The same command continues from there.", file=sys.stderr)
        sys.exit(128 + received[0])


@contextlib.contextmanager
def stop_on_signals(trainer: MetaTrainer) -> Iterator[None]:
    """Makes the first SIGTERM, SIGHUP or Ctrl-C stop `trainer.fit`, which saves; a second kills."""
    with exit_on_signals(trainer.request_stop) as received:
        yield
        if received:
            print(f"Stopped after meta-step {trainer.meta_step}.", file=sys.stderr)


POOLS = ("threads", "ray")


@dataclasses.dataclass(frozen=True)
class PoolChoice:
    """The pool that tasks run on. It is not part of the configuration, since results are the same.

    Attributes:
        kind: "threads" for threads of this process, or "ray".
        address: address of a running Ray cluster; None starts Ray on this machine.
        workers: number of workers on Ray; None for one per CPU.
        deadline: seconds after which a task on Ray counts as hanging.

    Raises:
        ValueError: `kind` is unknown, or threads are given an address or a number of workers.
    """

    kind: str = "threads"
    address: str | None = None
    workers: int | None = None
    deadline: float = 1800.0

    def __post_init__(self):
        if self.kind not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, and is {self.kind!r}.")
        if self.kind == "threads" and (self.address, self.workers) != (None, None):
            raise ValueError("address and workers are for --pool=ray.")

    @contextlib.contextmanager
    def open(self, factory: StudyFactory) -> Iterator[RayPool | None]:
        """Yields a pool that is not started yet, and closes it at the end.

        Yields None for threads: the trainer then has a pool of its own.

        Args:
            factory: builds the study in a worker.

        Raises:
            ClusterError: Ray is not installed.
        """
        if self.kind == "threads":
            yield None
            return
        pool = RayPool(factory, self.workers, self.address, self.deadline)
        with contextlib.closing(pool):
            yield pool


THREADS = PoolChoice()


@dataclasses.dataclass(frozen=True)
class ConfiguredStudyFactory:
    """Builds a study from the configuration of a run.

    Attributes:
        configuration: the whole configuration as text.
        data_dir: folder of prepared data sets, the same on every node; None for the default.
        modules: the user's modules, as they were imported here.
    """

    configuration: str
    data_dir: str | None = None
    modules: tuple[UserModule, ...] = ()

    def __call__(self) -> Study:
        """Builds the study.

        Raises:
            UserModuleError: a module cannot be imported on this machine, or has another source.
        """
        for module in self.modules:
            (found,) = load_modules([module.flag.removeprefix("--module=")])
            if found.sha256 != module.sha256:
                raise UserModuleError(f"{found.path} is another source than that of the driver.")
        parse_configuration(self.configuration)
        return configured_study(data_dir=self.data_dir)


Path = str | os.PathLike

# Errors that a user can act on. All others show their traceback.
_USER_ERRORS = (LeapError, ValueError, OSError, FloatingPointError, tf.errors.OpError)

# Bindings that an evaluation may change.
_OF_EVALUATION = re.compile(r"evaluate\.|evaluation/|EvaluationConfig\.|MetaTrainer\.pool$")

# Errors of a full or read-only disk, from Python or TensorFlow, and advice for each.
_DISK = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "Free some space on the disk, or raise the limit",
    (errno.EROFS, errno.EACCES, errno.EPERM): "Make the folder writable",
}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for errors that a user can act on, and silences libraries.

    With --verbosity=1 the traceback and the messages of libraries are shown too.
    """
    if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)  # TFDS and checkpoints log a lot
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except _USER_ERRORS as error:
        absl_logging.debug("Traceback of the error below", exc_info=True)
        raise SystemExit(f"{type(error).__name__}: {_with_advice(error)}") from None


def _with_advice(error: Exception) -> str:
    """Returns an error's text, with advice if the disk is full or read-only."""
    text = re.sub(r"\{\{.*?\}\}\s*", "", str(error)).strip()
    for numbers, advice in _DISK.items():
        if any(os.strerror(number) in text for number in numbers):
            return (
                f"{text.splitlines()[0].rstrip('.')}. {advice}, and give the same command again. "
                "The files in the folder are complete, and it continues from them."
            )
    return text


def train(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    pool: PoolChoice = THREADS,
    modules: Sequence[Path] = (),
) -> None:
    """Trains and evaluates the configured study in `output_dir`, or continues a run there.

    Args:
        gin_files: configuration files.
        gin_params: bindings over the files.
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.
        pool: where tasks run. Results are the same on every pool, and a run can be continued on
            another one.
        modules: modules of the user, as for `load_modules`.

    Raises:
        ConfigurationError: the configuration cannot be read, or its study cannot be built.
        RunDirectoryError: the folder holds another run or other files, or is in use.
        MissingDataError: a data set is not prepared.
        ClusterError: the pool cannot start.
        UserModuleError: a module cannot be imported, or is not as it was when the run started.
    """
    own = load_modules(modules)
    run = RunDirectory(output_dir)
    check_modules(run.path, own, same_run=True)
    config = read_configuration(gin_files, gin_params)
    run.check(config)
    factory = ConfiguredStudyFactory(
        config, None if data_dir is None else os.path.abspath(data_dir), own
    )
    with pool.open(factory) as opened:
        study = configured_study(data_dir=data_dir, pool=opened)
        run.claim(config)  # after the study, so that one that cannot be built leaves no folder
        if own:
            write_atomically(run.path / RECORD, record_of(own))
        write_atomically(run.operative_config, operative_configuration())
        if opened:
            opened.start()
        trainer = study.trainer
        fresh = [(variable, variable.numpy()) for variable in trainer.variables]
        with stop_on_signals(trainer):
            configured_meta_train(study=study, run=run)
        for variable, value in fresh:
            variable.assign(value)
        print(configured_evaluate(study=study, run=run))
    write_atomically(run.operative_config, operative_configuration())
    print(f"Learned initialization, metrics, evaluation and plots are in {run.path}.")


def evaluate(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    modules: Sequence[Path] = (),
) -> None:
    """Evaluates a finished run again, for example with other steps or another target.

    Args:
        gin_files: configuration files over the run's own.
        gin_params: bindings over its configuration, such as "evaluate.steps = 50".
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.
        modules: the run's modules of the user. A changed source is a warning.

    Raises:
        ConfigurationError: a binding changes more than the evaluation.
        RunDirectoryError: the folder holds no finished run.
        UserModuleError: a module of the run is missing.
    """
    own = load_modules(modules)
    run = RunDirectory(output_dir)
    check_modules(run.path, own, same_run=False)
    trained = read_configuration([run.require_config()])
    changed = changed_bindings(
        trained, read_configuration([run.require_config(), *gin_files], gin_params)
    )
    others = [name for name in changed if not _OF_EVALUATION.match(name)]
    if others:
        raise ConfigurationError(
            f"Evaluation cannot override {', '.join(others)}: this would describe another run than "
            "the trained one. With another seed, for example, held-out tasks may have been trained "
            "on. Only bindings of evaluate, EvaluationConfig, MetaTrainer.pool and the scope "
            "evaluation/ can be changed here."
        )
    study = configured_study(data_dir=data_dir)
    print(configured_evaluate(study=study, run=run, overrides=changed))
    print(f"The run's own evaluation is unchanged. This one is in {run.evaluation_again}.")


def export(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    export_dir: Path | None = None,
    checkpoint: Path | None = None,
    modules: Sequence[Path] = (),
) -> None:
    """Exports the learned initialization of a run for serving.

    Args:
        gin_files: configuration files over the run's own.
        gin_params: bindings over its configuration, such as "export.requests = 8".
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.
        export_dir: the folder to write; "export" in the run's folder by default.
        checkpoint: prefix of a checkpoint to export instead of the learned initialization.
        modules: the run's modules of the user.

    Raises:
        ConfigurationError: a binding changes more than the export.
        RunDirectoryError: the folder holds no finished run.
        FileExistsError: the export exists already.
        UserModuleError: a module of the run is missing or has changed.
    """
    own = load_modules(modules)
    run = RunDirectory(output_dir)
    check_modules(run.path, own, same_run=True)
    trained = read_configuration([run.require_config()])
    changed = changed_bindings(
        trained, read_configuration([run.require_config(), *gin_files], gin_params)
    )
    others = [name for name in changed if not name.startswith("export.")]
    if others:
        raise ConfigurationError(
            f"An export cannot override {', '.join(others)}: the model card would describe another "
            "run than the trained one. Only bindings of export can be changed here."
        )
    study = configured_study(data_dir=data_dir)
    folder = configured_export(study=study, run=run, path=export_dir, checkpoint=checkpoint)
    print(f"SavedModel, Keras model, example requests and MODEL_CARD.md are in {folder}.")


def sweep(
    gin_file: Path,
    gin_params: Sequence[str],
    output_dir: Path,
    workers: int,
    train_command: Sequence[str],
    data_dir: Path | None = None,
    modules: Sequence[Path] = (),
) -> None:
    """Runs the cells of a sweep that are not finished, in worker processes.

    Args:
        gin_file: configuration file that binds `sweep`. Files that it names are relative to it.
        gin_params: bindings over that file. They do not reach the cells.
        output_dir: the sweep's folder.
        workers: number of cells that run at the same time.
        train_command: the command that starts the training program, without flags.
        data_dir: folder of prepared data sets.
        modules: modules of the user, for every cell.

    Raises:
        ConfigurationError: a configuration cannot be read; no cell has been started.
        UserModuleError: as for `train`; no cell has been started.
        RunDirectoryError: a cell's folder holds another run; no cell has been started.
        SweepError: the folder holds another sweep, or cells failed.
    """
    own = load_modules(modules)
    read_configuration([gin_file], gin_params)
    gin_files, cells = configured_cells()
    running = Sweep(
        cells,
        [configuration_file(gin_file).parent / file for file in gin_files],
        output_dir,
        data_dir=data_dir,
        train_command=train_command,
        read_configuration=read_configuration,
        modules=own,
    )
    with exit_on_signals(running.stop):
        running.run(workers)
    print(f"All {len(cells)} cells are in {pathlib.Path(output_dir) / 'cells'}.")


def compare(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    modules: Sequence[Path] = (),
) -> None:
    """Compares methods on the study of a configuration, or continues to; see `leap_tf.compare`.

    Args:
        gin_files: configuration files that bind `study`, `MetaTrainer` and `compare`.
        gin_params: bindings over the files.
        output_dir: the folder of the table, the figure, and the runs.
        data_dir: folder of prepared data sets.
        modules: modules of the user, as for `load_modules`.

    Raises:
        ConfigurationError: the configuration cannot be read, or its study cannot be built.
        CheckpointMismatchError: the folder holds another comparison.
        UserModuleError: a module cannot be imported.
    """
    load_modules(modules)
    read_configuration(gin_files, gin_params)
    folder = pathlib.Path(output_dir)

    def interrupt():
        raise KeyboardInterrupt

    with exit_on_signals(interrupt), contextlib.suppress(KeyboardInterrupt):
        comparison = configured_comparison(folder / "runs", data_dir)
    print(comparison)
    write_atomically(folder / "comparison.txt", f"{comparison}\n")
    write_atomically(folder / "comparison.csv", comparison.to_dataframe().to_csv())
    figure = Figure(figsize=(6, 4), layout="constrained")
    comparison.plot(figure.subplots())
    figure.savefig(folder / "comparison.png", dpi=110)
    print(f"Table, figure and runs are in {folder}.")
