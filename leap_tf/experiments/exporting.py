"""Turns a run into a folder that is served elsewhere.

saved_model/, model.keras           see `leap_tf.serving.export`
requests/<task>.npz                 a held-out task as the inputs of `adapt`, with the answers
MODEL_CARD.md, model_card.json      what the model is, made from the run's files
"""

import itertools
import os
import pathlib
import re
import shutil

import numpy as np

from leap_tf.experiments.judgement import restore_learned
from leap_tf.experiments.model_card import describe_model, write_model_card
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.experiments.study import Study
from leap_tf.serving import Limits, export
from leap_tf.tasks import ArrayTask
from leap_tf.training import MetaTrainer


def export_run(
    study: Study,
    run: RunDirectory,
    path: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    requests: int = 1,
    max_steps: int = Limits().steps,
    max_batch_size: int = Limits().batch_size,
    max_classes: int = Limits().classes,
) -> pathlib.Path:
    """Exports what a run has learned.

    Args:
        study: as it was built from the run's configuration.
        run: the run's folder.
        path: the folder to write; `export` in the run's folder by default. It must not exist.
        checkpoint: prefix of a checkpoint to export in the place of the learned initialization.
        requests: how many held-out tasks to write as example requests.
        max_steps, max_batch_size, max_classes: the largest numbers a request may have.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
        RunDirectoryError: training has not finished, and there is no `checkpoint`.
        CheckpointMismatchError, CheckpointUnreadableError: the checkpoint cannot be used.
        ValueError: the model cannot be served.
    """
    folder = pathlib.Path(path) if path else run.export
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Give another --export_dir, or remove it first.")
    trainer = study.trainer
    if checkpoint:
        trainer.load(checkpoint)
    else:
        restore_learned(trainer, run)
    tasks = {
        index: task for index, task in enumerate(study.tasks.test) if isinstance(task, ArrayTask)
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    limits = Limits(max_steps, max_batch_size, max_classes)
    export(trainer, partial, limits=limits, **_as_the_tasks_do(tasks.values()))
    evaluation = None if checkpoint else run.read_evaluation()
    steps = evaluation["steps"] if evaluation else trainer.steps_per_task
    examples = [
        _write_request(trainer, task, steps, index, partial / "requests")
        for index, task in itertools.islice(tasks.items(), requests)
    ]
    write_model_card(describe_model(study, run, partial, examples, evaluation), partial)
    partial.rename(folder)
    return folder


def _as_the_tasks_do(tasks):
    """How the tasks themselves batch held-out examples, and make floats of inputs in uint8."""
    for task in tasks:
        pixels = {"prepare_uint8": task.prepare} if task.train[0].dtype == np.uint8 else {}
        return {"query_batch_size": task.test_batch_size} | pixels
    return {}


def request_of(
    trainer: MetaTrainer, task: ArrayTask, steps: int, seed: int
) -> dict[str, np.ndarray | np.generic]:
    """Returns the inputs of `adapt` that make a served model do what evaluation does.

    Args:
        trainer: whose evaluation.
        task: a held-out task.
        steps: gradient steps.
        seed: that of the task in the evaluation.
    """
    inputs, targets = task.train
    request: dict[str, np.ndarray | np.generic] = {
        "support_x": inputs,
        "query_x": task.test[0],
        "steps": np.int32(steps),
        "batch_size": np.int32(task.batch_size),
        "learning_rate": np.float32(trainer.judged_optimizer.learning_rate),
        "seed": np.int64(seed),
    }
    if np.issubdtype(targets.dtype, np.integer):
        classes = getattr(task, "classes", None) or trainer.model.output_shape[-1]
        return request | {"support_y": targets.astype(np.int32), "num_classes": np.int32(classes)}
    return request | {"support_y": targets.astype(np.float32)}


def _write_request(trainer, task, steps, index, folder):
    folder.mkdir(exist_ok=True)
    file = folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', task.name).strip('_')}.npz"
    request = request_of(trainer, task, steps, trainer.evaluation_seed(index))
    np.savez_compressed(file, query_y=task.test[1], **request)
    return {"task": task.name, "file": file.relative_to(folder.parent).as_posix()}
