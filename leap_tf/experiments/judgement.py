"""Judges a run: its learned initialization, against no pretraining, on held-out tasks."""

import json
import sys
from collections.abc import Mapping

import numpy as np

from leap_tf.experiments.plots import plot_adaptation
from leap_tf.experiments.run_directory import RunDirectory, replacing, write_atomically
from leap_tf.experiments.standard_error import standard_error
from leap_tf.experiments.study import Study
from leap_tf.training import Evaluation, MetaTrainer

LEARNED, FRESH = "learned initialization", "no pretraining"
SPLITS = ("test", "validation")


def judge(
    study: Study,
    run: RunDirectory,
    steps: int | None = None,
    target_error: float = 0.1,
    split: str = "test",
    baseline: bool = True,
    again: Mapping[str, str] | None = None,
) -> str:
    """Adapts to every held-out task from both initializations and compares.

    The fresh initialization is the one meta-training started from; tasks, batches, steps and
    code are the same for both.

    Args:
        study: as it was built, its model still fresh.
        run: the folder with the learned initialization; results are written into it.
        steps: gradient steps on a task; the trainer's own number by default.
        target_error: the training error for "steps to reach it".
        split: "test", or "validation" to choose hyperparameters by.
        baseline: whether to judge the fresh initialization too.
        again: what is bound otherwise than in the run, from name to value. The judgement is kept
            beside the run's own, which is that without any; None for the run's own.

    Returns:
        The table, as text.

    Raises:
        ValueError: there is no such split.
        RunDirectoryError: training has not finished in this folder.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, and is {split!r}.")
    run.require_initialization()
    trainer = study.trainer
    tasks = getattr(study.tasks, split)
    evaluations = {}
    if baseline:  # first, while everything is fresh
        evaluations[FRESH] = _evaluate(trainer, tasks, steps, split, FRESH)
    restore_learned(trainer, run)
    evaluations = {LEARNED: _evaluate(trainer, tasks, steps, split, LEARNED), **evaluations}
    record = {
        "split": split,
        "steps": steps or trainer.steps_per_task,
        "target_error": target_error,
        "transductive": trainer.transductive,
        "results": {name: as_record(value, target_error) for name, value in evaluations.items()},
    }
    if again is not None:
        record["bindings"] = dict(again)
    file, picture = (
        (run.evaluation_again, "adaptation_again.png")
        if again is not None
        else (run.evaluation, "adaptation.png")
    )
    with replacing(run.plots / picture) as partial:
        plot_adaptation(evaluations, partial)
    # Last: a run that has it is finished.
    write_atomically(file, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return table(evaluations, target_error, trainer.transductive)


def restore_learned(trainer: MetaTrainer, run: RunDirectory) -> None:
    """Gives a trainer what a finished run has learned: the initialization and the learner's own.

    Raises:
        RunDirectoryError: training has not finished in this folder, or its files are damaged.
    """
    run.load_learned(trainer.model, trainer.learner_variables)


def table(
    evaluations: Mapping[str, Evaluation], target_error: float, transductive: bool = False
) -> str:
    """Formats evaluations as a plain table, mean ± standard error over the tasks."""
    tasks = len(next(iter(evaluations.values())).tasks)
    policy = "transductive" if transductive else "inductive"
    lines = [
        f"{tasks} held-out tasks, batch norm {policy}; mean ± standard error",
        f"{'':24}{'error':>16}{'AUC (0–100)':>16}  steps to error {target_error:g}",
    ]
    for name, evaluation in evaluations.items():
        whole = [task for task in evaluation.tasks if not task.diverged]
        errors = _mean_and_error([task.error for task in whole], "{:.3f}")
        areas = _mean_and_error([task.area_under_error for task in whole], "{:.1f}")
        lost = f"  ({len(evaluation.diverged)} diverged, left out)" if evaluation.diverged else ""
        lines.append(f"{name:24}{errors:>16}{areas:>16}  {_steps(evaluation, target_error)}{lost}")
    return "\n".join(lines)


def as_record(evaluation: Evaluation, target_error: float) -> dict:
    """Returns an evaluation as plain numbers, curves included; None where not finite."""
    return {
        "error": _number(evaluation.error),
        "loss": _number(evaluation.loss),
        "final_training_error": _number(evaluation.mean("final_training_error")),
        "area_under_error": _number(evaluation.area_under_error),
        "diverged": list(evaluation.diverged),
        "tasks": [
            {
                "name": task.name,
                "seed": task.seed,
                "error": _number(task.error),
                "loss": _number(task.loss),
                "examples": task.examples,
                "parameters": task.parameters,
                "final_training_error": _number(task.final_training_error),
                "area_under_error": _number(task.area_under_error),
                "path_length": _number(task.path_length),
                "path_energy": _number(task.path_energy),
                "steps_to_target": steps,
                "training_errors": [_number(value, 4) for value in task.training_errors],
                "training_losses": [_number(value, 4) for value in task.training_losses],
            }
            for task, steps in zip(evaluation.tasks, evaluation.steps_to(target_error))
        ],
    }


def _evaluate(trainer, tasks, steps, split, name):
    print(f"Adapting to {len(tasks)} held-out tasks: {name}", file=sys.stderr)
    return trainer.evaluate(tasks, steps, split)


def _number(value, digits=None):
    value = float(value)
    if not np.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def _mean_and_error(values, form):
    if not values:
        return "–"
    return f"{form.format(np.mean(values))} ± {form.format(standard_error(values) or 0.0)}"


def _steps(evaluation, target_error):
    reached = [steps for steps in evaluation.steps_to(target_error) if steps is not None]
    share = f"{len(reached)} of {len(evaluation.tasks)} tasks"
    return f"{np.mean(reached):.0f} ({share})" if reached else f"not reached ({share})"
