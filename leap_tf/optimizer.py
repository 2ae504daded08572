"""Leap for plain `model.fit`: a Keras optimizer that records the gradient path.

Keras calls `optimizer.scale_loss(loss)` inside the tape of every train step and
`optimizer.apply(gradients, variables)` after it. Together the two calls provide one point of the
gradient path: the loss, the gradient, and the parameters before the step. Path, initialization and
sums are optimizer variables, so one traced train function serves every task.

    task(model) opens    the model returns to the initialization, the inner optimizer to its
                         initial state; the path is cleared
    each train step      adds a point to the path
    task(model) closes   adds the meta-gradient of the path to the sum over the meta-batch
    meta_update()        moves the initialization and assigns it to the model

Source: Flennerhag et al., "Transferring Knowledge across Learning Processes", ICLR 2019,
algorithm 1.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import names
from leap_tf.functional import (
    OptimizerReset,
    OptimizerWrapper,
    TaskLayers,
    all_finite,
    apply_if_finite,
    check_meta_optimizer,
    check_policy,
    check_unused,
    check_variables,
    layer_variables,
)
from leap_tf.geometry import PathGeometry
from leap_tf.path_recorder import PathRecorder, StatisticsRecorder, add_accumulators

_STATE_KEY = "initial_state"


@keras.saving.register_keras_serializable(package="leap_tf")
class LeapOptimizer(OptimizerWrapper):
    """A Keras optimizer that trains with another one and meta-learns the initialization (Leap).

    In your own training loop, pass the loss through `scale_loss` inside the tape:

        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(loss_fn(y, model(x, training=True)))
        optimizer.apply(tape.gradient(loss, variables), variables)

    Steps outside `task` train as usual and are not recorded. Under `mixed_float16` put a
    `LossScaleOptimizer` *inside* and compile with `auto_scale_loss=False`. The path then consists
    of unscaled losses and gradients; steps that loss scaling skips add no point.

    Args:
        inner_optimizer: a Keras optimizer that has not been built. It trains on tasks.
        meta_optimizer: a Keras optimizer that has not been built. It updates the initialization. By
            default SGD(1.0) with `scaled`, which suits any number of steps.
        distance, include_loss, stabilizer, metric, per_segment, scaled: see
            `leap_tf.geometry.PathGeometry`.
        task_layers: names of layers that get new values for every task (heads). They are trained,
            but not meta-learned and not part of the path.
        running_statistics: the values from which the running statistics of normalization layers
            start on a task. "learned": they are part of the initialization, and `meta_update` sets
            them to the mean of their final values over the tasks. "fresh": every task starts from
            the values that the model had before its first task, as in the paper.
        seed, name: the seed of the values of `task_layers`, and the optimizer's name.

    Raises:
        TypeError: `inner_optimizer` or `meta_optimizer` is not a Keras optimizer.
        ValueError: `distance`, `metric` or `running_statistics` is unknown, an unknown keyword
            argument is passed, or an optimizer is unsuitable: both are the same object, it was used
            before, is a LeapOptimizer or ScheduleFreeAdamW, accumulates gradients, averages
            parameters, wraps several others, or is a meta-optimizer with loss scaling.

    Example:

        >>> import keras, leap_tf, numpy as np
        >>> model = leap_tf.mlp()
        >>> optimizer = leap_tf.LeapOptimizer(keras.optimizers.SGD(0.02))
        >>> model.compile(optimizer, loss="mse")
        >>> for task in leap_tf.Sinusoids().sample(2, np.random.default_rng(0)):
        ...     with optimizer.task(model):
        ...         history = model.fit(task.train_batches(seed=0).take(5), verbose=0)
        >>> optimizer.meta_update()
        >>> optimizer.path_length > 0
        True
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        meta_optimizer: keras.optimizers.Optimizer | None = None,
        *,
        distance: str = "length",
        include_loss: bool = True,
        stabilizer: bool = True,
        metric: str = "euclidean",
        per_segment: bool = False,
        scaled: bool = False,
        task_layers: Sequence[str] = (),
        running_statistics: str = "learned",
        seed: int = 0,
        name: str = "leap",
        **kwargs,
    ):
        if kwargs:
            raise ValueError(
                f"LeapOptimizer has no arguments {sorted(kwargs)}. Set clipping, weight decay and "
                "the like on the inner_optimizer or the meta_optimizer."
            )
        if meta_optimizer is None:
            meta_optimizer, scaled = keras.optimizers.SGD(1.0), True
        if isinstance(inner_optimizer, LeapOptimizer) or isinstance(meta_optimizer, LeapOptimizer):
            raise ValueError("LeapOptimizers do not nest. Wrap an ordinary Keras optimizer.")
        check_unused(inner_optimizer, "inner_optimizer")
        check_meta_optimizer(meta_optimizer, inner_optimizer)
        if not hasattr(inner_optimizer, "learning_rate"):
            raise ValueError(
                "inner_optimizer is or wraps a MultiOptimizer, which has no learning rate of its "
                "own that a task could start with. Use one optimizer for all variables."
            )
        # Keras requires a rate. The property `learning_rate` reads that of the inner optimizer.
        super().__init__(learning_rate=0.0, name=name)
        self.meta_optimizer = meta_optimizer
        self.geometry = PathGeometry(
            distance, include_loss, stabilizer, metric, per_segment=per_segment, scaled=scaled
        )
        self.task_layers = names(task_layers)
        check_policy(running_statistics)
        self.running_statistics = running_statistics
        self._statistics = StatisticsRecorder(self.task_layers, running_statistics == "learned")
        self.seed = seed
        self._loss, self._in_task = None, False
        self._model: weakref.ref[keras.Model] | None = None
        self.inner_optimizer = inner_optimizer

    @contextlib.contextmanager
    def task(self, model: keras.Model) -> Iterator[None]:
        """Context manager for training on one task.

        The first call takes the model's current weights as the initialization. Every later call
        resets the model to the initialization. On exit, the meta-gradient of the path is added to
        the sum over the meta-batch, and the model keeps the task's weights until the next `task`
        or `meta_update`. A task whose loss, path or weights are not finite is left out and counted
        in `skipped_tasks`. A task that raises an exception adds nothing.

        Args:
            model: the model whose variables this optimizer trains; the same one every time.

        Raises:
            TypeError: a trainable variable of the model is not a Keras variable.
            ValueError: this optimizer cannot train the model, or fewer than two steps were made.
            RuntimeError: another task is still open.
        """
        if self._in_task:
            raise RuntimeError("A task is already open, and tasks do not nest. Leave its block.")
        self._attach(model)
        self._tasks_started.assign_add(1)
        self._restore_initialization(model)
        self._in_task = True
        self._recorder.start()
        try:
            yield
        finally:
            self._recorder.stop()
            self._in_task = False
        meta_gradient = self._recorder.meta_gradient(self._initialization)
        state = [variable.value for variable in model.non_trainable_variables]
        if meta_gradient is None or not all_finite(state):
            self._skipped.assign_add(1)
            return
        for total, gradient in zip(self._meta_sum, meta_gradient):
            total.assign_add(gradient)
        self._tasks.assign_add(1)
        self._statistics.add(model)

    def meta_gradients(self) -> list[tf.Tensor]:
        """Returns the mean meta-gradient of the finished tasks since the last `meta_update`.

        It has one tensor per variable of `meta_variables`.

        Raises:
            RuntimeError: a task is still open, or none has finished.
            FloatingPointError: every task of the meta-batch diverged.
        """
        if self._in_task:
            raise RuntimeError("Leave the task's `with` block before you call meta_gradients.")
        tasks = int(self._tasks.numpy()) if self.built else 0
        skipped = self.skipped_tasks
        if not tasks and skipped:
            raise FloatingPointError(
                f"All {skipped} tasks of this meta-batch diverged (loss, path or weights not "
                "finite). The initialization is unchanged. Lower the inner learning rate or clip "
                "gradients."
            )
        if not tasks:
            raise RuntimeError("No task has finished: train inside `with optimizer.task(model):`.")
        return [total.value / tf.cast(tasks, total.dtype) for total in self._meta_sum]

    def meta_update(self) -> None:
        """Moves the initialization by the mean meta-gradient and clears the sums.

        The model then has the new initialization, the running statistics of the initialization and
        new values of task layers, and the inner optimizer is reset. If this optimizer was loaded
        and no task has been opened since, only the meta-learned variables are updated.

        Raises:
            RuntimeError: a task is still open, or none has finished.
            FloatingPointError: every task diverged, or the update would overflow. An update that
                would overflow is not applied; its sums are kept for a lower meta learning rate.
        """
        gradients = [
            tf.cast(gradient, variable.dtype)
            for gradient, variable in zip(self.meta_gradients(), self._initialization)
        ]
        if not apply_if_finite(self.meta_optimizer, gradients, self._initialization):
            raise FloatingPointError(
                "The meta-update would overflow and was not applied. Lower the learning rate of "
                "the meta_optimizer."
            )
        for theta, variable in zip(self._initialization, self.meta_variables):
            if variable.constraint is not None:
                theta.assign(variable.constraint(theta.value))
            variable.assign(theta.value)
        self._statistics.move(int(self._tasks.numpy()))
        for variable in (*self._meta_sum, self._tasks, self._skipped):
            variable.assign(tf.zeros_like(variable.value))
        model = self._model and self._model()
        if model is not None:
            self._restore_initialization(model)

    @property
    def meta_variables(self) -> list[keras.Variable]:
        """The model's trainable variables outside `task_layers`; known after the first `task`."""
        return self._recorder.meta_variables

    @property
    def holds_initialization(self) -> bool:
        """Whether the model has the weights of the initialization, as after `meta_update`."""
        if not self.built or not self._initialized.numpy():
            return False
        pairs = zip(self._initialization, self.meta_variables)
        return all(np.array_equal(theta.numpy(), each.numpy()) for theta, each in pairs)

    @property
    def skipped_tasks(self) -> int:
        """The number of tasks of the current meta-batch that diverged and were left out."""
        return int(self._skipped.numpy()) if self.built else 0

    @property
    def path_length(self) -> float:
        """Length of the last task's path (eq. 7 with p = 1)."""
        return float(self._recorder.path().length) if self.built else 0.0

    @property
    def path_energy(self) -> float:
        """Energy of the last task's path (eq. 7 with p = 2)."""
        return float(self._recorder.path().energy) if self.built else 0.0

    @tf.autograph.experimental.do_not_convert  # it stores a tensor of the trace for `apply`
    def scale_loss(self, loss):
        """Stores the loss for `apply`, and returns it as scaled by the inner optimizer."""
        self._loss = loss
        return self.inner_optimizer.scale_loss(loss)

    def apply(self, grads, trainable_variables=None):
        """Applies the gradients with the inner optimizer; in a task, first extends the path.

        Args:
            grads: the gradients of the scaled loss, one per variable.
            trainable_variables: all variables of the model, in the same order in every step.

        Raises:
            RuntimeError: `scale_loss` was not called in this step.
            ValueError: the variables are not those this optimizer was built with.
        """
        gradients = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        if self._loss is None:
            raise RuntimeError(
                "LeapOptimizer has not seen the loss of this step. In your own training loop, call "
                "`loss = optimizer.scale_loss(loss)` inside the tape. Under model.fit, Keras has "
                "wrapped this optimizer for loss scaling: compile with auto_scale_loss=False and "
                "use LeapOptimizer(LossScaleOptimizer(...), ...)."
            )
        loss, self._loss = self._loss, None
        expected = [id(variable) for variable in self._recorder.variables]
        given = self._recorder.variables if trainable_variables is None else trainable_variables
        if [id(variable) for variable in given] != expected or len(gradients) != len(expected):
            raise ValueError(
                f"LeapOptimizer needs the gradients of all {len(expected)} variables it was built "
                "with, in the same order, in every step."
            )
        self._recorder.observe(loss, gradients, self.inner_optimizer)
        self.inner_optimizer.apply(gradients, trainable_variables)

    def build(self, variables):
        if self.built:
            return
        variables = list(variables)
        if tf.distribute.has_strategy():
            raise ValueError(
                "LeapOptimizer does not run under tf.distribute, since each task is trained on one "
                "device. Train different tasks in parallel instead, with leap_tf.MetaTrainer."
            )
        check_variables(variables)
        with tf.init_scope():  # model.fit may call this while it traces its train function
            self._build(variables)

    @property
    def variables(self):
        return [*super().variables, *self.inner_optimizer.variables, *self.meta_optimizer.variables]

    @property
    def learning_rate(self):
        """The inner learning rate. A rate set inside a task is reset when the next task opens."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate
        if self.built and not self._in_task:
            self._task_learning_rate.assign(learning_rate)

    @property
    def _has_settable_rate(self):
        return isinstance(self.inner_optimizer.learning_rate, keras.Variable)

    def get_config(self):
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "meta_optimizer": keras.saving.serialize_keras_object(self.meta_optimizer),
            **dataclasses.asdict(self.geometry),
            "task_layers": list(self.task_layers),
            "running_statistics": self.running_statistics,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("inner_optimizer", "meta_optimizer"):
            config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects)
        return cls(**config)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if packed := self._statistics.serialize():
            store[_STATE_KEY] = np.frombuffer(packed, dtype=np.uint8)

    def load_own_variables(self, store):
        arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a mapping
        packed = arrays.pop(_STATE_KEY, None)
        super().load_own_variables(arrays)
        if packed is not None:
            self._statistics.deserialize(np.asarray(packed).tobytes())

    def _build(self, variables):
        self.inner_optimizer.build(variables)
        super().build(variables)
        self._reset_inner_optimizer = OptimizerReset(self.inner_optimizer)
        # A loaded optimizer is built without the model: find layers by the paths of the variables.
        meta_indices = [
            index
            for index, variable in enumerate(variables)
            if set(self.task_layers).isdisjoint(variable.path.split("/"))
        ]
        if not meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        self._recorder = PathRecorder(self.add_variable, variables, meta_indices, self.geometry)
        self._initialization = [
            # `exclude_from_weight_decay(var_names=...)` of the meta-optimizer matches this name.
            self.add_variable(
                shape=variable.shape, dtype=variable.dtype, name=f"theta_{index}_{variable.name}"
            )
            for index, variable in enumerate(self.meta_variables)
        ]
        self._meta_sum = add_accumulators(self.add_variable, self.meta_variables, "meta_sum")
        self._tasks = self.add_variable(shape=(), dtype="int32", name="tasks")
        self._skipped = self.add_variable(shape=(), dtype="int32", name="skipped_tasks")
        self._tasks_started = self.add_variable(shape=(), dtype="int32", name="tasks_started")
        self._initialized = self.add_variable(shape=(), dtype="bool", name="initialized")
        self._task_learning_rate = self.add_variable(shape=(), name="task_learning_rate")
        if self._has_settable_rate:
            self._task_learning_rate.assign(self.inner_optimizer.learning_rate)
        self.meta_optimizer.build(self._initialization)

    def _attach(self, model):
        """Checks the model; the first time, its weights become the initialization."""
        if not model.built or not model.trainable_variables:
            raise ValueError(
                "The model has no variables to train yet. Give it an Input layer, or call it once "
                "on a batch, before its first task."
            )
        compiled = getattr(model, "optimizer", None)
        if compiled is not None and compiled is not self:
            raise ValueError(
                f"The model is compiled with {type(compiled).__name__}, not with this "
                "LeapOptimizer. Compile it with this one. Under mixed_float16, also pass "
                "auto_scale_loss=False and wrap the inner optimizer: "
                "LeapOptimizer(LossScaleOptimizer(...), ...)."
            )
        self.build(model.trainable_variables)
        known = {id(variable) for variable in self._recorder.variables}
        if known != {id(variable) for variable in model.trainable_variables}:
            raise ValueError(
                "The model's trainable variables are not those this LeapOptimizer was built with. "
                "Use one optimizer per model, and set `trainable` before the first task."
            )
        # The name of a task layer may also occur in the path of another layer, see `_build`.
        in_layers = layer_variables(model, self.task_layers)
        by_layer = {id(variable) for variable in in_layers if variable.trainable}
        by_path = known - {id(variable) for variable in self.meta_variables}
        if by_layer != by_path:
            paths = {id(each): each.path for each in (*in_layers, *self._recorder.variables)}
            raise ValueError(
                f"task_layers={list(self.task_layers)} is ambiguous: of the variables "
                f"{sorted({paths[key] for key in by_layer ^ by_path})}, either the layer or the "
                "path has such a name, not both. Give task layers names that occur nowhere else."
            )
        self._model = weakref.ref(model)
        if not self._initialized.numpy():
            for theta, variable in zip(self._initialization, self.meta_variables):
                theta.assign(variable.value)
            self._initialized.assign(True)
        self._statistics.attach(model)

    def _restore_initialization(self, model):
        """Assigns the initialization, draws task layers and resets the inner optimizer."""
        for variable, theta in zip(self.meta_variables, self._initialization):
            variable.assign(theta.value)
        self._statistics.restore(model)
        task_number = int(self._tasks_started.numpy())
        task_seed = int(np.random.default_rng([self.seed, task_number]).integers(2**31))
        drawn = TaskLayers(model, self.task_layers).draw(task_seed)
        for variable in layer_variables(model, self.task_layers):
            variable.assign(drawn[id(variable)])
        self._reset_inner_optimizer()
        if self._has_settable_rate:
            self.inner_optimizer.learning_rate = self._task_learning_rate.numpy()
