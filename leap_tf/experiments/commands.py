"""What the command-line programs do: read a configuration, build its study, train, evaluate."""

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

from leap_tf.cluster import RayPool, StudyFactory
from leap_tf.errors import LeapError
from leap_tf.experiments.config import (
    ConfigurationError,
    configured_cells,
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
from leap_tf.training import MetaTrainer, Study


@contextlib.contextmanager
def exit_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Calls `stop` on the first SIGTERM, SIGHUP or Ctrl-C; a second one kills the process.

    When the block has ended after a signal, the process exits with 128 + the signal's number, as
    shells expect, so the run does not look finished.

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
    """Lets the first SIGTERM or Ctrl-C stop `trainer.fit`, which saves; a second one kills."""
    with exit_on_signals(trainer.request_stop) as received:
        yield
        if received:
            print(f"Stopped after meta-step {trainer.meta_step}.", file=sys.stderr)


POOLS = ("threads", "ray")


@dataclasses.dataclass(frozen=True)
class PoolChoice:
    """The pool that tasks run on. It is not part of the configuration: results are the same.

    Attributes:
        kind: "threads" of this process, or "ray".
        address: of a running Ray cluster; None starts Ray on this machine.
        workers: how many workers on Ray; None for one per CPU.
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
        """Yields the pool, not started yet, and closes it; None for threads of the trainer's own.

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


flags.disclaim_key_flags()  # flags count as the binary's own and appear in its --help


def define_pool_flags() -> Callable[[], PoolChoice]:
    """Defines --pool, --address, --workers and --deadline.

    Returns:
        Reads them, once flags are parsed; raises ValueError if they do not go together.
    """
    kind = flags.DEFINE_enum("pool", THREADS.kind, POOLS, "Where tasks run.")
    address = flags.DEFINE_string(
        "address", None, "Of a running Ray cluster; by default Ray is started on this machine."
    )
    workers = flags.DEFINE_integer("workers", None, "Workers on Ray; one per CPU by default.")
    deadline = flags.DEFINE_float(
        "deadline", THREADS.deadline, "Seconds after which a task on Ray counts as hanging."
    )
    return lambda: PoolChoice(kind.value, address.value, workers.value, deadline.value)


@dataclasses.dataclass(frozen=True)
class ConfiguredStudyFactory:
    """Builds a study from the configuration of a run.

    Attributes:
        configuration: the whole of it, as text.
        data_dir: folder of prepared data sets, the same on every node; None for the usual one.
    """

    configuration: str
    data_dir: str | None = None

    def __call__(self) -> Study:
        """Builds the study."""
        parse_configuration(self.configuration)
        return configured_study(data_dir=self.data_dir)


Path = str | os.PathLike

# Errors that a user can act on; all others show their traceback.
_USER_ERRORS = (LeapError, ValueError, OSError, FloatingPointError, tf.errors.OpError)

# Bindings that an evaluation may change.
_OF_EVALUATION = re.compile(r"evaluate\.|evaluation/|EvaluationConfig\.|MetaTrainer\.pool$")

# What a full or read-only disk says, by way of Python or of TensorFlow, and what can be done.
_DISK = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "Free some space on the disk, or raise the limit",
    (errno.EROFS, errno.EACCES, errno.EPERM): "Make the folder writable",
}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for what a user can mend, and keeps libraries quiet.

    With --verbosity=1 there is a traceback and everything that libraries tell.
    """
    if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)  # data sets and checkpoints tell a lot
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except _USER_ERRORS as error:
        absl_logging.debug("The error that follows in one line", exc_info=True)
        raise SystemExit(f"{type(error).__name__}: {_with_advice(error)}") from None


def _with_advice(error: Exception) -> str:
    """An error's text, and what to do about a disk that takes no more."""
    text = re.sub(r"\{\{.*?\}\}\s*", "", str(error)).strip()
    for numbers, advice in _DISK.items():
        if any(os.strerror(number) in text for number in numbers):
            return (
                f"{text.splitlines()[0].rstrip('.')}. {advice}, and give the same command again: "
                "whatever is in the folder under its own name is whole, and it goes on from there."
            )
    return text


