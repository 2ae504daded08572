"""The gradient path of `LeapOptimizer` in Keras variables, and the checks of that optimizer.

Each check raises an error in a case where training would continue and record a wrong path.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from leap_tf.functional import check_no_loss_scaling, check_optimizer
from leap_tf.geometry import GradientPath, PathGeometry, PathPoint, accumulator_dtype, extend_path

LOSS_NOT_SEEN = (
    "LeapOptimizer has not seen the loss of this step. In your own training loop, call "
    "`loss = optimizer.scale_loss(loss)` inside the tape. Under model.fit, another optimizer "
    "wraps this one: compile with auto_scale_loss=False and put the LossScaleOptimizer inside, "
    "LeapOptimizer(LossScaleOptimizer(...), ...)."
)

Gradients = Sequence[tf.Tensor | tf.IndexedSlices | None]


class PathRecorder:
    """Records the gradient path of one task at a time, inside traced train functions.

    Args:
        add_variable: the optimizer's `add_variable(shape, dtype, name)`, which tracks the variable.
        variables: the trainable variables of the model.
        meta_indices: indices of the variables whose path is recorded.
        geometry: the distance along the path.
    """

    def __init__(
        self,
        add_variable: Callable[..., keras.Variable],
        variables: Sequence[keras.Variable],
        meta_indices: Sequence[int],
        geometry: PathGeometry,
    ):
        def one_for_each(name):
            return [
                add_variable(shape=variable.shape, dtype=dtype, name=f"{name}_{index}")
                for index, (variable, dtype) in enumerate(zip(self.meta_variables, dtypes))
            ]

        self.variables = list(variables)
        self.meta_variables = [self.variables[index] for index in meta_indices]
        self._meta_indices = list(meta_indices)
        self._geometry = geometry
        dtypes = [accumulator_dtype(tf.as_dtype(each.dtype)).name for each in self.meta_variables]
        scalar_dtype = "float64" if "float64" in dtypes else "float32"
        self._path = GradientPath(
            last=PathPoint(
                position=one_for_each("last_position"),
                loss=add_variable(shape=(), dtype=scalar_dtype, name="last_loss"),
                gradient=one_for_each("last_gradient"),
            ),
            points=add_variable(shape=(), dtype="int32", name="points"),
            meta_gradient=one_for_each("meta_gradient"),
            length=add_variable(shape=(), dtype=scalar_dtype, name="path_length"),
            energy=add_variable(shape=(), dtype=scalar_dtype, name="path_energy"),
        )
        self._recording = add_variable(shape=(), dtype="bool", name="recording")
        self._steps = add_variable(shape=(), dtype="int32", name="steps")
        self._diverged = add_variable(shape=(), dtype="bool", name="diverged")

    def start(self) -> None:
        """Clears the path and begins to record."""
        self._assign(tf.nest.map_structure(tf.zeros_like, self.path()))
        self._steps.assign(0)
        self._diverged.assign(False)
        self._recording.assign(True)

    def stop(self) -> None:
        """Ends recording and keeps the path."""
        self._recording.assign(False)

    def observe(
        self, loss: tf.Tensor, gradients: Sequence[tf.Tensor], makes_step: tf.Tensor | bool
    ) -> None:
        """Records a train step before it changes the variables. Runs inside train functions.

        Args:
            loss: the unscaled loss. A loss that is not finite marks the task as diverged.
            gradients: the unscaled gradients of all trainable variables.
            makes_step: False if loss scaling will skip the step, which then adds no point.
        """
        recording = tf.convert_to_tensor(self._recording.value)
        broken = tf.logical_not(tf.reduce_all(tf.math.is_finite(loss)))
        self._steps.assign_add(tf.cast(recording, tf.int32))
        self._diverged.assign(
            tf.logical_or(self._diverged.value, tf.logical_and(recording, broken))
        )
        tf.cond(
            tf.logical_and(recording, makes_step),
            lambda: self._extend(loss, [gradients[index] for index in self._meta_indices]),
            lambda: None,
        )

    def path(self) -> GradientPath:
        """Returns the path as tensors."""
        return tf.nest.map_structure(
            lambda variable: tf.convert_to_tensor(variable.value), self._path
        )

    @property
    def steps(self) -> int:
        """The number of train steps since `start`, skipped ones included."""
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
        position = [tf.convert_to_tensor(variable.value) for variable in self.meta_variables]
        point = PathPoint(position, loss, gradients)
        self._assign(extend_path(self.path(), point, self._geometry))

    def _assign(self, path):
        for variable, value in zip(tf.nest.flatten(self._path), tf.nest.flatten(path)):
            variable.assign(value)


def unscaled_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: Gradients, variables: Sequence[keras.Variable]
) -> list[tf.Tensor]:
    """Divides gradients by the factor with which `optimizer` scales the loss.

    Args:
        optimizer: scales dynamically (`LossScaleOptimizer`), by a constant, or not at all.
        gradients: gradients of the scaled loss; None if it does not depend on a variable.
        variables: the variables of the gradients.

    Returns:
        Dense gradients of the unscaled loss, zero for None.
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


