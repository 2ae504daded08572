"""Model cards: what an export was learned from, what it takes and answers, and its limits.

Method, seed and policies come from the problem; inputs and outputs are read from the SavedModel
itself. A run adds data, performance and configuration, see `leap_tf.experiments.export`.

Source: Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

import importlib.metadata
import json
import pathlib
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from leap_tf.functional import running_statistics
from leap_tf.training import SupervisedProblem

_STEPS = (1, 5, 20, 100)


def describe_model(problem: SupervisedProblem, meta_steps: int, folder: pathlib.Path) -> dict:
    """Returns the part of a model card that needs no run: plain numbers, strings, lists and dicts.

    The problem holds the exported values, to which `meta_steps` meta-updates led. `folder` is that
    of the export, with `saved_model`.
    """
    setup, config, model = problem.setup, problem.evaluation, problem.model
    packages = {name: importlib.metadata.version(name) for name in ("keras", "numpy", "tensorflow")}
    return {
        "name": folder.name,
        "model": {
            "name": model.name,
            "parameters": int(model.count_params()),
            "layers": [f"{type(layer).__name__} {layer.name}" for layer in model.layers],
        },
        "method": {
            "learner": type(problem.learner).__name__,
            "loss": keras.losses.serialize(problem.loss),
            "inner_optimizer": keras.optimizers.serialize(setup.inner_optimizer),
            "evaluation_optimizer": keras.optimizers.serialize(problem.evaluation_optimizer),
            "evaluation_stopping": type(config.stopping).__name__ if config.stopping else None,
            "meta_optimizer": keras.optimizers.serialize(setup.meta_optimizer),
            "steps_per_task": setup.steps_per_task,
            "meta_batch_size": setup.meta_batch_size,
            "task_layers": list(setup.task_layers),
            "batch_norm": "transductive" if config.transductive is True else "inductive",
            "running_statistics": _statistics(problem),
            "meta_steps": meta_steps,
        },
        "seed": problem.sampler.seed,
        "signatures": _signatures(folder / "saved_model" / "saved_model.pb"),
        "environment": {
            "exported": {
                "python": platform.python_version(),
                "packages": packages | {"leap-tf": sys.modules["leap_tf"].__version__},
            }
        },
    }


def _statistics(problem):
    """Returns the policy of running statistics and how slowly they move, None without any."""
    if not running_statistics(problem.model, problem.evaluation_task_layers):
        return None
    layers = [each for each in problem.model._flatten_layers() if hasattr(each, "moving_mean")]
    momentum = max((float(each.momentum) for each in layers if each.trainable), default=None)
    return {"policy": problem.setup.running_statistics, "momentum": momentum}


def _signatures(file):
    """Returns names, dtypes and shapes of the inputs and outputs of each signature."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(file.read_bytes())

    def described(tensors):
        return {
            name: {
                "shape": tf.TensorShape(tensors[name].tensor_shape).as_list(),
                "dtype": tf.as_dtype(tensors[name].dtype).name,
            }
            for name in sorted(tensors)
        }

    return {
        name: {"inputs": described(signature.inputs), "outputs": described(signature.outputs)}
        for name, signature in sorted(saved.meta_graphs[0].signature_def.items())
        if not name.startswith("__")
    }


