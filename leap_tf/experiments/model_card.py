"""A model card: what an exported model is, what it was learned from, how well it does.

Nothing in it is typed by hand. Data, method, seed and metrics come from the run's files and the
study built from its configuration; inputs and outputs are read from the SavedModel itself.

Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import jinja2
import keras
import tensorflow as tf

from leap_tf.experiments.judgement import FRESH, LEARNED
from leap_tf.experiments.run_directory import RunDirectory, describe_environment
from leap_tf.experiments.standard_error import standard_error
from leap_tf.experiments.study import Study
from leap_tf.tasks import FiniteTasks
from leap_tf.training import read_metrics

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
    """Collects what is known of an exported model.

    Args:
        study: with what was exported.
        run: the folder it comes from.
        export: the folder with `saved_model`.
        requests: "task" and "file" of each example request.
        evaluation: the run's judgement of just this initialization; None if there is none.

    Returns:
        Plain numbers, texts, lists and dictionaries.
    """
    trainer = study.trainer
    metrics = read_metrics(run.metrics) if run.metrics.exists() else []
    # Weights from a checkpoint know how many meta-steps they are from.
    meta_steps = trainer.meta_step or json.loads(run.origin.read_text())["meta_step"]
    return {
        "name": run.path.resolve().name,
        "model": {
            "name": trainer.model.name,
            "parameters": int(trainer.model.count_params()),
            "layers": [f"{type(layer).__name__} {layer.name}" for layer in trainer.model.layers],
        },
        "method": {
            "learner": type(trainer.learner).__name__,
            "loss": keras.losses.serialize(trainer.loss),
            "inner_optimizer": keras.optimizers.serialize(trainer.inner_optimizer),
            "judged_optimizer": keras.optimizers.serialize(trainer.judged_optimizer),
            "judged_stopping": type(trainer.judged_stopping).__name__
            if trainer.judged_stopping
            else None,
            "meta_optimizer": keras.optimizers.serialize(trainer.meta_optimizer),
            "steps_per_task": trainer.steps_per_task,
            "meta_batch_size": trainer.meta_batch_size,
            "fresh_layers": list(trainer.task_layers),
            "batch_norm": "transductive" if trainer.transductive else "inductive",
            "meta_steps": meta_steps,
            "gradient_steps": int(
                sum(entry.get("gradient_steps", 0) for entry in metrics[:meta_steps])
            ),
        },
        "seed": trainer.seed,
        "tasks": {
            "trained_on": _names(study.tasks.train),
            "validated_on": [task.name for task in study.tasks.validation],
            "held_out": [task.name for task in study.tasks.test],
        },
        "evaluation": _figures(evaluation),
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
    """Writes `model_card.json` and, for people, `MODEL_CARD.md`."""
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "model_card.json").write_text(text + "\n")
    template = _TEMPLATES.get_template("model_card.md.jinja")
    (folder / "MODEL_CARD.md").write_text(template.render(card))


def _names(distribution):
    if isinstance(distribution, FiniteTasks):
        return [task.name for task in distribution.tasks]
    return repr(distribution)  # an endless family


def _figures(evaluation):
    if evaluation is None:
        return None
    return {
        "split": evaluation["split"],
        "steps": evaluation["steps"],
        "batch_norm": "transductive" if evaluation["transductive"] else "inductive",
        "results": {
            name: {
                "tasks": len(result["tasks"]),
                "diverged": result["diverged"],
                "error": result["error"],
                "standard_error": _standard_error(result),
                "area_under_error": result["area_under_error"],
                "each": [
                    {key: task[key] for key in ("name", "error", "examples")}
                    | {"seed": task.get("seed")}
                    for task in result["tasks"]
                ],
            }
            for name, result in evaluation["results"].items()
            if name in (LEARNED, FRESH)
        },
    }


def _standard_error(result):
    errors = [task["error"] for task in result["tasks"] if task["name"] not in result["diverged"]]
    return standard_error(errors)


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
