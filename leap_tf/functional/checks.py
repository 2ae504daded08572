"""Checks of models, optimizers and losses, and clear errors from those of traced functions."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import ArrayTask
from leap_tf.errors import LeapError
from leap_tf.tasks import Task


class UnsupportedModelError(LeapError, ValueError):
    """A model does something in training that the functional task loop cannot do."""

    # AutoGraph raises an error of the same type, with a trace, only if it has this constructor.
    __init__ = Exception.__init__

    def without_trace(self) -> "UnsupportedModelError":
        """Returns the error without the trace that AutoGraph puts in front of its message."""
        last = str(self).strip().splitlines()[-1].strip()
        return type(self)(last.removeprefix(f"{type(self).__name__}: "))


def check_training_rule(model: keras.Model) -> None:
    """Checks that a model is trained by Keras's own rule, which the functional task loop has.

    Raises:
        UnsupportedModelError: it overrides `train_step`, `compute_loss` or `make_train_function`,
            or was compiled with `loss_weights`.
    """
    for name in ("train_step", "compute_loss", "make_train_function"):
        if name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name):
            raise UnsupportedModelError(
                f"{model.name!r} has its own {name}, which the functional task loop does not call. "
                "Use leap_tf.LeapOptimizer with model.fit, or express the rule by a loss, by "
                "add_loss in a layer, and by the inner optimizer."
            )
    if getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None) is not None:
        raise UnsupportedModelError(
            f"{model.name!r} was compiled with loss_weights, which the functional task loop does "
            "not read. Compile it without them, and weight the loss that you pass to the trainer."
        )


def check_optimizer(optimizer: keras.optimizers.Optimizer, role: str) -> None:
    """Checks that every call of `apply` of an optimizer makes one gradient step.

    Optimizers that it wraps are checked too. `role` is the argument's name, for the message.

    Raises:
        TypeError: it is not a Keras optimizer.
        ValueError: it accumulates gradients, averages parameters or keeps copies of them.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"{role} must be a keras.optimizers.Optimizer. Received a {type(optimizer).__name__}."
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"{role} has gradient_accumulation_steps={optimizer.gradient_accumulation_steps}, so "
            "most of its steps do not move the parameters, and the path would consist of "
            "micro-batches. Give the task larger batches instead."
        )
    if optimizer.use_ema:
        raise ValueError(
            f"{role} has use_ema=True, which overwrites the parameters with their moving average. "
            "The meta-learner would not see this change. Build it without EMA."
        )
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        raise ValueError(
            f"{role} is a ScheduleFreeAdamW, which keeps copies of the parameters it was built "
            "with and cannot restart from others. Use AdamW with a schedule."
        )
    for wrapped in wrapped_optimizers(optimizer):
        check_optimizer(wrapped, role)


def wrapped_optimizers(
    optimizer: keras.optimizers.Optimizer,
) -> Sequence[keras.optimizers.Optimizer]:
    """Returns the optimizers that a Keras optimizer wraps; none for an ordinary one."""
    inside = getattr(optimizer, "inner_optimizer", None)
    return [inside] if inside is not None else list(getattr(optimizer, "optimizers", ()))


def check_variables(variables: Iterable[keras.Variable]) -> None:
    """Checks that variables are Keras variables, and that gradients move them.

    Raises:
        TypeError: one is not a Keras variable.
        ValueError: one is replaced by its gradient.
    """
    variables = list(variables)
    foreign = [type(v).__name__ for v in variables if not isinstance(v, keras.Variable)]
    if foreign:
        raise TypeError(f"Gradient paths need Keras variables, and there is a {foreign[0]}.")
    overwritten = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
    if overwritten:
        raise ValueError(
            f"Keras overwrites the variables {overwritten} with their gradients (float8 training), "
            "so they have no gradient path. Use a float32 or mixed-precision policy."
        )


def check_unused(optimizer: keras.optimizers.Optimizer, role: str) -> None:
    """Checks an optimizer as `check_optimizer` does, and that it has no state.

    Raises:
        TypeError, ValueError: see `check_optimizer`; or the optimizer has been built.
    """
    check_optimizer(optimizer, role)
    if optimizer.built:
        raise ValueError(
            f"{role} has been used already, so it has state from other training. Pass a new "
            "optimizer."
        )


def check_meta_optimizer(
    meta_optimizer: keras.optimizers.Optimizer, *others: keras.optimizers.Optimizer | None
) -> None:
    """Checks that an optimizer can update the initialization.

    Raises:
        TypeError, ValueError: see `check_unused`; or it is one of the `others`, which train on
            tasks, or divides gradients by the scale of a loss.
    """
    if any(meta_optimizer is other for other in others):
        raise ValueError(
            "The same optimizer object cannot train on tasks and move the initialization. Pass two "
            "optimizers, for example keras.optimizers.SGD(0.1) twice."
        )
    check_unused(meta_optimizer, "meta_optimizer")
    if meta_optimizer.loss_scale_factor or isinstance(
        meta_optimizer, keras.optimizers.LossScaleOptimizer
    ):
        raise ValueError(
            "meta_optimizer has loss scaling, but meta-gradients are unscaled. Put loss scaling on "
            "the inner_optimizer."
        )


