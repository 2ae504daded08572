"""What `LeapOptimizer` refuses, and what it tells people to do instead.

Each of these would otherwise train on and record a path that is not the model's.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.functional import refuse_hidden_state, refuse_loss_scaling

LOSS_NOT_SEEN = (
    "LeapOptimizer has not seen the loss of this step. In a loop of your own, call "
    "`loss = optimizer.scale_loss(loss)` inside the tape. Under model.fit, another optimizer "
    "hides this one: compile with auto_scale_loss=False and put the LossScaleOptimizer inside, "
    "LeapOptimizer(LossScaleOptimizer(...), ...)."
)


def refuse_wrapped(
    inner_optimizer: keras.optimizers.Optimizer, meta_optimizer: keras.optimizers.Optimizer
) -> None:
    """Refuses optimizers with hidden state, used ones, and loss scaling outside."""
    for role, optimizer in (
        ("inner_optimizer", inner_optimizer),
        ("meta_optimizer", meta_optimizer),
    ):
        refuse_hidden_state(optimizer, role)
        if optimizer.built:
            raise ValueError(
                f"{role} has been used already, so its state is not that of a fresh start. Pass "
                "a new optimizer."
            )
    if inner_optimizer is meta_optimizer:
        raise ValueError("inner_optimizer and meta_optimizer must be two different objects.")
    refuse_loss_scaling(meta_optimizer)


def refuse_untrackable(variables: Sequence[keras.Variable]) -> None:
    """Refuses distribution strategies, and variables whose gradient is their next value."""
    if tf.distribute.has_strategy():
        raise ValueError(
            "LeapOptimizer does not run under tf.distribute: a task is trained in one place. "
            "Train different tasks in parallel instead, with leap_tf.MetaTrainer."
        )
    overwritten = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
    if overwritten:
        raise ValueError(
            f"The gradients of {overwritten} are new values, not gradients (float8 training), so "
            "there is no path to follow. Use a float32 or mixed policy."
        )


def refuse_other_optimizer(optimizer: keras.optimizers.Optimizer, model: keras.Model) -> None:
    """Refuses a model that has no variables yet, or is compiled with another optimizer."""
    if not model.built or not model.trainable_variables:
        raise ValueError(
            "The model has no variables to train yet. Give it an Input layer, or call it once on "
            "a batch, before its first task."
        )
    compiled = getattr(model, "optimizer", None)
    if compiled is not None and compiled is not optimizer:
        raise ValueError(
            f"The model is compiled with {type(compiled).__name__}, which is not this "
            "LeapOptimizer. Compile it with this one; under mixed_float16 with "
            "auto_scale_loss=False and the LossScaleOptimizer inside."
        )


def refuse_other_variables(
    known: Sequence[keras.Variable], variables: Sequence[keras.Variable]
) -> None:
    """Refuses a model with other trainable variables than those the optimizer knows."""
    if {id(variable) for variable in known} != {id(variable) for variable in variables}:
        raise ValueError(
            "The model's trainable variables are not those this LeapOptimizer was built with. "
            "Use one optimizer per model, and set `trainable` before the first task."
        )


def refuse_ambiguous_task_layers(
    task_layers: Sequence[str],
    head_variables: Sequence[keras.Variable],
    fresh_variables: Sequence[keras.Variable],
) -> None:
    """Refuses names that pick other variables by their paths than by their layers.

    A loaded optimizer is built before it has a model to ask, so heads are told by the paths of
    their variables; a name that is also a part of other layers' paths would pick those too.
    """
    by_layer = {id(variable): variable.path for variable in head_variables if variable.trainable}
    by_path = {id(variable): variable.path for variable in fresh_variables}
    if by_layer.keys() != by_path.keys():
        odd = sorted(
            {
                path
                for key, path in (by_layer | by_path).items()
                if (key in by_layer) != (key in by_path)
            }
        )
        raise ValueError(
            f"task_layers={list(task_layers)} do not tell the variables {odd} apart from the "
            "rest. Give the layers that start fresh names that occur nowhere else in the model."
        )


def refuse_partial_step(
    known: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable] | None,
) -> None:
    """Refuses a step that moves some of the variables only, or in another order."""
    given = known if variables is None else variables
    expected = [id(variable) for variable in known]
    if [id(variable) for variable in given] != expected or len(gradients) != len(expected):
        raise ValueError(
            f"LeapOptimizer must be given the gradients of all {len(expected)} variables it was "
            "built with, in the same order, in every step."
        )


def refuse_no_training(steps: int) -> None:
    """Refuses a task in which nothing was trained."""
    if not steps:
        raise ValueError(
            "No training step was recorded in this task. Train the model inside the `with` "
            "block, on a data set that has at least one batch."
        )


def refuse_no_path(steps: int, points: int) -> None:
    """Refuses a task whose steps make no path: one alone, or all but one skipped."""
    if steps < 2:
        raise ValueError(
            "One training step is one point, and makes no path. Train for at least two steps "
            "on a task: repeat its data set, or make smaller batches."
        )
    if points < 2:
        raise ValueError(
            f"Loss scaling skipped {steps - points} of {steps} steps of this task, and the rest "
            "make no path. Lower initial_scale of the LossScaleOptimizer, or train longer on a "
            "task."
        )
