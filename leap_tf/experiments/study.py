"""Building, meta-training, evaluation and plots of one study in its run directory.

A study is a set of tasks, a model and a trainer that are built from one seed. Evaluation compares
the learned initialization with the fresh one on held-out tasks.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import pandas as pd

from leap_tf.errors import whole_number
from leap_tf.experiments.report import figures
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError
from leap_tf.experiments.run_tables import FRESH, LEARNED, standard_error
from leap_tf.serialization import replacing, write_atomically
from leap_tf.tasks import TaskSplits
from leap_tf.training import (
    Evaluation,
    JSONLogger,
    MetaTrainer,
    Study,
    TaskPool,
    TensorBoardLogger,
    read_metrics,
)
from leap_tf.training.checkpoint import differences
from leap_tf.training.sampling import describe_tasks


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
        model: builds the model. It is called after the seed is set.
        tasks: builds the splits, called as tasks(seed=…, data_dir=…).
        trainer: builds the trainer, called as trainer(model=…, seed=…).
        seed: seed of the initial weights, the splits and all later random numbers.
        data_dir: folder of prepared data sets.
        pool: where tasks run, passed as trainer(…, pool=pool); None for the trainer's own pool.
    """
    splits = tasks(seed=seed, data_dir=data_dir)
    keras.utils.set_random_seed(seed)
    where = {} if pool is None else {"pool": pool}
    return Study(trainer=trainer(model=model(), seed=seed, **where), tasks=splits)


def meta_train(
    study: Study,
    run: RunDirectory,
    meta_steps: int = 100,
    validation_freq: int = 10,
    validation_steps: int | None = None,
    patience: int | None = None,
    monitor: str = "val_error",
    checkpoint_seconds: float = 30.0,
    verbose: bool = True,
) -> None:
    """Meta-trains a study, or continues to, and writes the learned initialization to the folder.

    Args:
        study, run: the study to train and the run's folder.
        meta_steps: total number of meta-updates; 0 writes the fresh initialization.
        validation_freq: meta-steps from one validation to the next.
        validation_steps: gradient steps on a validation task; the trainer's number by default.
        patience: number of validations without a lower `monitor` after which training stops and
            the best initialization is taken. None trains to the end and takes the last one.
        monitor: validation metric that is minimized, for `patience`. The paper's runs of Omniglot
            use "val_training_error".
        checkpoint_seconds: least time between two checkpoints.
        verbose: whether to show progress.
    """
    trainer = study.trainer
    loggers = JSONLogger(run.metrics), TensorBoardLogger(run.tensorboard)
    callbacks: list[keras.callbacks.Callback] = [*loggers]
    early_stopping = None
    if patience is not None:
        validated = study.tasks.validation and (not meta_steps or 0 < validation_freq <= meta_steps)
        if not validated or not monitor.startswith("val_"):
            raise ValueError(
                f"patience needs validation tasks, {validation_freq=} from 1 to {meta_steps=}, and "
                f"{monitor=} to be a metric of them, such as 'val_error'."
            )
        early_stopping = _EarlyStopping(
            monitor, mode="min", patience=patience, restore_best_weights=True
        )
        callbacks.append(early_stopping)
    trainer.fit(
        study.tasks.train,
        meta_steps,
        validation_tasks=study.tasks.validation,
        callbacks=callbacks,
        validation_freq=validation_freq,
        validation_steps=validation_steps,
        checkpoint_dir=run.checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        verbose=verbose,
    )
    if trainer.was_stopped:
        return
    meta_step = trainer.meta_step
    if early_stopping and early_stopping.best_weights is not None:
        meta_step = early_stopping.best_epoch + 1
    info = {"meta_step": meta_step, "tasks": _training_tasks(study)}
    write_atomically(run.initialization_info, json.dumps(info) + "\n")
    run.save_learner(trainer.learner_variables)
    with replacing(run.initialization) as partial:
        trainer.model.save(partial)
    if trainer.meta_step:
        with replacing(run.plots / "learning_curve.png") as partial:
            plot_learning_curve(read_metrics(run.metrics), partial)


def load_learned(study: Study, run: RunDirectory) -> None:
    """Assigns what the run has learned to a study on the same data.

    Raises:
        RunDirectoryError: the training tasks are not those of the run, or as `run.load_learned`.
    """
    run.load_learned(study.trainer.model, study.trainer.learner_variables)
    then = json.loads(run.initialization_info.read_text()).get("tasks")
    if then and (changed := differences({"tasks": then}, {"tasks": _training_tasks(study)})):
        raise RunDirectoryError(
            f"The tasks are not those that {run.path} was trained on, so its held-out tasks may "
            f"have been. Pass the data of the run (--data_dir). What differs: {changed[0]:.500}."
        )


