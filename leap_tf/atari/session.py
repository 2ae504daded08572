"""What the Atari binaries do: read a configuration, meta-train, judge, compare."""

import pathlib
from collections.abc import Sequence

from leap_tf.atari.comparison import compare as compare_runs
from leap_tf.atari.gin_registration import configured_judge, configured_meta_train, configured_study
from leap_tf.atari.recipes import AtariRecipe
from leap_tf.atari.visit import VisitStoppedError
from leap_tf.atari.visit_log import VisitLog, VisitWatch
from leap_tf.experiments.commands import THREADS, Path, PoolChoice, exit_on_signals, stop_on_signals
from leap_tf.experiments.config import (
    ConfigurationError,
    operative_configuration,
    read_configuration,
)
from leap_tf.experiments.result_cache import KeepingPool
from leap_tf.experiments.run_directory import RunDirectory, write_atomically


def train(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    output_dir: Path,
    pool: PoolChoice = THREADS,
) -> None:
    """Meta-trains the configured study in `output_dir`, or goes on with it there.

    Args:
        gin_files: configuration files.
        gin_params: bindings over them.
        output_dir: the run's folder.
        pool: where games are played; another one when a run goes on gives the same results.

    Raises:
        ConfigurationError, RunDirectoryError, ClusterError: what was asked for cannot be done;
            nothing has been written over.
    """
    run = RunDirectory(output_dir)
    config = read_configuration(gin_files, gin_params)
    run.check(config)
    with pool.open(AtariRecipe(config)) as opened:
        log = VisitLog(run.path / "visits.jsonl")
        study = configured_study(report=log, watch=VisitWatch(), pool=opened)
        run.claim(config)
        if opened:
            opened.start()
        kept = KeepingPool(study.trainer.pool, run.path / "visits")
        study.trainer.pool = kept
        with stop_on_signals(study.trainer):
            configured_meta_train(study=study, run=run)
        kept.clear()
    write_atomically(run.operative_config, operative_configuration())
    print(f"Encoder, metrics and visits are in {run.path}. Judge it with bin/atari_evaluate.py.")


def evaluate(gin_params: Sequence[str], output_dir: Path) -> None:
    """Judges a finished run, or goes on with judging it.

    Args:
        gin_params: bindings over its configuration, such as "atari_judge.seeds = 3".
        output_dir: the run's folder.

    Raises:
        ConfigurationError: a binding is of something else than the judgement.
        RunDirectoryError: the folder holds no finished run.
    """
    run = RunDirectory(output_dir)
    others = [binding for binding in gin_params if not binding.strip().startswith("atari_judge.")]
    if others:
        raise ConfigurationError(
            f"Agents are judged under the settings of their run, so that those of a judgement that "
            f"was stopped belong together. Only atari_judge can be bound here, not {others}."
        )
    read_configuration([run.require_config()], gin_params)
    run.require_initialization()
    run.lock_out_others()
    watch = VisitWatch()
    with exit_on_signals(watch.stop):
        try:
            print(configured_judge(study=configured_study(), run=run, watch=watch))
        except VisitStoppedError:
            return
    print(f"Every agent, the summary and pictures are in {run.path}.")


def compare(runs: Sequence[str], output_dir: Path) -> None:
    """Compares judged runs of several methods or seeds.

    Args:
        runs: each as "method=folder".
        output_dir: where table, figures and pictures go.

    Raises:
        ConfigurationError, RunDirectoryError: what was asked for cannot be done.
    """
    named = []
    for run in runs:
        method, separator, folder = run.partition("=")
        if not (separator and method and folder):
            raise ConfigurationError(f"Runs are given as method=folder, and not as {run!r}.")
        named.append((method, pathlib.Path(folder)))
    print(compare_runs(named, pathlib.Path(output_dir)))
