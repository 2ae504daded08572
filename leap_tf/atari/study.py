"""A study of games: a trainer and the games it meta-trains on, built from one seed."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from leap_tf.atari.encoder import mnih_2013
from leap_tf.atari.games import games as games_of
from leap_tf.atari.task_runner import Watch
from leap_tf.atari.trainer import AtariTrainer, Reporter
from leap_tf.tasks import FiniteTasks
from leap_tf.training import TaskPool


@dataclasses.dataclass(frozen=True)
class AtariStudy:
    """What an experiment works on. The trainer's encoder is fresh until something trains it."""

    trainer: AtariTrainer
    games: FiniteTasks
    seed: int
    make_encoder: Callable[[], keras.Model]

    def fresh_encoder(self, seed: int) -> list[np.ndarray]:
        """Draws weights that nothing has trained. Sets Keras' global seed: not for threads."""
        keras.utils.set_random_seed(seed)
        return self.make_encoder().get_weights()


def atari_study(
    trainer: Callable[..., AtariTrainer],
    games: Sequence[str],
    encoder: Callable[[], keras.Model] = mnih_2013,
    seed: int = 0,
    report: Reporter | None = None,
    watch: Watch | None = None,
    pool: TaskPool | None = None,
) -> AtariStudy:
    """Builds a study. The same arguments give the same study, initial weights included.

    Args:
        trainer: makes the trainer, called as trainer(encoder=…, report=…, watch=…, seed=…).
        games: names of the games to meta-train on.
        encoder: builds the encoder, once the seed is set.
        seed: decides initial weights and everything drawn later.
        report: called with every visit of training.
        watch: called after every update of training.
        pool: where games are played, trainer(…, pool=pool) if there is one.

    Raises:
        ValueError: a name is of no game, or is there twice.
    """
    tasks = FiniteTasks(games_of(list(games)))  # type: ignore[arg-type]
    keras.utils.set_random_seed(seed)
    where = {} if pool is None else {"pool": pool}
    made = trainer(encoder=encoder(), report=report, watch=watch, seed=seed, **where)
    return AtariStudy(made, tasks, seed, encoder)