class WrongSecondDerivativesError(LeapError, ValueError):
    """A loss stops gradients, so its second derivatives are wrong."""

    # AutoGraph raises an error of the same type, with a trace, only if it has this constructor.
    __init__ = Exception.__init__


def check_no_stopped_gradients_in(graph: tf.Graph) -> None:
    """Checks that the second derivatives of a traced loss are correct.

    `tf.nn.moments` stops the gradient of the mean inside the variance. The first derivative there
    is zero, but the second is not, so Hessians through Keras's normalization layers are symmetric
    and wrong by about a tenth. TensorFlow's fused batch normalization, which
    `leap_tf.models.BatchNormalization` uses, has correct second derivatives.

    Raises:
        WrongSecondDerivativesError: the graph, or a function it calls, stops a gradient.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    stopped = [node.name for node in nodes if node.op == "StopGradient"]
    if stopped:
        raise WrongSecondDerivativesError(
            f"The loss stops gradients in {', '.join(stopped)}, so it has wrong second "
            "derivatives. Keras's normalization layers cause this; for float32 images use "
            "leap_tf.models.BatchNormalization."
        )


@contextlib.contextmanager
def error_context(task: Task, part: str = "a training batch") -> Iterator[None]:
    """Adds the task and the usual cause to errors of the graph."""
    where = f"Task {task.name!r}, {part}"
    try:
        yield
    except tf.errors.OutOfRangeError as error:
        raise ValueError(
            f"Task {task.name!r} has fewer training batches than the learner's steps and query "
            "batches together, too few query batches of its own, or no validation batches for its "
            "stop rule. Repeat its data set, or make fewer steps."
        ) from error
    except UnsupportedModelError as error:
        raise error.without_trace() from error
    except WrongSecondDerivativesError as error:
        raise ValueError(f"{_gist(error)} Or take a first-order learner.") from error
    except tf.errors.OpError as error:
        gist = _gist(error)
        label = re.search(
            r"label value of (-?\d+) .* range of \[0, (\d+)\)\.\s+Label values: ([-\d ]*)", gist
        )
        if label:
            found, units, labels = label.groups()
            raise ValueError(
                f"{where} with the labels {labels[:60].strip()}: label {found} is outside "
                f"[0, {units}). {label_advice(task, int(units))}"
            ) from error
        message = f"{where}: the model, the loss or the input pipeline fails on its data: {gist}"
        if isinstance(error, _OF_DATA):
            raise ValueError(message) from error
        raise type(error)(error.node_def, error.op, message) from error
    except (ValueError, TypeError) as error:  # in tracing, by the data's shapes or by user code
        raise ValueError(
            f"Task {task.name!r} cannot be trained on. Its inputs or targets do not fit the model, "
            f"or the loss, the error function or the learner fails on them: {_gist(error)}"
        ) from error


_OF_DATA = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.UnknownError)
# Lines of TensorFlow and Keras around the reason of an error: where it was, and in which call.
_FRAME = re.compile(
    r"Graph execution error:|Detected at node |File \"|<stack traces|Traceback |\[\[|"
    r"\d+ root error|•|Arguments received by|Exception encountered when calling"
)


def _gist(error):
    """Returns the line with the reason: the last of a traced function's error, else the first."""
    text = re.sub(r"\x1b\[\d*m", "", str(getattr(error, "message", error)))
    lines = [line.strip() for line in text.splitlines()]
    traced = bool(lines) and lines[0].endswith("in user code:")
    lines = [line for line in lines if line and not _FRAME.match(line)]
    reason = lines[-1 if traced else 0] if lines else type(error).__name__
    reason = re.sub(r"^\(\d+\) \w+:\s*|\{\{function_node .*?\}\}\s*", "", reason)
    return re.sub(r"\s*\[Op:\w+\].*$", "", reason)


def check_labels(task: ArrayTask, units: int, ignored: int | None = None) -> None:
    """Checks that all targets of a task are labels of a model with this number of outputs.

    Raises:
        ValueError: a target lies outside [0, units), and is not `ignored`.
    """
    for part, examples, (least, most) in zip(
        ("training", "held-out"), (task.train, task.test), task.label_ranges, strict=True
    ):
        if least >= 0 and most < units:
            continue
        labels = np.asarray(examples[1])
        wrong = np.argwhere(((labels < 0) | (labels >= units)) & (labels != ignored))
        if len(wrong):
            label = labels[tuple(wrong[0])]
            raise ValueError(
                f"Task {task.name!r}, {part} example {wrong[0][0]}: label {label} is outside "
                f"[0, {units}). {label_advice(task, units)}"
            )


def label_advice(task: Any, units: int) -> str:
    """Returns what to do about a label that is not below the number of outputs of a model."""
    classes = getattr(task, "classes", None)
    if classes is not None and classes <= units:
        return f"The task has classes={classes}; number its labels from 0."
    return (
        f"The model has {units} outputs. Number the labels from 0 and give it as many outputs as "
        "labels, or name its output layer, which must be a Dense layer that ends the model, in "
        "task_layers and give each task its `classes`."
    )
