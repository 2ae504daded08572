"""Judges a learned encoder: agents trained from it, from a fresh one, and random play.

A cell is one game, one seed and one of the three. All three play the same starts with the same
draws; a cell's file is written when it is done, so a judgement that was killed goes on.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.export import save_policy
from leap_tf.atari.games import Game, refuse_unknown_game
from leap_tf.atari.pictures import plot_learning_curves, save_frame_strip
from leap_tf.atari.study import AtariStudy
from leap_tf.atari.tables import as_table, summarise
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError, write_atomically
from leap_tf.training import SeededTask, available_cores, map_in_threads

LEARNED, FRESH, RANDOM = "learned", "fresh", "random policy"
_JUDGING = 3  # stream of random numbers, apart from those of the outer loop


class Cell(NamedTuple):
    """One agent to train."""

    initialization: str
    game: str
    seed: int
    file: pathlib.Path


def atari_judge(
    study: AtariStudy,
    run: RunDirectory,
    groups: Mapping[str, Sequence[str]],
    seeds: int = 5,
    updates: int | None = None,
    target_scores: Mapping[str, float] | None = None,
    pictures: bool = True,
    parallel_games: int | None = None,
) -> str:
    """Trains agents on every game and compares how they learn.

    Args:
        study: as it was built, its encoder still fresh.
        run: the folder with the learned encoder; results are written into it.
        groups: from a name, such as "held out", to names of games.
        seeds: how many agents on each game.
        updates: of each; the trainer's number by default.
        target_scores: for some games, the score for "frames to reach it".
        pictures: whether to save policy and frame strip of the first learned agent of each game.
        parallel_games: agents trained at the same time, by default one per core.

    Returns:
        The table, as text.

    Raises:
        ValueError: a name is of no game, or a number makes no sense.
        RunDirectoryError: training has not finished in this folder.
    """
    for game in [*(game for group in groups.values() for game in group), *(target_scores or {})]:
        refuse_unknown_game(game)
    if seeds < 1 or (updates is not None and updates < 1):
        raise ValueError(f"seeds and updates must be at least 1, and are {seeds} and {updates}.")
    if not run.initialization.exists():
        raise RunDirectoryError(
            f"{run.path} has no learned encoder yet. Finish training: the command that started it "
            "goes on where it stopped."
        )
    steps = updates or study.trainer.steps_per_task
    threads = available_cores() if parallel_games is None else parallel_games
    folder = run.path / "evaluation" / f"{steps}_updates"
    encoder = study.trainer.model
    fresh = encoder.get_weights()
    run.load_learned(encoder)
    learned = encoder.get_weights()
    judge = _Judge(study, run, steps, folder, pictures)
    for initialization, weights in ((FRESH, fresh), (RANDOM, fresh), (LEARNED, learned)):
        encoder.set_weights(weights)
        cells = [
            cell
            for game in dict.fromkeys(game for group in groups.values() for game in group)
            for cell in judge.cells(initialization, game, seeds)
        ]
        missing = [cell for cell in cells if not cell.file.exists()]
        print(
            f"{initialization}: {len(cells)} agents, {len(missing)} of them to train",
            file=sys.stderr,
        )
        for _ in map_in_threads(judge.train, missing, threads):
            pass
    encoder.set_weights(fresh)
    summary, table = {}, []
    for group, games in groups.items():
        found = {
            game: {
                initialization: [
                    read_cell(cell.file) for cell in judge.cells(initialization, game, seeds)
                ]
                for initialization in (LEARNED, FRESH, RANDOM)
            }
            for game in games
        }
        summary[group] = {
            game: summarise(evaluations, (target_scores or {}).get(game))
            for game, evaluations in found.items()
        }
        table.append(as_table(group, summary[group], seeds, steps))
        plot_learning_curves(found, run.plots / f"{group.replace(' ', '_')}.png")
    record = {"updates": steps, "seeds": seeds, "groups": summary}
    write_atomically(folder / "summary.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / "summary.md", "\n\n".join(table) + "\n")
    return "\n\n".join(table)


def read_cell(file: pathlib.Path) -> GameEvaluation:
    """Returns what is in a cell's file."""
    return GameEvaluation.from_record(json.loads(file.read_text()))


class _Judge:
    """Trains the agents of cells."""

    def __init__(self, study, run, updates, folder, pictures):
        self._study = study
        self._run = run
        self._updates = updates
        self._folder = folder
        self._pictures = pictures

    def cells(self, initialization: str, game: str, seeds: int) -> list[Cell]:
        place = self._folder / initialization.replace(" ", "_")
        return [
            Cell(initialization, game, seed, place / f"{game}_seed{seed}.json")
            for seed in range(seeds)
        ]

    def train(self, cell: Cell) -> None:
        stream = np.random.default_rng([self._study.seed, _JUDGING, cell.seed])
        seeded = SeededTask(Game(cell.game), int(stream.integers(2**31)), self._updates)  # type: ignore[arg-type]
        runner = self._study.trainer.runner
        evaluation, agent = runner.adapt(seeded, learning=cell.initialization != RANDOM)
        if self._pictures and cell.initialization == LEARNED and cell.seed == 0:
            save_policy(agent, self._run.path / "policies" / cell.game)
            with runner.arcade.visit(cell.game, seed=seeded.seed) as environments:
                save_frame_strip(agent, environments[0], self._run.plots / f"{cell.game}.png")
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cell.file, json.dumps(evaluation.as_record()) + "\n")
        print(
            f"  {cell.game} seed {cell.seed}, {cell.initialization}: "
            f"{evaluation.area_under_reward:.1f} per 1000 steps, "
            f"{evaluation.frames / evaluation.seconds:.0f} frames/s",
            file=sys.stderr,
        )
