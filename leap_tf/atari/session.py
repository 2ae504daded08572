"""What the Atari binaries do: read a configuration, meta-train, judge, screen settings."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np

from leap_tf.atari.games import Game
from leap_tf.atari.gin_registration import (
    configured_judge,
    configured_meta_train,
    configured_study,
)
from leap_tf.atari.recipes import AtariRecipe
from leap_tf.atari.visit_log import VisitLog
from leap_tf.experiments.gin_registration import (
    ConfigurationError,
    operative_configuration,
    read_configuration,
)
from leap_tf.experiments.interruption import stop_on_signals
from leap_tf.experiments.pool_choice import THREADS, PoolChoice
from leap_tf.experiments.run_directory import RunDirectory, write_atomically
from leap_tf.experiments.session import Path
from leap_tf.training import SeededTask


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
        study = configured_study(report=VisitLog(run.path / "visits.jsonl"), pool=opened)
        run.claim(config)
        if opened:
            opened.start()
        with stop_on_signals(study.trainer):
            configured_meta_train(study=study, run=run)
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
    print(configured_judge(study=configured_study(), run=run))
    print(f"Every agent, the summary and pictures are in {run.path}.")


def screen(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    games: Sequence[str],
    seeds: Sequence[int],
    updates: int | None,
    output: Path | None,
) -> None:
    """Trains single agents from fresh encoders, and says by what factor they beat random play.

    Random play is the same agent with learning switched off, on the same seed and as many steps.
    This is how the settings of a configuration are found, and how to see that agents learn.

    Args:
        gin_files: configuration files.
        gin_params: bindings over them.
        games: names.
        seeds: of the encoder and all else.
        updates: of each agent; the trainer's number by default.
        output: a file of JSON lines to append to; games and seeds that are in it under the same
            bindings are skipped.

    Raises:
        ConfigurationError, ValueError: what was asked for cannot be done.
    """
    file = pathlib.Path(output) if output else None
    bindings = sorted(gin_params)
    done = set()
    if file and file.exists():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        done = {(line["game"], line["seed"]) for line in lines if line["bindings"] == bindings}
    for game in map(Game, games):
        for seed in seeds:
            if (game.name, seed) in done:
                continue
            started = time.process_time()
            read_configuration(gin_files, [*gin_params, f"atari_study.seed = {seed}"])
            trainer = configured_study().trainer
            seeded = SeededTask(game, seed, updates or trainer.steps_per_task)  # type: ignore[arg-type]
            agent, _ = trainer.runner.adapt(seeded)
            control, _ = trainer.runner.adapt(seeded, learning=False)
            line = {
                "game": game.name,
                "seed": seed,
                "bindings": bindings,
                "frames": agent.frames,
                "seconds": round(agent.seconds, 1),
                "cpu_seconds_with_control": round(time.process_time() - started, 1),
                "final_reward": round(agent.final_reward(), 2),
                "random_final_reward": round(control.final_reward(), 2),
                "reward": round(agent.area_under_reward, 2),
                "random_reward": round(control.area_under_reward, 2),
                "factor": _ratio(agent.final_reward(), control.final_reward()),
            }
            print(
                f"{game.name}, seed {seed}: {line['final_reward']:.1f} per 1000 steps in the last "
                f"quarter of {agent.frames:,} frames, random play "
                f"{line['random_final_reward']:.1f}, factor {line['factor']}",
                flush=True,
            )
            if file:
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    print(f"Bindings over {', '.join(map(str, gin_files))}: {bindings}", file=sys.stderr)


def _ratio(agent: float, control: float) -> float | None:
    """By what factor, None where random play gets nothing or less."""
    return round(float(np.divide(agent, control)), 3) if control > 0 else None
