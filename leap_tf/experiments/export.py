"""Export of a run for serving, with example requests and a model card.

saved_model/, model.keras           see `leap_tf.serving.export`
requests/<task>.npz                 a held-out task as the inputs of `adapt`, with the answers
MODEL_CARD.md, model_card.json      see `leap_tf.serving.model_card`; with data, performance and
                                    configuration from the run's files
"""

import itertools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from keras.losses import SparseCategoricalCrossentropy

from leap_tf.experiments.run_directory import RunDirectory, describe_environment
from leap_tf.experiments.run_tables import FRESH, LEARNED, standard_error
from leap_tf.experiments.study import load_learned
from leap_tf.functional import TotalLoss
from leap_tf.serving import Limits, export
from leap_tf.serving.model_card import describe_model, write_model_card
from leap_tf.serving.signatures import names_of
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetaTrainer, Study, read_metrics


def describe_run(
    study: Study,
    run: RunDirectory,
    export: pathlib.Path,
    requests: Sequence[Mapping[str, str]],
    evaluation: Mapping | None,
) -> dict:
    """Returns the content of a run's model card, as plain values.

    `export` has `saved_model`, `requests` "task", "file" and "signature" of each example request.
    `evaluation` is that of exactly this initialization, or None.
    """
    metrics = read_metrics(run.metrics) if run.metrics.exists() else []
    # A checkpoint sets the trainer's meta-step. Without one the run's file has it.
    meta_steps = (
        study.trainer.meta_step or json.loads(run.initialization_info.read_text())["meta_step"]
    )
    card = describe_model(study.trainer.problem, meta_steps, export)
    steps = (entry.get("gradient_steps", 0) for entry in metrics[:meta_steps])
    card["method"]["gradient_steps"] = int(sum(steps))
    return card | {
        "name": run.path.resolve().name,
        "tasks": {
            "trained_on": _names(study.tasks.train),
            "validated_on": [task.name for task in study.tasks.validation],
            "held_out": [task.name for task in study.tasks.test],
        },
        "evaluation": evaluation and _metrics(evaluation),
        "requests": [dict(request) for request in requests],
        "environment": {
            "trained": json.loads(run.environment.read_text())[-1],
            "exported": describe_environment(),
        },
        "configuration": run.config.read_text(),
        "operative_configuration": run.operative_config.read_text(),
    }


def _names(distribution):
    if isinstance(distribution, FiniteTasks):
        return [task.name for task in distribution.tasks]
    return repr(distribution)  # an endless family