def makes_step(optimizer: keras.optimizers.Optimizer, gradients: Gradients) -> tf.Tensor | bool:
    """Returns whether `optimizer` will make this step, which dynamic loss scaling may skip."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return True
    return tf.reduce_all(
        [
            tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient)))
            for gradient in gradients
            if gradient is not None
        ]
    )


def check_wrapped(
    inner_optimizer: keras.optimizers.Optimizer, meta_optimizer: keras.optimizers.Optimizer
) -> None:
    """Checks that both optimizers are unused and make no hidden steps.

    Raises:
        TypeError: one is not a Keras optimizer.
        ValueError: one has been used or is refused by `check_optimizer`, both are one object, or
            the meta-optimizer scales a loss.
    """
    for role, optimizer in (
        ("inner_optimizer", inner_optimizer),
        ("meta_optimizer", meta_optimizer),
    ):
        check_optimizer(optimizer, role)
        if optimizer.built:
            raise ValueError(
                f"{role} has been used already, so it has state from other training. Pass a new "
                "optimizer."
            )
    if inner_optimizer is meta_optimizer:
        raise ValueError("inner_optimizer and meta_optimizer must be two different objects.")
    check_no_loss_scaling(meta_optimizer)


def check_trackable(variables: Sequence[keras.Variable]) -> None:
    """Raises ValueError under a distribution strategy, and for variables trained in float8."""
    if tf.distribute.has_strategy():
        raise ValueError(
            "LeapOptimizer does not run under tf.distribute, since each task is trained on one "
            "device. Train different tasks in parallel instead, with leap_tf.MetaTrainer."
        )
    overwritten = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
    if overwritten:
        raise ValueError(
            f"The gradients of {overwritten} are new values, not gradients (float8 training), so "
            "they have no gradient path. Use a float32 or mixed policy."
        )


def check_compiled(optimizer: keras.optimizers.Optimizer, model: keras.Model) -> None:
    """Raises ValueError if the model has no variables or is compiled with another optimizer."""
    if not model.built or not model.trainable_variables:
        raise ValueError(
            "The model has no variables to train yet. Give it an Input layer, or call it once on "
            "a batch, before its first task."
        )
    compiled = getattr(model, "optimizer", None)
    if compiled is not None and compiled is not optimizer:
        raise ValueError(
            f"The model is compiled with {type(compiled).__name__}, not with this LeapOptimizer. "
            "Compile it with this one; under mixed_float16 with auto_scale_loss=False and the "
            "LossScaleOptimizer inside."
        )


def check_same_variables(
    known: Sequence[keras.Variable], variables: Sequence[keras.Variable]
) -> None:
    """Raises ValueError if a model's trainable variables are not those the optimizer knows."""
    if {id(variable) for variable in known} != {id(variable) for variable in variables}:
        raise ValueError(
            "The model's trainable variables are not those this LeapOptimizer was built with. "
            "Use one optimizer per model, and set `trainable` before the first task."
        )


def check_task_layer_names(
    task_layers: Sequence[str],
    by_layer: Sequence[keras.Variable],
    by_path: Sequence[keras.Variable],
) -> None:
    """Raises ValueError if layer names select other variables by layer than by path.

    A loaded optimizer is built before it knows the model, so it finds the variables of task layers
    by their paths. A name that is also a part of other paths would select those too.

    Args:
        task_layers: names of layers.
        by_layer: variables of the layers with these names.
        by_path: trainable variables with one of the names in their path.
    """
    paths = {id(each): each.path for each in (*by_layer, *by_path) if each.trainable}
    odd = {id(each) for each in by_layer if each.trainable} ^ {id(each) for each in by_path}
    if odd:
        raise ValueError(
            f"task_layers={list(task_layers)} do not distinguish the variables "
            f"{sorted({paths[key] for key in odd})} from others. Give the layers in task_layers "
            "names that occur nowhere else in the model."
        )


def check_full_step(
    known: Sequence[keras.Variable],
    gradients: Gradients,
    variables: Sequence[keras.Variable] | None,
) -> None:
    """Raises ValueError if a step has not the gradients of all variables in their order."""
    given = known if variables is None else variables
    expected = [id(variable) for variable in known]
    if [id(variable) for variable in given] != expected or len(gradients) != len(expected):
        raise ValueError(
            f"LeapOptimizer needs the gradients of all {len(expected)} variables it was built "
            "with, in the same order, in every step."
        )


def check_path(steps: int, points: int) -> None:
    """Raises ValueError if the steps of a task made fewer than two points."""
    if not steps:
        raise ValueError(
            "No training step was recorded in this task. Train the model inside the `with` "
            "block, on a data set with at least one batch."
        )
    if steps < 2:
        raise ValueError(
            "One training step is one point, and a path needs two. Train for at least two steps "
            "on a task: repeat its data set, or make smaller batches."
        )
    if points < 2:
        raise ValueError(
            f"Loss scaling skipped {steps - points} of {steps} steps of this task, and a path "
            "needs at least two. Lower initial_scale of the LossScaleOptimizer, or train longer "
            "on a task."
        )