def _training_tasks(study):
    size = study.trainer.problem.setup.meta_batch_size
    return json.loads(json.dumps(describe_tasks(study.tasks.train, size)))


class _EarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping that refuses an unknown monitor and skips meta-steps without validation."""

    def on_epoch_end(self, epoch, logs=None):
        validated = [name for name in logs or () if name.startswith("val_")]
        if validated and self.monitor not in validated:
            raise ValueError(f"monitor={self.monitor!r} must be one of {validated}.")
        if validated:
            super().on_epoch_end(epoch, logs)


SPLITS = ("test", "validation")
_OF_A_TASK = (
    "name", "seed", "error", "loss", "examples", "parameters", "finite",
    "final_training_error", "area_under_error", "path_length", "path_energy",
)  # fmt: skip


def check_evaluation(study: Study, split: str, steps: int | None) -> None:
    """Checks the arguments of `evaluate`, before any training.

    Raises:
        ValueError: `split` is not one of `SPLITS` or has no tasks, or `steps` is below 1 or not
            above all `held_out_steps`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}.")
    if not getattr(study.tasks, split):
        raise ValueError(f"The study has no {split} tasks to evaluate.")
    setup, config = study.trainer.problem.setup, study.trainer.problem.evaluation
    config.check_steps(setup.steps_per_task if steps is None else whole_number("steps", steps, 1))