def _metrics(evaluation):
    results = {}
    for name in (name for name in evaluation["results"] if name in (LEARNED, FRESH)):
        result, lost = evaluation["results"][name], evaluation["results"][name]["diverged"]
        whole = [task["error"] for task in result["tasks"] if task["name"] not in lost]
        keys = ("name", "error", "examples", "seed")
        results[name] = {
            "tasks": len(result["tasks"]),
            "diverged": lost,
            "error": result["error"],
            "standard_error": standard_error(whole),
            "area_under_error": result["area_under_error"],
            "each": [{key: task.get(key) for key in keys} for task in result["tasks"]],
        }
    batch_norm = "transductive" if evaluation["transductive"] else "inductive"
    shared = {"split": evaluation["split"], "steps": evaluation["steps"], "batch_norm": batch_norm}
    return {**shared, "results": results}


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
    """Exports the learned initialization of a run.

    Args:
        study, run: a study newly built from the configuration in the run's folder.
        path: the folder to write, which must not exist; by default `export` in the run's folder.
        checkpoint: prefix of a checkpoint to export instead of the learned initialization.
        requests: number of held-out tasks to write as example requests.
        max_steps, max_batch_size, max_classes: the largest values that a request may have.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
        RunDirectoryError: training has not finished, and there is no `checkpoint`.
        CheckpointMismatchError: the checkpoint is of a different run.
        CheckpointUnreadableError: the checkpoint is missing or damaged.
        ValueError: the model cannot be served, or not for the example requests.
    """
    folder = pathlib.Path(path).expanduser() if path else run.export
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Pass a different --export_dir.")
    trainer = study.trainer
    if checkpoint:
        trainer.load(checkpoint)
    else:
        load_learned(study, run)
    tasks = {
        index: task
        for index, task in enumerate(study.tasks.test)
        if isinstance(task, ArrayTask) and len(task.train) == 2  # requests have no sample weights
    }
    limits = Limits(max_steps, max_batch_size, max_classes)
    evaluation = None if checkpoint else run.read_evaluation()
    steps = evaluation["steps"] if evaluation else trainer.problem.setup.steps_per_task
    shown = dict(itertools.islice(tasks.items(), requests))
    batch_size = max((task.batch_size for task in shown.values()), default=0)
    for name, value, most in (
        ("steps", steps, max_steps),
        ("batch_size", batch_size, max_batch_size),
    ):
        if shown and value > most:
            raise ValueError(
                f"Example requests need {name}={value}, and the served model takes at most {most}. "
                f"Bind export.max_{name}, or export.requests = 0."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        made = pathlib.Path(unfinished) / folder.name
        export(trainer, made, limits=limits, **_input_options(trainer.model, tasks.values()))
        examples = [
            _write_request(trainer, task, steps, index, made / "requests")
            for index, task in shown.items()
        ]
        write_model_card(describe_run(study, run, made, examples, evaluation), made)
        made.rename(folder)
    return folder


def _input_options(model, tasks):
    """Returns the tasks' own batch size of held-out examples and preparation of uint8 inputs."""
    for task in tasks:
        pixels = {"prepare_uint8": task.prepare} if _has_pixels(model, task) else {}
        return {"query_batch_size": task.test_batch_size} | pixels
    return {}


def _has_pixels(model, task):
    """Returns whether inputs are images in uint8 of the model's own size, for `adapt_uint8`."""
    inputs, expected = task.train[0], model.inputs[0]
    if getattr(inputs, "dtype", None) != np.uint8 or not expected.dtype.startswith("float"):
        return False
    return inputs.ndim == 4 and tf.TensorShape(expected.shape).is_compatible_with(inputs.shape)


def request_of(
    trainer: MetaTrainer, task: ArrayTask, steps: int, seed: int
) -> dict[str, np.ndarray | np.generic]:
    """Returns the inputs with which `adapt` of a served model repeats the evaluation of a task.

    Inputs are prepared, except pixels, which are for `adapt_uint8`. The held-out `task` has no
    sample weights, and `seed` is that of its evaluation.
    """
    problem, model = trainer.problem, trainer.model
    prepare = tf.identity if _has_pixels(model, task) else task.prepare
    loss = problem.loss
    losses = tf.nest.flatten(loss.losses) if isinstance(loss, TotalLoss) else [loss]
    sparse = [isinstance(each, SparseCategoricalCrossentropy) for each in losses]
    request: dict[str, np.ndarray | np.generic] = {
        "steps": np.int32(steps),
        "batch_size": np.int32(task.batch_size),
        "learning_rate": np.float32(problem.evaluation_optimizer.learning_rate),
        "seed": np.int64(seed),
    }
    for name, inputs in (("support_x", task.train[0]), ("query_x", task.test[0])):
        request |= _named(name, tf.nest.map_structure(np.asarray, prepare(inputs)))
    shape = getattr(model, "output_shape", None)
    for each, labels in zip(_named("support_y", task.train[1]).items(), sparse, strict=True):
        name, targets = each
        if not labels and isinstance(shape, tuple) and targets.ndim == len(shape) - 1:
            targets = targets[..., np.newaxis]  # a loss of Keras takes [n] for outputs [n, 1]
        if labels and isinstance(shape, tuple) and targets.ndim == len(shape):
            targets = targets[..., 0]  # and labels [n, 1]
        request[name] = targets.astype(np.int32 if labels else np.float32)
    if sparse == [True]:
        classes = getattr(task, "classes", None) or trainer.model.output_shape[-1]
        request["num_classes"] = np.int32(classes)
    return request


def _named(name, nest):
    return dict(zip(names_of(name, nest), tf.nest.flatten(nest)))


def _write_request(trainer, task, steps, index, folder):
    folder.mkdir(exist_ok=True)
    stem = re.sub(r"[\W_]+", "_", task.name).strip("_")
    file = folder / f"{stem}.npz"
    file = folder / f"{stem}_{index}.npz" if file.exists() else file
    request = request_of(trainer, task, steps, trainer.evaluation_seed(index))
    np.savez_compressed(file, **_named("query_y", task.test[1]), **request)
    signature = "adapt_uint8" if _has_pixels(trainer.model, task) else "adapt"
    path = file.relative_to(folder.parent).as_posix()
    return {"task": task.name, "file": path, "signature": signature}
