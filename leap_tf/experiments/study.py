"""A study: tasks, a model and a trainer that belong together, built from one seed."""

import dataclasses
import os
from collections.abc import Callable

import keras

from leap_tf.tasks import TaskSplits
from leap_tf.training import MetaTrainer, TaskPool


@dataclasses.dataclass(frozen=True)
class Study:
    """What an experiment works on. The trainer's model is fresh until something trains it."""

    trainer: MetaTrainer
    tasks: TaskSplits


def study(
    model: Callable[[], keras.Model],
    tasks: Callable[..., TaskSplits],
    trainer: Callable[..., MetaTrainer] = MetaTrainer,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    pool: TaskPool | None = None,
) -> Study:
    """Builds a study. The same arguments give the same study, initial weights included.

    Args:
        model: builds the model, once the seed is set.
        tasks: makes the splits, called as tasks(seed=…, data_dir=…).
        trainer: makes the trainer, called as trainer(model=…, seed=…).
        seed: decides initial weights, splits and everything drawn later.
        data_dir: the folder of prepared data sets.
        pool: where tasks run, trainer(…, pool=pool) if there is one.
    """
    splits = tasks(seed=seed, data_dir=data_dir)
    keras.utils.set_random_seed(seed)
    where = {} if pool is None else {"pool": pool}
    return Study(trainer=trainer(model=model(), seed=seed, **where), tasks=splits)
