"""Judges a run: its learned initialization against no pretraining, on held-out tasks."""

import json
from collections.abc import Mapping

import keras
import numpy as np

from leap_tf.experiments.plots import plot_adaptation
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError, write_atomically
from leap_tf.experiments.study import Study
from leap_tf.training import Evaluation

LEARNED, FRESH = "learned initialization", "no pretraining"


def judge(
    study: Study, run: RunDirectory, steps: int | None = None, target_error: float = 0.5
) -> str:
    """Adapts to every held-out task from both initializations and compares.

    The fresh initialization is the one meta-training started from; tasks, batches, steps and
    code are the same for both.

    Args:
        study: as it was built, its model still fresh.
        run: the folder with the learned initialization; results are written into it.
        steps: gradient steps on a task; the trainer's own number by default.
        target_error: the training error for "steps to reach it".

    Returns:
        The table, as text.

    Raises:
        RunDirectoryError: training has not finished in this folder.
    """
    if not run.initialization.exists():
        raise RunDirectoryError(
            f"{run.path} has no learned initialization yet. Finish training: the command that "
            "started it goes on where it stopped."
        )
    trainer = study.trainer
    learned = keras.saving.load_model(run.initialization, compile=False).get_weights()
    fresh = trainer.model.get_weights()
    evaluations = {}
    for name, weights in ((LEARNED, learned), (FRESH, fresh)):
        trainer.model.set_weights(weights)
        evaluations[name] = trainer.evaluate(study.tasks.test, steps)
    record = {
        "target_error": target_error,
        "results": {name: as_record(value, target_error) for name, value in evaluations.items()},
    }
    write_atomically(run.evaluation, json.dumps(record, indent=1) + "\n")
    plot_adaptation(evaluations, run.plots / "adaptation.png")
    return table(evaluations, target_error)


def table(evaluations: Mapping[str, Evaluation], target_error: float) -> str:
    """Formats evaluations as a plain table, mean ± standard error over the tasks."""
    tasks = len(next(iter(evaluations.values())).tasks)
    lines = [
        f"{tasks} held-out tasks, batch norm inductive; mean ± standard error",
        f"{'':24}{'error':>16}{'AUC (0–100)':>16}  steps to error {target_error:g}",
    ]
    for name, evaluation in evaluations.items():
        errors = _mean_and_error([task.error for task in evaluation.tasks], "{:.3f}")
        areas = _mean_and_error([task.area_under_error for task in evaluation.tasks], "{:.1f}")
        lines.append(f"{name:24}{errors:>16}{areas:>16}  {_steps(evaluation, target_error)}")
    return "\n".join(lines)


def as_record(evaluation: Evaluation, target_error: float) -> dict:
    """Returns an evaluation as plain numbers, curves included."""
    return {
        "transductive": False,
        "error": evaluation.error,
        "loss": evaluation.loss,
        "area_under_error": evaluation.area_under_error,
        "tasks": [
            {
                "name": task.name,
                "error": task.error,
                "loss": task.loss,
                "examples": task.examples,
                "area_under_error": task.area_under_error,
                "steps_to_target": steps,
                "training_errors": [round(float(value), 4) for value in task.training_errors],
                "training_losses": [round(float(value), 4) for value in task.training_losses],
            }
            for task, steps in zip(evaluation.tasks, evaluation.steps_to(target_error))
        ],
    }


def _mean_and_error(values, form):
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{form.format(np.mean(values))} ± {form.format(spread)}"


def _steps(evaluation, target_error):
    reached = [steps for steps in evaluation.steps_to(target_error) if steps is not None]
    share = f"{len(reached)} of {len(evaluation.tasks)} tasks"
    return f"{np.mean(reached):.0f} ({share})" if reached else f"not reached ({share})"
