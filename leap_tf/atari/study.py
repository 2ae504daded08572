"""A study of games: built from a configuration and one seed, trained and evaluated in a run folder.

Gin can bind the functions and classes that are registered at the end of this module, besides those
of `leap_tf.experiments`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import gin
import keras
import numpy as np

from leap_tf.atari import comparison
from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    RMSProp,
    actor_critic,
    encoder_of,
    mnih_2013,
    trained_agent,
)
from leap_tf.atari.catch import CatchEnvironment, catch_encoder
from leap_tf.atari.environments import AtariEnvironment, check_game, plain_name
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.problem import AtariProblem, EnvironmentPool, OnUpdate, TrainedGame
from leap_tf.atari.problem import games as games_of
from leap_tf.atari.tf_agents import save_policy
from leap_tf.experiments.config import (
    calling,
    of_a_program,
    parse_configuration,
    with_configuration_errors,
)
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.learners.sequential import SequentialLearner
from leap_tf.serialization import replacing, write_atomically
from leap_tf.tasks import FiniteTasks, TaskSplits
from leap_tf.training import (
    JSONLogger,
    MetaTrainer,
    Study,
    TaskPool,
    TensorBoardLogger,
    available_cores,
)


@dataclasses.dataclass(frozen=True)
class AtariStudy(Study):
    """A trainer, its games, and a function that builds further encoders."""

    make_encoder: Callable[[], keras.Model]

    def fresh_encoder(self, seed: int) -> list[np.ndarray]:
        """Draws untrained weights. Sets Keras' global seed, so it must not run in threads."""
        keras.utils.set_random_seed(seed)
        return encoder_of(self.make_encoder()).get_weights()


def atari_study(
    problem: Callable[..., AtariProblem],
    games: Sequence[str],
    encoder: Callable[[], keras.Model] = mnih_2013,
    seed: int = 0,
    *,
    on_result: Callable[[TrainedGame], None] | None = None,
    on_update: OnUpdate | None = None,
    pool: TaskPool | int | None = None,
) -> AtariStudy:
    """Builds a study. Equal arguments give equal studies, initial weights included.

    Args:
        problem: builds the problem, called as problem(encoder=…, on_result=…, on_update=…, seed=…).
        games: names of the games to meta-train on.
        encoder: builds the encoder, or an agent whose heads are learned too, after the seed is set.
        seed: seed of initial weights and of all later random numbers.
        on_result, on_update: called after task runs and updates of training, see `AtariProblem`.
        pool: where games are played: a pool, or a number of threads. By default there is one
            thread more than there are cores, since a game sometimes waits for its emulator.
            Results do not depend on it.

    Raises:
        ValueError: a game is unknown, or is given twice.
    """
    tasks = FiniteTasks(games_of(list(games)))  # type: ignore[arg-type]
    keras.utils.set_random_seed(seed)
    built = problem(encoder=encoder(), on_result=on_result, on_update=on_update, seed=seed)
    pool = available_cores() + 1 if pool is None else pool
    return AtariStudy(MetaTrainer.from_problem(built, pool), TaskSplits(tasks, (), ()), encoder)


def atari_meta_train(
    study: AtariStudy,
    run: RunDirectory,
    meta_steps: int = 100,
    checkpoint_seconds: float = 30.0,
    *,
    verbose: bool = True,
) -> None:
    """Starts or resumes meta-training, and saves the learned encoder in the run's folder.

    It is saved as `initialization.keras`, and as a SavedModel in `encoder/`; the fresh one if
    `meta_steps` is 0. See `MetaTrainer.fit` for the other arguments.
    """
    trainer = study.trainer
    trainer.fit(
        study.tasks.train,
        meta_steps,
        callbacks=[JSONLogger(run.metrics), TensorBoardLogger(run.tensorboard)],
        checkpoint_dir=run.checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        verbose=verbose,
    )
    if trainer.was_stopped:
        return
    run.save_learner(trainer.learner_variables)
    trainer.model.export(run.path / "encoder", format="tf_saved_model", verbose=False)
    with replacing(run.initialization) as partial:  # last: this file marks the end of training
        trainer.model.save(partial)


