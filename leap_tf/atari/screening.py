"""Trains single agents from fresh encoders and holds them against random play.

Random play is the same agent with learning switched off, on the same start and as many steps. This
is how the settings and games of a configuration are found, and how to see that agents learn.
"""

import hashlib
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence

from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.games import Game
from leap_tf.atari.gin_registration import configured_study
from leap_tf.experiments.commands import Path
from leap_tf.experiments.config import read_configuration
from leap_tf.experiments.run_directory import bindings_of
from leap_tf.training import SeededTask, map_in_threads

# What a single agent does not depend on: games are chosen by a screening, and do not undo it.
_OF_THE_STUDY = re.compile(
    r"atari_study\.games$|atari_judge\.|atari_meta_train\.|meta/|Leap\.|"
    r"AtariTrainer\.(learner|meta_optimizer|meta_batch_size)$"
)


def screen(
    gin_files: Sequence[Path],
    gin_params: Sequence[str],
    games: Sequence[str],
    seeds: Sequence[int],
    updates: int | None,
    output: Path | None,
) -> None:
    """Says by what factor agents beat random play.

    Args:
        gin_files: configuration files.
        gin_params: bindings over them.
        games: names.
        seeds: of the encoder and all else.
        updates: of each agent; the trainer's number by default.
        output: a file of JSON lines to append to. What is there already, of the same game, seed,
            settings and updates, is not made again; which games a study has is no setting.

    Raises:
        ConfigurationError, ValueError: what was asked for cannot be done.
    """
    file = pathlib.Path(output) if output else None
    present = file.read_text().splitlines() if file and file.exists() else []
    done = {_key(json.loads(line)) for line in present}
    for game in map(Game, games):
        for seed in seeds:
            config = read_configuration(gin_files, [*gin_params, f"atari_study.seed = {seed}"])
            trainer = configured_study().trainer
            steps = updates or trainer.steps_per_task
            line = {
                "game": game.name,
                "seed": seed,
                "bindings": sorted(gin_params),
                "settings_sha256": _fingerprint(config),
                "updates": steps,
            }
            if _key(line) in done:
                continue
            seeded = SeededTask(game, seed, steps)  # type: ignore[arg-type]
            line |= _against_random_play(trainer.runner, seeded)
            print(
                f"{game.name}, seed {seed}: {line['final_reward']:.1f} per 1000 steps in the last "
                f"quarter of {line['frames']:,} frames, random play "
                f"{line['random_final_reward']:.1f}, factor {line['factor']}; "
                f"{line['wall_seconds']:.0f} s",
                flush=True,
            )
            if file:
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    print(f"Bindings over {', '.join(map(str, gin_files))}: {sorted(gin_params)}", file=sys.stderr)


def _key(line):
    return tuple(line.get(name) for name in ("game", "seed", "settings_sha256", "updates"))


def _fingerprint(config: str) -> str:
    """A hash of the settings that a single agent depends on."""
    settings = [item for item in bindings_of(config).items() if not _OF_THE_STUDY.match(item[0])]
    return hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()


def _against_random_play(runner, seeded) -> dict:
    """Trains the agent and plays the control beside it, each on a thread of its own."""
    started, started_cpu = time.perf_counter(), time.process_time()

    def play(learning: bool) -> GameEvaluation:
        return runner.adapt(seeded, learning)[0]

    agent, control = map_in_threads(play, [True, False], threads=2)
    return {
        "frames": agent.frames,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - started_cpu, 1),
        "final_reward": round(agent.final_reward(), 2),
        "random_final_reward": round(control.final_reward(), 2),
        "reward": round(agent.area_under_reward, 2),
        "random_reward": round(control.area_under_reward, 2),
        "score": agent.score,
        "random_score": control.score,
        "factor": _ratio(agent.final_reward(), control.final_reward()),
    }


def _ratio(agent: float, control: float) -> float | None:
    """By what factor, None where random play gets nothing or less."""
    return round(agent / control, 3) if control > 0 else None
