"""Judges a learned encoder: agents trained from it, from fresh ones, and random play.

A cell is one game, one start and one kind of agent; its file is written when it is done, so a
judgement that was killed goes on. A start is a number: it decides the fresh encoder, the heads,
what the games begin with and the draws of actions, and is the same in every run, whatever its
seed and learner. So runs can be compared pair by pair, and need the controls only once.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from leap_tf.atari.comparison import cell_file, read_cell, write_comparison
from leap_tf.atari.encoder import agent_of
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.export import save_policy
from leap_tf.atari.games import Game, refuse_unknown_game
from leap_tf.atari.pictures import save_frame_strip
from leap_tf.atari.study import AtariStudy
from leap_tf.atari.tables import FRESH, LEARNED, RANDOM
from leap_tf.atari.task_runner import Watch
from leap_tf.experiments.run_directory import RunDirectory, write_atomically
from leap_tf.training import SeededTask, available_cores, map_in_threads

KINDS = (LEARNED, FRESH, RANDOM)


class Cell(NamedTuple):
    """One agent to train."""

    kind: str
    game: str
    seed: int
    file: pathlib.Path


def atari_judge(
    study: AtariStudy,
    run: RunDirectory,
    groups: Mapping[str, Sequence[str]],
    seeds: int = 5,
    kinds: Sequence[str] = KINDS,
    updates: int | None = None,
    target_scores: Mapping[str, float] | None = None,
    pictures: bool = True,
    parallel_games: int | None = None,
    watch: Watch | None = None,
) -> str:
    """Trains agents on every game and compares how they learn.

    Args:
        study: as it was built.
        run: the folder with the learned encoder; results are written into it.
        groups: from a name, such as "held out", to names of games.
        seeds: starts of each game, so many agents of each kind.
        kinds: of agents, "learned", "fresh" and "random policy". The last two are the same in
            every run, so one run of several that are compared can have them for all.
        updates: of each; the trainer's number by default.
        target_scores: for some games, the score for "frames to reach it".
        pictures: whether to save policy and frame strip of the first learned agent of each game.
        parallel_games: agents trained at the same time, by default one more than there are cores.
        watch: called after every update of an agent. What it raises ends the judgement.

    Returns:
        The table, as text.

    Raises:
        ValueError: a name is of no game or kind, or a number makes no sense.
        RunDirectoryError: training has not finished in this folder.
    """
    games = list(dict.fromkeys(game for group in groups.values() for game in group))
    for game in [*games, *(target_scores or {})]:
        refuse_unknown_game(game)
    if seeds < 1 or (updates is not None and updates < 1):
        raise ValueError(f"seeds and updates must be at least 1, and are {seeds} and {updates}.")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be among {list(KINDS)}, and are {list(kinds)}.")
    trainer = study.trainer
    run.load_learned(trainer.model, trainer.learner_variables)
    steps = updates or trainer.steps_per_task
    folder = run.path / "evaluation" / f"{steps}_updates"
    encoders = [study.fresh_encoder(seed) for seed in range(seeds)]  # sets a global seed: no thread

    def train(cell: Cell) -> None:
        visit_seed = int(np.random.default_rng(cell.seed).integers(2**31))
        seeded = SeededTask(Game(cell.game), visit_seed, steps)  # type: ignore[arg-type]
        evaluation, parameters = trainer.runner.adapt(
            seeded,
            learning=cell.kind != RANDOM,
            encoder=None if cell.kind == LEARNED else encoders[cell.seed],
            watch=watch,
        )
        if pictures and cell.kind == LEARNED and cell.seed == 0:
            agent = agent_of(trainer.model, parameters)
            save_policy(agent, run.path / "policies" / cell.game)
            with trainer.runner.arcade.visit(cell.game, seed=visit_seed) as environments:
                save_frame_strip(agent, environments[0], run.plots / f"{cell.game}.png")
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cell.file, json.dumps(evaluation.as_record()) + "\n")
        print(
            f"  {cell.game}, start {cell.seed}, {cell.kind}: "
            f"{evaluation.area_under_reward:.1f} per 1000 steps, "
            f"{evaluation.frames / evaluation.seconds:.0f} frames/s",
            file=sys.stderr,
        )

    cells = list(_cells(folder, kinds, games, seeds))
    missing = [cell for cell in cells if not cell.file.exists()]
    print(f"{len(cells)} agents, {len(missing)} of them to train", file=sys.stderr)
    threads = available_cores() + 1 if parallel_games is None else parallel_games
    for _ in map_in_threads(train, missing, threads):
        pass
    found: dict[str, dict[str, list[GameEvaluation]]] = {game: {} for game in games}
    for cell in cells:
        found[cell.game].setdefault(cell.kind, []).append(read_cell(cell.file))
    return write_comparison(found, groups, folder, target_scores or {})


def _cells(folder, kinds, games, seeds) -> Iterator[Cell]:
    for game in games:
        for seed in range(seeds):
            for kind in kinds:
                yield Cell(kind, game, seed, cell_file(folder, kind, game, seed))