def evaluate(
    study: Study,
    run: RunDirectory,
    steps: int | None = None,
    target_error: float = 0.1,
    split: str = "test",
    baseline: bool = True,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """Adapts to every held-out task from the learned and from the fresh initialization.

    The fresh initialization is the one that meta-training started from. Tasks, batches, steps and
    code are the same for both. The results go to evaluation.json, or to evaluation_again.json if
    there are `overrides`.

    Args:
        study: a newly built study, whose model is still fresh.
        run: the folder with the learned initialization.
        steps: gradient steps on a task; the trainer's number by default.
        target_error: the training error for the column "steps to error …".
        split: "test", or "validation" for the choice of hyperparameters.
        baseline: whether the fresh initialization is evaluated too.
        overrides: bindings that differ from those of the run, from name to value. None for the
            run's own evaluation.

    Returns:
        The comparison as a table in plain text.

    Raises:
        ValueError: see `check_evaluation`.
        RunDirectoryError: training has not finished in this folder.
    """
    check_evaluation(study, split, steps)
    run.require_initialization()
    trainer = study.trainer
    tasks = getattr(study.tasks, split)
    found = {}
    for name in (FRESH, LEARNED) if baseline else (LEARNED,):
        if name == LEARNED:  # the newly built study has the fresh values
            load_learned(study, run)
        print(f"Adapting to {len(tasks)} held-out tasks: {name}", file=sys.stderr)
        found[name] = trainer.evaluate(tasks, steps)
    evaluations = dict(reversed(found.items()))
    transductive = trainer.problem.evaluation.transductive is True
    record = {
        "split": split,
        "steps": steps or trainer.problem.setup.steps_per_task,
        "target_error": target_error,
        "transductive": transductive,
        "results": {name: as_record(value, target_error) for name, value in evaluations.items()},
    }
    file, picture = run.evaluation, "adaptation.png"
    if overrides is not None:
        record["bindings"] = dict(overrides)
        file, picture = run.evaluation_again, "adaptation_again.png"
    with replacing(run.plots / picture) as partial:
        plot_adaptation(evaluations, partial)
    # Written last, since a run that has it counts as finished.
    write_atomically(file, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return table(evaluations, target_error, transductive)


def table(
    evaluations: Mapping[str, Evaluation], target_error: float, transductive: bool = False
) -> str:
    """Returns evaluations as a table in plain text, mean ± standard error over the tasks."""
    tasks = len(next(iter(evaluations.values())).tasks)
    policy = "transductive" if transductive else "inductive"
    lines = [
        f"{tasks} held-out tasks, batch norm {policy}; mean ± standard error",
        f"{'':24}{'error':>16}{'100 × AUC':>16}  steps to error {target_error:g}",
    ]
    for name, evaluation in evaluations.items():
        whole = [task for task in evaluation.tasks if not task.diverged]
        errors = _mean_and_error([task.error for task in whole], ".3f")
        areas = _mean_and_error([task.area_under_error for task in whole], ".1f")
        lost = f"  ({len(evaluation.diverged)} diverged, left out)" if evaluation.diverged else ""
        lines.append(f"{name:24}{errors:>16} {areas:>15}  {_steps(evaluation, target_error)}{lost}")
        for metric in evaluation.tasks[0].metrics:
            values = _mean_and_error([task.metrics[metric] for task in whole], ".3f")
            lines.append(f"  {metric:22}{values:>16}")
    return "\n".join(lines)


def as_record(evaluation: Evaluation, target_error: float) -> dict:
    """Returns an evaluation and its curves as plain values; None for numbers not finite."""
    means = ("error", "loss", "final_training_error", "area_under_error")
    return {
        **_plain_values({name: evaluation.mean(name) for name in means}),
        **_plain_values({n: evaluation.mean_metric(n) for n in evaluation.tasks[0].metrics}),
        "diverged": list(evaluation.diverged),
        "tasks": [
            {
                **_plain_values({name: getattr(task, name) for name in _OF_A_TASK}),
                **({"metrics": _plain_values(task.metrics)} if task.metrics else {}),
                "steps_to_target": steps,
                "training_errors": [_plain(round(float(e), 4)) for e in task.training_errors],
                "training_losses": [_plain(round(float(e), 4)) for e in task.training_losses],
            }
            for task, steps in zip(evaluation.tasks, evaluation.steps_to(target_error))
        ],
    }


def _plain(value):
    """Returns text and whole numbers as they are, others as a float or, if not finite, None."""
    if value is None or isinstance(value, str | int):
        return value
    return float(value) if np.isfinite(value) else None


def _plain_values(values):
    return {name: _plain(value) for name, value in values.items()}


def _mean_and_error(values, form):
    error = standard_error(values)
    mean = f"{np.mean(values):{form}}" if values else "–"
    return mean if error is None else f"{mean} ± {error:{form}}"


def _steps(evaluation, target_error):
    reached = [steps for steps in evaluation.steps_to(target_error) if steps is not None]
    share = f"{len(reached)} of {len(evaluation.tasks)} tasks"
    return f"{np.mean(reached):.0f} ({share})" if reached else f"not reached ({share})"


def plot_learning_curve(entries: Sequence[Mapping[str, float]], path: pathlib.Path) -> None:
    """Draws training loss, error and, if there is one, validation error over meta-steps as a PNG.

    `entries` are the lines of metrics.jsonl.
    """
    metrics = pd.DataFrame(entries).astype(float).set_index("meta_step")
    training = figures.look("training batches", 0)
    errors = {training: metrics[["error"]]}
    if "val_error" in metrics:
        validated = metrics[["val_error"]].dropna()
        errors[figures.look("held-out examples of validation tasks", 1)] = validated
    panels = {
        "loss over meta-steps": {training: metrics[["loss"]]},
        "error over meta-steps": errors,
    }
    figures.save(figures.curves(panels), path)


def plot_adaptation(
    evaluations: Mapping[str, Evaluation], path: pathlib.Path, window: int = 5
) -> None:
    """Draws the training error over gradient steps as a PNG, by the names of the evaluations.

    Tasks that diverged are left out, as in tables, and counted in the legend. The curves are
    smoothed by a running mean over `window` batches.
    """
    drawn = {}
    for place, (name, evaluation) in enumerate(evaluations.items()):
        lost = len(evaluation.diverged)
        label = f"{name} ({lost} diverged)" if lost else name
        drawn[figures.look(label, place)] = adaptation_curves(evaluation, window)
    tasks = len(next(iter(evaluations.values())).tasks)
    title = f"{tasks} held-out tasks: training error (mean of {window} batches) over gradient steps"
    figures.save(figures.curves({title: drawn}), path)


def adaptation_curves(evaluation: Evaluation, window: int) -> pd.DataFrame:
    """Returns the training errors of the tasks that did not diverge: steps × tasks.

    The curves are cut to the length of the shortest and smoothed by a running mean over `window`
    batches, and over fewer at the start.
    """
    whole = [task.training_errors for task in evaluation.tasks if not task.diverged]
    curves = pd.DataFrame(whole).T.dropna()
    return curves.rolling(window, min_periods=1).mean()
