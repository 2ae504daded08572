"""A gradient path that lives in Keras variables, so that `model.fit` can extend it.

What a loss-scaling optimizer hides: the gradient of the loss itself, and skipped steps.

What `LeapOptimizer` refuses, and what it tells people to do instead.

Each of these would otherwise train on and record a path that is not the model's.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from leap_tf.functional import check_no_loss_scaling, check_optimizer
from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, accumulator_dtype, extend_path


class PathRecorder:
    """Follows the training of one task after the other, while it is switched on.

    Args:
        add_variable: the owner's `add_variable(shape, dtype, name)`, which also tracks it.
        variables: the model variables whose path is recorded.
        geometry: the distance that is measured.
    """

    def __init__(
        self,
        add_variable: Callable[..., keras.Variable],
        variables: Sequence[keras.Variable],
        geometry: PathGeometry,
    ):
        def like_each(name):
            return [
                add_variable(shape=variable.shape, dtype=dtype, name=f"{name}_{index}")
                for index, (variable, dtype) in enumerate(zip(variables, dtypes))
            ]

        dtypes = [accumulator_dtype(tf.as_dtype(variable.dtype)).name for variable in variables]
        scalar_dtype = "float64" if "float64" in dtypes else "float32"
        self._variables = variables
        self._geometry = geometry
        self._path = GradientPath(
            last=PathPoint(
                position=like_each("last_position"),
                loss=add_variable(shape=(), dtype=scalar_dtype, name="last_loss"),
                gradient=like_each("last_gradient"),
            ),
            points=add_variable(shape=(), dtype="int32", name="points"),
            meta_gradient=like_each("meta_gradient"),
            length=add_variable(shape=(), dtype=scalar_dtype, name="path_length"),
            energy=add_variable(shape=(), dtype=scalar_dtype, name="path_energy"),
        )
        self._recording = add_variable(shape=(), dtype="bool", name="recording")
        self._steps = add_variable(shape=(), dtype="int32", name="steps")
        self._diverged = add_variable(shape=(), dtype="bool", name="diverged")

    def start(self) -> None:
        """Forgets the last path and begins to record."""
        self._assign(tf.nest.map_structure(tf.zeros_like, self.path()))
        self._steps.assign(0)
        self._diverged.assign(False)
        self._recording.assign(True)

    def stop(self) -> None:
        """Ends recording; the path stays."""
        self._recording.assign(False)

    def see(
        self, loss: tf.Tensor, gradients: Sequence[tf.Tensor], makes_step: tf.Tensor | bool
    ) -> None:
        """Takes in one train step, before it moves the variables. Runs inside train functions.

        Args:
            loss: the unscaled loss. One that is not finite marks the task as diverged.
            gradients: its unscaled gradients, one per variable.
            makes_step: False where loss scaling will skip the step; it then leaves no point.
        """
        recording = tf.convert_to_tensor(self._recording.value)
        broken = tf.logical_not(tf.reduce_all(tf.math.is_finite(loss)))
        self._steps.assign_add(tf.cast(recording, tf.int32))
        self._diverged.assign(
            tf.logical_or(self._diverged.value, tf.logical_and(recording, broken))
        )
        tf.cond(
            tf.logical_and(recording, makes_step),
            lambda: self._extend(loss, gradients),
            lambda: None,
        )

    def path(self) -> GradientPath:
        """Returns the path as tensors."""
        return tf.nest.map_structure(
            lambda variable: tf.convert_to_tensor(variable.value), self._path
        )

    @property
    def steps(self) -> int:
        """Train steps seen since `start`, skipped ones included."""
        return int(self._steps.numpy())

    @property
    def finite(self) -> bool:
        """Whether every loss and the whole path are finite."""
        path = self.path()
        tensors = [path.last.loss, path.length, *path.meta_gradient]
        return not bool(self._diverged.numpy()) and all(
            bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in tensors
        )

    def _extend(self, loss, gradients):
        position = [tf.convert_to_tensor(variable.value) for variable in self._variables]
        point = PathPoint(position, loss, gradients)
        self._assign(extend_path(self.path(), point, self._geometry))

    def _assign(self, path):
        for variable, value in zip(tf.nest.flatten(self._path), tf.nest.flatten(path)):
            variable.assign(value)


def unscaled_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
    variables: Sequence[keras.Variable],
) -> list[tf.Tensor]:
    """Divides gradients by the scale that `optimizer` gave the loss.

    Args:
        optimizer: scales dynamically (`LossScaleOptimizer`), by a constant, or not at all.
        gradients: of the scaled loss; None where it does not depend on a variable.
        variables: what the gradients are of.

    Returns:
        Dense gradients of the loss, zero for None.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        scale = optimizer.dynamic_scale.value
    else:
        scale = optimizer.loss_scale_factor or 1.0
    return [
        tf.zeros(variable.shape, variable.dtype)
        if gradient is None
        else tf.convert_to_tensor(gradient) / tf.cast(scale, gradient.dtype)
        for gradient, variable in zip(gradients, variables)
    ]


def makes_step(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
) -> tf.Tensor | bool:
    """Returns whether `optimizer` will move the weights: dynamic scaling may skip a step."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return True
    return tf.reduce_all(
        [
            tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient)))
            for gradient in gradients
            if gradient is not None
        ]
    )


LOSS_NOT_SEEN = (
    "LeapOptimizer has not seen the loss of this step. In a loop of your own, call "
    "`loss = optimizer.scale_loss(loss)` inside the tape. Under model.fit, another optimizer "
    "hides this one: compile with auto_scale_loss=False and put the LossScaleOptimizer inside, "
    "LeapOptimizer(LossScaleOptimizer(...), ...)."
)


def check_wrapped(
    inner_optimizer: keras.optimizers.Optimizer, meta_optimizer: keras.optimizers.Optimizer
) -> None:
    """Refuses optimizers with hidden state, used ones, and loss scaling outside."""
    for role, optimizer in (
        ("inner_optimizer", inner_optimizer),
        ("meta_optimizer", meta_optimizer),
    ):
        check_optimizer(optimizer, role)
        if optimizer.built:
            raise ValueError(
                f"{role} has been used already, so its state is not that of a fresh start. Pass "
                "a new optimizer."
            )
    if inner_optimizer is meta_optimizer:
        raise ValueError("inner_optimizer and meta_optimizer must be two different objects.")
    check_no_loss_scaling(meta_optimizer)


def check_trackable(variables: Sequence[keras.Variable]) -> None:
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


def check_compiled(optimizer: keras.optimizers.Optimizer, model: keras.Model) -> None:
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


def check_same_variables(
    known: Sequence[keras.Variable], variables: Sequence[keras.Variable]
) -> None:
    """Refuses a model with other trainable variables than those the optimizer knows."""
    if {id(variable) for variable in known} != {id(variable) for variable in variables}:
        raise ValueError(
            "The model's trainable variables are not those this LeapOptimizer was built with. "
            "Use one optimizer per model, and set `trainable` before the first task."
        )


def check_task_layer_names(
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


def check_full_step(
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


def check_trained(steps: int) -> None:
    """Refuses a task in which nothing was trained."""
    if not steps:
        raise ValueError(
            "No training step was recorded in this task. Train the model inside the `with` "
            "block, on a data set that has at least one batch."
        )


def check_path(steps: int, points: int) -> None:
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