def write_model_card(card: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes `model_card.json` and, for human readers, `MODEL_CARD.md`.

    The card is the result of `describe_model`, to which a run adds "tasks", "evaluation",
    "requests", "configuration", method's "gradient_steps" and environment's "trained".
    """
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "model_card.json").write_text(text + "\n", encoding="utf-8")
    sections = [
        _introduction(card),
        _method(card),
        _performance(card),
        *_shapes(card["signatures"]),
        *_example(card),
        _limits(card),
        _versions(card["environment"]),
    ]
    if "configuration" in card:
        sections += ["## Configuration", f"```\n{card['configuration'].strip()}\n```"]
    (folder / "MODEL_CARD.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _introduction(card):
    model = card["model"]
    return (
        f"# {card['name']}\n\n"
        f"An initialization of `{model['name']}` ({model['parameters']:,} parameters) from which "
        "related tasks are learned in few\ngradient steps. The SavedModel predicts "
        "(`serving_default`) and adapts: `adapt` takes labelled examples of a new\ntask and "
        "answers queries with a model trained on them, `adapt_weights` returns that model's "
        "weights."
    )


def _method(card):
    method = card["method"]
    learned = f"{method['learner']}, {method['meta_steps']} meta-step" + "s" * (
        method["meta_steps"] != 1
    )
    if method["steps_per_task"]:
        learned += f" of {method['meta_batch_size']} tasks, "
        learned += f"{method['steps_per_task']} gradient steps each"
    if "gradient_steps" in method:
        learned += f"; {method['gradient_steps']:,} gradient steps in all"
    loss, statistics = method["loss"], method["running_statistics"]
    rows = [
        ("method", learned),
        ("loss", loss["class_name"] if isinstance(loss, Mapping) else loss),
        ("inner optimizer", _optimizer(method["inner_optimizer"])),
        ("meta optimizer", _optimizer(method["meta_optimizer"])),
    ]
    if method["evaluation_optimizer"] != method["inner_optimizer"]:
        rows.append(("optimizer when adapting", _optimizer(method["evaluation_optimizer"])))
    rows += [
        ("layers reinitialized for every task", ", ".join(method["task_layers"]) or "none"),
        ("batch norm on held-out examples", method["batch_norm"]),
        ("running statistics", statistics["policy"] if statistics else "none"),
        ("seed", card["seed"]),
    ]
    for kind, names in card.get("tasks", {}).items():
        text = names if isinstance(names, str) else f"{len(names)}: {', '.join(names)}"
        rows.append((f"tasks {kind.replace('_', ' ')}", text))
    return "## Learned from\n\n" + _table(("", ""), rows)


def _optimizer(serialized):
    rate = serialized["config"]["learning_rate"]
    rate = rate["class_name"] if isinstance(rate, Mapping) else f"{rate:g}"
    return f"{serialized['class_name']}, learning rate {rate}"


def _performance(card):
    evaluation = card.get("evaluation")
    if not evaluation:
        return "## Performance\n\nThis initialization has not been evaluated."
    rows = []
    for label, result in evaluation["results"].items():
        diverged = f" ({len(result['diverged'])} diverged, left out)" if result["diverged"] else ""
        error = _number(result["error"])
        if result["standard_error"] is not None:
            error += f" ± {result['standard_error']:.3f}"
        area = _number(result["area_under_error"], ".1f")
        rows.append((label, f"{result['tasks']}{diverged}", error, area))
    each = [
        (task["name"], _number(task["seed"], ""), task["examples"],
         _number(task["error"], ".4f", "diverged"))
        for task in evaluation["results"]["learned initialization"]["each"]
    ]  # fmt: skip
    return (
        f"## Performance\n\nAdapted to {evaluation['split']} tasks with {evaluation['steps']} "
        "gradient steps and evaluated on their held-out examples, mean ± standard\nerror over the "
        "tasks:\n\n"
        + _table(("", "tasks:", "held-out error:", "100 × area under the training error:"), rows)
        + "\n\n"
        + _table(("task", "seed:", "held-out examples:", "error:"), each)
    )


def _number(value, form=".3f", missing="–"):
    return missing if value is None else format(value, form)


def _shapes(signatures):
    yield "## Signatures"
    for name, of_signature in signatures.items():
        if name.endswith("_uint8"):
            continue
        pixels = (
            f", and `{name}_uint8` with images in uint8" if f"{name}_uint8" in signatures else ""
        )
        rows = [
            (f"{what}: {tensor}", f"{spec['dtype']} {spec['shape']}".replace("None", "any"))
            for what, tensors in (("in", "inputs"), ("out", "outputs"))
            for tensor, spec in of_signature[tensors].items()
        ]
        yield f"`{name}`{pixels}\n\n" + _table(("", "shape"), rows)


def _example(card):
    requests = card.get("requests")
    if not requests:
        return
    file, task, name = (requests[0][key] for key in ("file", "task", "signature"))
    yield "## An example request"
    yield (
        f"`{file}` holds {task}, a task that was not trained on, as the inputs of `{name}`, and "
        "the answers as `query_y`."
    )
    yield (
        "```python\nimport numpy as np\nimport tensorflow as tf\n\n"
        f'adapt = tf.saved_model.load("saved_model").signatures["{name}"]\n'
        f'request = dict(np.load("{file}"))\n'
        'answers = {name: request.pop(name) for name in list(request) if "query_y" in name}\n'
        "adapted = adapt(**{name: tf.constant(value) for name, value in request.items()})\n```"
    )


def _limits(card):
    method, evaluation = card["method"], card.get("evaluation")
    limits = []
    if evaluation:
        tasks = evaluation["results"]["learned initialization"]["tasks"]
        limits.append(
            f"Performance was measured on {tasks} tasks of one family, adapted with "
            f"{evaluation['steps']} gradient steps and the learning rate above. Performance on "
            "tasks of another kind, with other numbers of steps or classes, or with fewer examples "
            "is unknown."
        )
    if method["evaluation_stopping"]:
        limits.append(
            f"In evaluation, {method['evaluation_stopping']} ended the training on a task; a "
            "served model makes all steps of the request."
        )
    limits.append("It was trained from one seed. The variation between seeds is unknown.")
    limits += _limits_of_statistics(method)
    if method["task_layers"]:
        names = ", ".join(method["task_layers"])
        limits.append(
            f"{names} {'is' if len(method['task_layers']) == 1 else 'are'} reinitialized for every "
            "task, so the weights with which `serving_default` answers are not learned there."
        )
    limits.append(
        "Inputs must be prepared as in training. Inputs that are not finite, out of range or of "
        "another shape are refused with an error that names the input."
    )
    return "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _limits_of_statistics(method):
    statistics = method["running_statistics"]
    if method["batch_norm"] == "transductive":
        yield "Batch norm is transductive: an answer depends on the other queries of the request."
    elif statistics:
        learned = statistics["policy"] == "learned"
        source = "the mean of where the training tasks left them" if learned else (
            "those of the untrained model, as in meta-training"
        )  # fmt: skip
        text = f"Running statistics of normalization start from {source}."
        if statistics["momentum"] is not None:
            left = (f"{100 * statistics['momentum'] ** steps:.0f} %" for steps in _STEPS)
            shares = ", ".join(f"{share} after {step}" for share, step in zip(left, _STEPS))
            text += f" Of this start, adaptation leaves at most {shares} steps."
        if not learned:
            text += " With few steps, answers are normalized by statistics that fit no task."
        yield text


def _versions(environment):
    columns: Sequence[Mapping[str, Any]] = list(environment.values())
    rows = [("Python", *(each["python"] for each in columns))]
    for package in columns[0]["packages"]:
        rows.append((package, *(each["packages"].get(package, "–") for each in columns)))
    if "platform" in columns[0]:
        machines = (f"{each['platform']}, {each['cores']} cores" for each in columns)
        rows.append(("machine", *machines))
    return "## Versions\n\n" + _table(("", *(f"{each} with" for each in environment)), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table. A column whose header ends with a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    titles = [name.removesuffix(":") for name in header]
    lines = [f"| {' | '.join(map(str, row))} |" for row in (titles, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
