"""Export of a run for serving, with example requests and a model card.

    saved_model/, model.keras           see `leap_tf.serving.export`
    requests/<task>.npz                 a held-out task as the inputs of `adapt`, with the answers
    MODEL_CARD.md, model_card.json      data, method, performance, signatures and versions

The card is generated. Data, method, seed and metrics come from the run's files and from the study
built from its configuration; inputs and outputs are read from the SavedModel itself.

Source of model cards: Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence

import jinja2
import keras
import numpy as np
import tensorflow as tf

from leap_tf.experiments.report.data import standard_error
from leap_tf.experiments.run_directory import RunDirectory, describe_environment
from leap_tf.experiments.study import FRESH, LEARNED, restore_learned
from leap_tf.serving import Limits, export
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetaTrainer, Study, read_metrics

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("leap_tf.experiments", "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown
)


def describe_model(
    study: Study,
    run: RunDirectory,
    export: pathlib.Path,
    requests: Sequence[Mapping[str, str]],
    evaluation: Mapping | None,
) -> dict:
    """Returns the content of a model card.

    Args:
        study: the study whose trainer holds the exported values.
        run: the run's folder.
        export: the folder with `saved_model`.
        requests: "task" and "file" of each example request.
        evaluation: the run's evaluation of exactly this initialization, or None.

    Returns:
        Plain numbers, strings, lists and dictionaries.
    """
    trainer = study.trainer
    problem = trainer.problem
    setup, stopping = problem.setup, problem.evaluation.stopping
    metrics = read_metrics(run.metrics) if run.metrics.exists() else []
    # A checkpoint sets the trainer's meta-step. Without one the run's file has it.
    meta_steps = trainer.meta_step or json.loads(run.initialization_info.read_text())["meta_step"]
    gradient_steps = sum(line.get("gradient_steps", 0) for line in metrics[:meta_steps])
    return {
        "name": run.path.resolve().name,
        "model": {
            "name": trainer.model.name,
            "parameters": int(trainer.model.count_params()),
            "layers": [f"{type(layer).__name__} {layer.name}" for layer in trainer.model.layers],
        },
        "method": {
            "learner": type(trainer.learner).__name__,
            "loss": keras.losses.serialize(problem.loss),
            "inner_optimizer": keras.optimizers.serialize(setup.inner_optimizer),
            "evaluation_optimizer": keras.optimizers.serialize(problem.evaluation_optimizer),
            "evaluation_stopping": type(stopping).__name__ if stopping else None,
            "meta_optimizer": keras.optimizers.serialize(setup.meta_optimizer),
            "steps_per_task": setup.steps_per_task,
            "meta_batch_size": setup.meta_batch_size,
            "task_layers": list(setup.task_layers),
            "batch_norm": "transductive" if problem.evaluation.transductive else "inductive",
            "meta_steps": meta_steps,
            "gradient_steps": int(gradient_steps),
        },
        "seed": problem.sampler.seed,
        "tasks": {
            "trained_on": _names(study.tasks.train),
            "validated_on": [task.name for task in study.tasks.validation],
            "held_out": [task.name for task in study.tasks.test],
        },
        "evaluation": evaluation and _metrics(evaluation),
        "signatures": _signatures(export / "saved_model"),
        "requests": [dict(request) for request in requests],
        "environment": {
            "trained": json.loads(run.environment.read_text())[-1],
            "exported": describe_environment(),
        },
        "configuration": run.config.read_text(),
        "operative_configuration": run.operative_config.read_text(),
    }


def write_model_card(card: Mapping, folder: pathlib.Path) -> None:
    """Writes `model_card.json` and, for human readers, `MODEL_CARD.md`."""
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "model_card.json").write_text(text + "\n")
    template = _TEMPLATES.get_template("model_card.md.jinja")
    (folder / "MODEL_CARD.md").write_text(template.render(card))


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


def _signatures(saved_model):
    def described(specs):
        return {
            name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
            for name, spec in sorted(specs.items())
        }

    loaded = tf.saved_model.load(saved_model)
    return {
        name: {
            "inputs": described(function.structured_input_signature[1]),
            "outputs": described(function.structured_outputs),
        }
        for name, function in loaded.signatures.items()
    }


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
        study: a study newly built from the run's configuration.
        run: the run's folder.
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
        ValueError: the model cannot be served.
    """
    folder = pathlib.Path(path).expanduser() if path else run.export
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Pass a different --export_dir.")
    trainer = study.trainer
    if checkpoint:
        trainer.load(checkpoint)
    else:
        restore_learned(trainer, run)
    tasks = {i: task for i, task in enumerate(study.tasks.test) if isinstance(task, ArrayTask)}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    limits = Limits(max_steps, max_batch_size, max_classes)
    export(trainer, partial, limits=limits, **_input_options(tasks.values()))
    evaluation = None if checkpoint else run.read_evaluation()
    steps = evaluation["steps"] if evaluation else trainer.problem.setup.steps_per_task
    examples = [
        _write_request(trainer, task, steps, index, partial / "requests")
        for index, task in itertools.islice(tasks.items(), requests)
    ]
    write_model_card(describe_model(study, run, partial, examples, evaluation), partial)
    partial.rename(folder)
    return folder


def _input_options(tasks):
    """Returns the tasks' own batch size of held-out examples and preparation of uint8 inputs."""
    for task in tasks:
        pixels = {"prepare_uint8": task.prepare} if task.train[0].dtype == np.uint8 else {}
        return {"query_batch_size": task.test_batch_size} | pixels
    return {}


def request_of(
    trainer: MetaTrainer, task: ArrayTask, steps: int, seed: int
) -> dict[str, np.ndarray | np.generic]:
    """Returns the inputs with which `adapt` of a served model repeats the evaluation of a task.

    Args:
        trainer: the trainer that evaluates.
        task: a held-out task.
        steps: gradient steps.
        seed: the seed of the task in the evaluation.
    """
    inputs, targets = task.train
    request: dict[str, np.ndarray | np.generic] = {
        "support_x": inputs,
        "query_x": task.test[0],
        "steps": np.int32(steps),
        "batch_size": np.int32(task.batch_size),
        "learning_rate": np.float32(trainer.problem.evaluation_optimizer.learning_rate),
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
