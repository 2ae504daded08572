"""The functions behind the command-line programs: train, evaluate, export, sweep, compare.

Each reads a configuration, builds its study and works in a run's folder. They share

    gin_files     configuration files; those of `evaluate` and `export` override the run's own
    gin_params    bindings that override the files, such as "evaluate.steps = 50"
    output_dir    the run's folder
    data_dir      the folder of prepared data sets; None for that of TensorFlow Datasets
    modules       modules of the user, as for `load_modules`; those of the run, if it has begun

and raise, before anything is written: ConfigurationError for a configuration that cannot be read
or whose study cannot be built; RunDirectoryError for a folder that holds something else, lacks what
the command needs, or is in use; UserModuleError for a module that cannot be imported, is not named
or has changed; MissingDataError for a data set that is not prepared.

Helpers for all programs are here too: signals and errors in one line.
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
from leap_tf.experiments import user_modules
from leap_tf.experiments.config import (
    ConfigurationError,
    check_configured_evaluation,
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
    report_bindings_without_effect,
)
from leap_tf.experiments.run_directory import RunDirectory, bindings_of, changed_bindings
from leap_tf.experiments.sweep import Sweep
from leap_tf.serialization import write_atomically
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
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        stop()
        with contextlib.suppress(OSError):  # the reader of a pipe may be gone
            print("Stopping. What is complete is saved; the rest is repeated.", file=sys.stderr)

    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    signals = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        with contextlib.suppress(OSError):
            print("Stopped. The same command continues from there.", file=sys.stderr)
        sys.exit(128 + received[0])


@contextlib.contextmanager
def stop_on_signals(trainer: MetaTrainer) -> Iterator[None]:
    """Makes the first SIGTERM, SIGHUP or Ctrl-C stop `trainer.fit`, which saves; a second kills."""
    with exit_on_signals(trainer.request_stop) as received:
        yield
        if received:
            with contextlib.suppress(OSError):
                print(f"Stopped after meta-step {trainer.meta_step}.", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class PoolChoice:
    """The pool that tasks run on. It is not part of the configuration, since results are the same.

    `kind` is "threads" or "ray". The others are settings of Ray, which threads refuse: None starts
    Ray on this machine, with a worker per CPU and a `deadline` of 1800 seconds for a task.
    """

    kind: str = "threads"
    address: str | None = None
    workers: int | None = None
    deadline: float | None = None

    def __post_init__(self):
        if self.kind not in ("threads", "ray"):
            raise ValueError(f'pool must be "threads" or "ray". Received: pool={self.kind!r}.')
        of_ray = self.address, self.workers, self.deadline
        if self.kind == "threads" and of_ray != (None, None, None):
            raise ValueError("address, workers and deadline need --pool=ray.")

    def open(self, factory: StudyFactory) -> contextlib.AbstractContextManager[RayPool | None]:
        """Returns a context with a pool that is not started yet, and None for threads.

        `factory` builds the study in a worker. Raises ClusterError if Ray is not installed.
        """
        if self.kind == "threads":
            return contextlib.nullcontext()  # the trainer has a pool of its own
        deadline = 1800.0 if self.deadline is None else self.deadline
        return contextlib.closing(RayPool(factory, self.workers, self.address, deadline))


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
    modules: tuple[user_modules.UserModule, ...] = ()

    def __call__(self) -> Study:
        """Builds the study.

        Raises:
            UserModuleError: a module cannot be imported on this machine, or has another source.
        """
        for module in self.modules:
            (found,) = user_modules.load_modules([module.flag.removeprefix("--module=")])
            if found.sha256 != module.sha256:
                raise user_modules.UserModuleError(
                    f"{found.path} differs from the source on the driver. Copy that to this node."
                )
        parse_configuration(self.configuration)
        return configured_study(data_dir=self.data_dir)


Path = str | os.PathLike

# Errors that a user can act on. All others show their traceback.
_USER_ERRORS = (LeapError, ValueError, OSError, FloatingPointError, tf.errors.OpError)

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
                f"{text.splitlines()[0].rstrip('.')}. {advice}, and run the same command again. "
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

    Results are the same on every pool. Raises ClusterError if the pool cannot start.
    """
    run, own = _opened(output_dir, modules)
    config = read_configuration(gin_files, gin_params)
    run.check(config)
    report_bindings_without_effect(config)
    data_everywhere = None if data_dir is None else os.path.abspath(data_dir)
    factory = ConfiguredStudyFactory(config, data_everywhere, own)
    with pool.open(factory) as opened:
        study = configured_study(data_dir=data_dir, pool=opened)
        check_configured_evaluation(study)
        run.claim(config)  # after the study, so that one that cannot be built leaves no folder
        if own:
            write_atomically(run.path / user_modules.RECORD, user_modules.record_of(own))
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

    A module whose source has changed is a warning here.
    """
    run, _ = _opened(output_dir, modules, same_run=False)
    changed = _changed(
        run,
        gin_files,
        gin_params,
        re.compile(r"evaluate\.|evaluation/|EvaluationConfig\.|MetaTrainer\.pool$"),
        "An evaluation can change only bindings of evaluate, EvaluationConfig, MetaTrainer.pool "
        "and the scope evaluation/. Others would describe a different run: with another seed, "
        "for example, held-out tasks may have been trained on.",
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
    """Exports the learned initialization of a run, or a checkpoint, for serving.

    The new folder is `export_dir`, by default "export" in the run's folder.
    """
    run, _ = _opened(output_dir, modules)
    _changed(
        run,
        gin_files,
        gin_params,
        re.compile(r"export\."),
        "An export can change only bindings of export. With others, the model card would describe "
        "a different run.",
    )
    study = configured_study(data_dir=data_dir)
    folder = configured_export(study=study, run=run, path=export_dir, checkpoint=checkpoint)
    requests = " example requests" if (folder / "requests").exists() else " no example requests"
    print(f"SavedModel, Keras model,{requests} and MODEL_CARD.md are in {folder}.")


def _opened(output_dir, modules, same_run=True):
    """Returns a run's folder and the imported modules, which are those of the run there."""
    own, run = user_modules.load_modules(modules), RunDirectory(output_dir)
    user_modules.check_modules(run.path, own, same_run)
    return run, own