def atari_evaluate(
    study: AtariStudy,
    run: RunDirectory,
    groups: Mapping[str, Sequence[str]],
    seeds: int = 5,
    *,
    kinds: Sequence[str] = comparison.KINDS,
    updates: int | None = None,
    target_scores: Mapping[str, float] | None = None,
    pictures: bool = True,
    parallel_games: int | None = None,
    on_update: OnUpdate | None = None,
) -> str:
    """Trains agents from the learned and from fresh encoders, and compares how they learn.

    Every agent has a file, written when the agent is trained, so an interrupted evaluation resumes.
    A start is a number that determines the fresh encoder, the heads, the beginnings of the games
    and the draws of actions. It is the same in every run, whatever its seed and learner. Runs can
    therefore be compared pair by pair, and need the controls only once.

    Args:
        study, run: the study, as it was built, and the folder with the learned encoder.
        groups: names of the games of each group, such as "held out".
        seeds: number of starts per game, hence of agents of each kind.
        kinds: kinds of agents: "learned", "fresh" and "random policy".
        updates: updates of each agent; the trainer's number by default.
        target_scores: for some games, the score of "frames to score".
        pictures: whether to save policy and frame strip of each game's first learned agent.
        parallel_games: agents trained at the same time; by default one more than there are cores.
        on_update: called after every update of an agent. An exception ends the evaluation.

    Returns:
        The table, as text.

    Raises:
        ValueError: a game or a kind is unknown, a game of the group "held out" was trained on, or
            `seeds` or `updates` is below 1.
        RunDirectoryError: training has not finished in this folder.
    """
    games = list(dict.fromkeys(game for group in groups.values() for game in group))
    for game in [*games, *(target_scores or {})]:
        check_game(game)
    trained = {plain_name(task.name) for task in getattr(study.tasks.train, "tasks", ())}
    if trained := trained & {plain_name(game) for game in groups.get("held out", ())}:
        raise ValueError(f"Held-out games are among the games of training: {sorted(trained)}.")
    if seeds < 1 or (updates is not None and updates < 1):
        raise ValueError(f"seeds and updates must be at least 1. Received: {seeds}, {updates}.")
    if not kinds or set(kinds) - set(comparison.KINDS):
        raise ValueError(f"kinds must be among {list(comparison.KINDS)}. Received: {list(kinds)}.")
    trainer = study.trainer
    run.load_learned(trainer.model, trainer.learner_variables)
    steps = updates or trainer.problem.setup.steps_per_task
    folder = run.path / "evaluation" / f"{steps}_updates"
    encoders = [study.fresh_encoder(seed) for seed in range(seeds)]  # not in threads

    cells = [(kind, game, start) for game in games for start in range(seeds) for kind in kinds]

    def train(cell: tuple[str, str, int]) -> None:
        kind, game, start = cell
        seed = int(np.random.default_rng(start).integers(2**31))
        encoder = None if kind == comparison.LEARNED else encoders[start]
        options = {
            "learning": kind != comparison.RANDOM,
            "encoder": encoder,
            "on_update": on_update,
        }
        evaluation, parameters = trainer.problem.adapt(game, seed, steps, **options)
        if pictures and kind == comparison.LEARNED and start == 0:
            agent = trained_agent(trainer.model, parameters)
            save_policy(agent, run.path / "policies" / game)
            with trainer.problem.environment_pool.borrow(game, seed) as environment:
                comparison.save_frame_strip(agent, environment, run.plots / f"{game}.png")
        file = comparison.cell_file(folder, *cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(evaluation.as_record()) + "\n")
        print(
            f"  {game}, start {start}, {kind}: {evaluation.area_under_reward:.1f} per 1000 steps, "
            f"{evaluation.frames / evaluation.seconds:.0f} frames/s",
            file=sys.stderr,
        )

    missing = [cell for cell in cells if not comparison.cell_file(folder, *cell).exists()]
    print(f"Training {len(missing)} of {len(cells)} agents; the others exist", file=sys.stderr)
    threads = available_cores() + 1 if parallel_games is None else parallel_games
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(train, missing))  # raises the exception of an agent
    found: dict[str, dict[str, list[GameEvaluation]]] = {game: {} for game in games}
    for kind, game, start in cells:
        found[game].setdefault(kind, []).append(
            comparison.read_cell(comparison.cell_file(folder, kind, game, start))
        )
    agents = {game: {kind: [of] for kind, of in kinds.items()} for game, kinds in found.items()}
    return comparison.write_comparison(agents, groups, folder, target_scores or {})


configured_study = with_configuration_errors(
    gin.external_configurable(atari_study, "atari_study", denylist=["on_result", "on_update"])
)
configured_meta_train = of_a_program(atari_meta_train, "atari_meta_train", ["study", "run"])
configured_evaluate = of_a_program(atari_evaluate, "atari_evaluate", ["study", "run", "on_update"])
for _encoder in (mnih_2013, catch_encoder, actor_critic):
    gin.external_configurable(_encoder, module="atari")
gin.external_configurable(
    calling(AtariProblem),
    "AtariProblem",
    module="atari",
    denylist=["encoder", "on_result", "on_update", "seed"],
)
for _environment in (AtariEnvironment, CatchEnvironment):
    gin.external_configurable(
        calling(_environment), _environment.__name__, module="atari", denylist=["game", "seed"]
    )
for _class in (EnvironmentPool, ActorCriticLoss, RMSProp, SequentialLearner):
    gin.external_configurable(calling(_class), _class.__name__, module="atari")


@dataclasses.dataclass(frozen=True)
class AtariStudyFactory:
    """Builds a configured study in a worker of a cluster.

    Environments are not sent. A worker creates them when it first plays a game, and every task run
    starts with a seeded reset, so results are the same.
    """

    configuration: str  # the whole gin configuration, as text
    # Variables to set before TensorFlow is imported.
    environment: ClassVar[Mapping[str, str]] = {"TF_USE_LEGACY_KERAS": "1"}

    def __call__(self) -> Study:
        """Builds the study."""
        parse_configuration(self.configuration)
        return configured_study()