def train(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    pool: PoolChoice = THREADS,
) -> None:
    """Trains and judges the configured study in `output_dir`, or goes on with it there.

    Args:
        gin_files: configuration files.
        gin_params: bindings over them.
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.
        pool: where tasks run; another one when a run goes on gives the same results.

    Raises:
        ConfigurationError, RunDirectoryError, MissingDataError, ClusterError: what was asked for
            cannot be done; nothing has been written over.
    """
    run = RunDirectory(output_dir)
    config = read_configuration(gin_files, gin_params)
    run.check(config)
    factory = ConfiguredStudyFactory(
        config, None if data_dir is None else os.path.abspath(data_dir)
    )
    with pool.open(factory) as opened:
        study = configured_study(data_dir=data_dir, pool=opened)
        run.claim(config)  # only now: a study that cannot be built leaves no folder behind
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
) -> None:
    """Judges a finished run again, perhaps with other steps or another target.

    Args:
        gin_files: configuration files over the run's own.
        gin_params: bindings over its configuration, such as "evaluate.steps = 50".
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.

    Raises:
        ConfigurationError: they change more than how a run is judged.
        RunDirectoryError: the folder holds no finished run.
    """
    run = RunDirectory(output_dir)
    trained = read_configuration([run.require_config()])
    changed = changed_bindings(
        trained, read_configuration([run.require_config(), *gin_files], gin_params)
    )
    others = [name for name in changed if not _OF_EVALUATION.match(name)]
    if others:
        raise ConfigurationError(
            f"A run is judged as what it was trained as, and {', '.join(others)} would make it "
            "another: with another seed, say, held-out tasks may have been trained on. What can be "
            "bound here is evaluate.…, EvaluationConfig.optimizer, judged_stopping, transductive "
            "and parallel_tasks, and whatever is under the scope evaluation/."
        )
    study = configured_study(data_dir=data_dir)
    print(configured_evaluate(study=study, run=run, overrides=changed))
    print(f"The run's own judgement is as it was; this one is in {run.evaluation_again}.")


def export(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    data_dir: Path | None = None,
    export_dir: Path | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Exports what a run has learned, to be served elsewhere.

    Args:
        gin_files: configuration files over the run's own.
        gin_params: bindings over its configuration, such as "export.requests = 8".
        output_dir: the run's folder.
        data_dir: folder of prepared data sets.
        export_dir: the folder to write; "export" in the run's folder by default.
        checkpoint: prefix of a checkpoint to export in the place of the learned initialization.

    Raises:
        ConfigurationError: they change more than the export.
        RunDirectoryError: the folder holds no finished run.
        FileExistsError: there is an export already.
    """
    run = RunDirectory(output_dir)
    trained = read_configuration([run.require_config()])
    changed = changed_bindings(
        trained, read_configuration([run.require_config(), *gin_files], gin_params)
    )
    others = [name for name in changed if not name.startswith("export.")]
    if others:
        raise ConfigurationError(
            f"What is exported is the run as it was trained and judged, and {', '.join(others)} "
            "would make it another than its card says. Only export.… can be bound here."
        )
    study = configured_study(data_dir=data_dir)
    folder = configured_export(study=study, run=run, path=export_dir, checkpoint=checkpoint)
    print(f"SavedModel, Keras model, example requests and MODEL_CARD.md are in {folder}.")


def sweep(
    gin_file: Path,
    gin_params: Sequence[str],
    output_dir: Path,
    workers: int,
    train_binary: Path,
    data_dir: Path | None = None,
) -> None:
    """Runs the cells of a sweep that are not finished, in worker processes.

    Args:
        gin_file: binds `sweep`; files that it names are relative to it.
        gin_params: bindings over it, for the sweep itself and not for its cells.
        output_dir: the sweep's folder.
        workers: cells that run at the same time.
        train_binary: path of bin/train.py.
        data_dir: folder of prepared data sets.

    Raises:
        ConfigurationError, RunDirectoryError: nothing has been started.
        SweepError: cells failed.
    """
    read_configuration([gin_file], gin_params)
    gin_files, cells = configured_cells()
    running = Sweep(
        cells,
        [pathlib.Path(gin_file).parent / file for file in gin_files],
        output_dir,
        data_dir,
        train_binary,
        read_configuration,
    )
    with exit_on_signals(running.stop):
        running.run(workers)
    print(f"All {len(cells)} cells are in {pathlib.Path(output_dir) / 'cells'}.")