def _changed(run, gin_files, gin_params, allowed, advice):
    """Reads a run's configuration and what overrides it, and returns the bindings that differ.

    Raises:
        ConfigurationError: the pattern `allowed` does not match one of them.
    """
    trained = read_configuration([run.require_config()])
    now = read_configuration([run.require_config(), *gin_files], gin_params)
    changed = changed_bindings(trained, now)
    if others := [name for name in changed if not allowed.match(name)]:
        raise ConfigurationError(f"{', '.join(others)} cannot be overridden. {advice}")
    return changed


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

    `gin_file` and `gin_params` bind `sweep` and macros only, or a ConfigurationError is raised.
    Files are relative to `gin_file`. `train_command` starts the training program, without flags.

    Raises:
        SweepError: the folder holds a different sweep, or cells failed. Other errors are raised
            before any cell is started.
    """
    own = user_modules.load_modules(modules)
    bound = bindings_of(read_configuration([gin_file], gin_params))
    if lost := [name for name in bound if "." in name and not name.startswith("sweep.")]:
        raise ConfigurationError(
            f"{', '.join(lost)} would not reach the cells. Bind it in sweep.bindings, or in a file "
            "of sweep.gin_files."
        )
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

    The configuration binds `study`, `MetaTrainer` and `compare`. The folder gets the table, the
    figure and the runs.

    Raises:
        CheckpointMismatchError: the folder holds another comparison.
    """
    own = user_modules.load_modules(modules)
    folder = pathlib.Path(output_dir)
    if (folder / "runs" / "comparison.json").exists():
        user_modules.check_modules(folder, own, same_run=True)
    report_bindings_without_effect(read_configuration(gin_files, gin_params))
    folder.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(folder)  # holds the lock
    directory.lock_out_others()
    write_atomically(folder / user_modules.RECORD, user_modules.record_of(own))

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
