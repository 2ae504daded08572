"""Leap for plain `model.fit`: a Keras optimizer that records the path it walks.

Keras calls `optimizer.scale_loss(loss)` inside the tape of every train step and
`optimizer.apply(gradients, variables)` after it. Between the two, `LeapOptimizer` knows a
whole point of the gradient path (loss, gradient, and the parameters before the step), hands
it to `leap_tf.geometry` and lets the wrapped optimizer make the step. Path, initialization
and sums are optimizer variables, so one traced train function serves every task.

    task(model) opens    model, slots and schedule go back to the initialization; path empty
    each train step      one more point on the path
    task(model) closes   the path's meta-gradient joins the sum over the meta-batch
    meta_update()        the meta-optimizer moves the initialization; the model becomes it
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import OptimizerReset, apply_if_finite, fresh_values, layer_variables
from leap_tf.geometry import PathGeometry, accumulator_dtype, mean_over_segments
from leap_tf.path_recorder import (
    LOSS_NOT_SEEN,
    PathRecorder,
    check_compiled,
    check_full_step,
    check_path,
    check_same_variables,
    check_task_layer_names,
    check_trackable,
    check_trained,
    check_wrapped,
    makes_step,
    unscaled_gradients,
)
from leap_tf.serialization import SavedArrays, pack_arrays, unpack_arrays

_STATE_KEY = "initial_state"


@keras.saving.register_keras_serializable(package="leap_tf")
class LeapOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer so that training a model also meta-learns its initialization.

        optimizer = LeapOptimizer(SGD(0.1), meta_optimizer=SGD(0.1))
        model.compile(optimizer, loss=...)
        for task in meta_batch:
            with optimizer.task(model):
                model.fit(task)
        optimizer.meta_update()

    In a loop of your own, pass the loss through `scale_loss` inside the tape:

        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(loss_of(model(x, training=True), y))
        optimizer.apply(tape.gradient(loss, variables), variables)

    Steps outside `task` train as ever and record nothing. Under `mixed_float16` put a
    `LossScaleOptimizer` *inside* and compile with `auto_scale_loss=False`; the path is made
    of unscaled losses and gradients, and steps that the loss scaling skips leave no point.

    Args:
        inner_optimizer: the unused Keras optimizer that trains on tasks.
        meta_optimizer: the unused Keras optimizer that moves the initialization.
        distance: "length" or "energy", see `leap_tf.geometry.PathGeometry`.
        include_loss: whether the loss is a coordinate of the path.
        stabilizer: whether a rising loss counts as a falling one.
        metric: "euclidean" or "fisher", see `PathGeometry`.
        per_segment: whether a task's meta-gradient is divided by its number of segments, so that a
            meta rate holds for any number of steps. The paper's is not.
        task_layers: names of layers that start fresh on every task (heads). They are trained
            but not meta-learned and are no part of the path.
        seed: what the fresh layers are drawn from.
        name: the optimizer's name.

    Raises:
        ValueError: a combination that cannot be right, with what to do instead.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        meta_optimizer: keras.optimizers.Optimizer,
        *,
        distance: str = "length",
        include_loss: bool = True,
        stabilizer: bool = True,
        metric: str = "euclidean",
        per_segment: bool = False,
        task_layers: Sequence[str] = (),
        seed: int = 0,
        name: str = "leap",
        **kwargs,
    ):
        if kwargs:
            raise ValueError(
                f"LeapOptimizer takes no {sorted(kwargs)}. Set clipping, decay and the like on the "
                "inner_optimizer or the meta_optimizer."
            )
        if isinstance(inner_optimizer, LeapOptimizer) or isinstance(meta_optimizer, LeapOptimizer):
            raise ValueError("LeapOptimizers do not nest; wrap an ordinary Keras optimizer.")
        check_wrapped(inner_optimizer, meta_optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.meta_optimizer = meta_optimizer
        self.geometry = PathGeometry(distance, include_loss, stabilizer, metric)
        self.per_segment = per_segment
        self.task_layers = tuple(task_layers)
        self.seed = seed
        self._loss = None
        self._in_task = False
        self._model: weakref.ref[keras.Model] | None = None
        self._initial_state = SavedArrays()

    # -- the contract: task, meta_gradients, meta_update ------------------------------------

    @contextlib.contextmanager
    def task(self, model: keras.Model) -> Iterator[None]:
        """Trains `model` on one task: from the current initialization, recording the path.

        On leaving, the model keeps what it learned on the task until the next `task` or
        `meta_update`. A task whose path is not finite is left out and counted in
        `skipped_tasks`; a task left by an exception adds nothing.

        Args:
            model: the model whose variables this optimizer trains; the same one every time.

        Raises:
            ValueError: the model cannot be trained by this optimizer, or no step was made.
            RuntimeError: another task is still open.
        """
        if self._in_task:
            raise RuntimeError("A task is already open; tasks of one LeapOptimizer do not nest.")
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
        self._finish_task()

    def meta_gradients(self) -> list[tf.Tensor]:
        """Returns the mean meta-gradient of the finished tasks since the last `meta_update`.

        One tensor per meta-learned variable, in the order of `meta_variables`.

        Raises:
            RuntimeError: a task is still open, or none has finished.
            FloatingPointError: every task of the meta-batch diverged.
        """
        if self._in_task:
            raise RuntimeError("Leave the task's `with` block before asking for meta-gradients.")
        tasks = int(self._tasks.numpy()) if self.built else 0
        skipped = self.skipped_tasks
        if not tasks and skipped:
            raise FloatingPointError(
                f"All {skipped} tasks of this meta-batch diverged (loss or path not finite). The "
                "initialization is unchanged. Lower the inner learning rate or clip gradients."
            )
        if not tasks:
            raise RuntimeError("No task has finished: train inside `with optimizer.task(model):`.")
        return [total.value / tf.cast(tasks, total.dtype) for total in self._meta_sum]

    def meta_update(self) -> None:
        """Moves the initialization by the mean meta-gradient and clears the sums.

        Afterwards the model *is* the new initialization, ready to be saved. (Straight after
        loading, before a first `task`, the optimizer knows the model's meta-learned variables
        only; its task layers and running statistics stay as they were saved.)

        Raises:
            As `meta_gradients`, and FloatingPointError if the update overflows: it is not made,
            and the sums stay, for another try with a lower meta rate.
        """
        gradients = [
            tf.cast(gradient, variable.dtype)
            for gradient, variable in zip(self.meta_gradients(), self._initialization)
        ]
        if not apply_if_finite(self.meta_optimizer, gradients, self._initialization):
            raise FloatingPointError(
                "The meta-update overflows and is not made. Lower the meta_optimizer's rate."
            )
        for theta, variable in zip(self._initialization, self.meta_variables):
            if variable.constraint is not None:
                theta.assign(variable.constraint(theta.value))
            variable.assign(theta.value)
        for variable in (*self._meta_sum, self._tasks, self._skipped):
            variable.assign(tf.zeros_like(variable.value))
        model = self._model and self._model()
        if model is not None:
            self._restore_initialization(model)

    @property
    def meta_variables(self) -> list[keras.Variable]:
        """The model's meta-learned variables: all trainable ones outside `task_layers`."""
        return [self._trainable_variables[index] for index in self._meta_indices]

    @property
    def skipped_tasks(self) -> int:
        """How many tasks of the current meta-batch were left out because they diverged."""
        return int(self._skipped.numpy()) if self.built else 0

    @property
    def path_length(self) -> float:
        """Length of the last task's path (eq. 7, p = 1)."""
        return float(self._recorder.path().length) if self.built else 0.0

    @property
    def path_energy(self) -> float:
        """Energy of the last task's path (eq. 7, p = 2)."""
        return float(self._recorder.path().energy) if self.built else 0.0

    # -- the hooks Keras calls --------------------------------------------------------------

    @tf.autograph.experimental.do_not_convert
    def scale_loss(self, loss):
        """Remembers the loss of this step, then scales it as the inner optimizer wishes."""
        self._loss = loss
        return self.inner_optimizer.scale_loss(loss)

    def apply(self, grads, trainable_variables=None):
        """Adds this step's point to the path, then makes the inner optimizer's step."""
        gradients = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        if self._loss is None:
            raise RuntimeError(LOSS_NOT_SEEN)
        loss, self._loss = self._loss, None
        check_full_step(self._trainable_variables, gradients, trainable_variables)
        unscaled = unscaled_gradients(self.inner_optimizer, gradients, self._trainable_variables)
        self._recorder.see(
            loss,
            [unscaled[index] for index in self._meta_indices],
            makes_step(self.inner_optimizer, gradients),
        )
        self.inner_optimizer.apply(gradients, trainable_variables)

    def build(self, variables):
        if self.built:
            return
        variables = list(variables)
        check_trackable(variables)
        with tf.init_scope():  # fit may build in the middle of tracing its train function
            self._build(variables)

    @property
    def variables(self):
        inner, meta = self.inner_optimizer.variables, self.meta_optimizer.variables
        return self._variables + inner + meta

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        """Sets the inner learning rate: for good outside a task, till its end inside one."""
        self.inner_optimizer.learning_rate = learning_rate
        if self.built and not self._in_task:
            self._task_learning_rate.assign(learning_rate)

    @property
    def _has_settable_rate(self):
        return isinstance(self.inner_optimizer.learning_rate, keras.Variable)

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    # -- saving -----------------------------------------------------------------------------

    def get_config(self):
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "meta_optimizer": keras.saving.serialize_keras_object(self.meta_optimizer),
            "distance": self.geometry.distance,
            "include_loss": self.geometry.include_loss,
            "stabilizer": self.geometry.stabilizer,
            "metric": self.geometry.metric,
            "per_segment": self.per_segment,
            "task_layers": list(self.task_layers),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("inner_optimizer", "meta_optimizer"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self._initial_state.value is not None:
            packed = pack_arrays(self._initial_state.value)
            store[_STATE_KEY] = np.frombuffer(packed, dtype=np.uint8)

    def load_own_variables(self, store):
        arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a mapping
        packed = arrays.pop(_STATE_KEY, None)
        super().load_own_variables(arrays)
        if packed is not None:
            self._initial_state.value = unpack_arrays(np.asarray(packed).tobytes())

    # -- inside -----------------------------------------------------------------------------

    def _build(self, variables):
        self.inner_optimizer.build(variables)
        super().build(variables)
        self._reset_inner_optimizer = OptimizerReset(self.inner_optimizer)
        heads = set(self.task_layers)
        self._meta_indices = [
            index
            for index, variable in enumerate(variables)
            if not heads & set(variable.path.split("/"))
        ]
        if not self._meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        self._recorder = PathRecorder(self.add_variable, self.meta_variables, self.geometry)
        self._initialization = [
            # By the variable's name, which a meta_optimizer may exclude from weight decay.
            self.add_variable(
                shape=variable.shape, dtype=variable.dtype, name=f"theta_{index}_{variable.name}"
            )
            for index, variable in enumerate(self.meta_variables)
        ]
        self._meta_sum = [
            self.add_variable(
                shape=variable.shape,
                dtype=accumulator_dtype(tf.as_dtype(variable.dtype)).name,
                name=f"meta_sum_{index}",
            )
            for index, variable in enumerate(self.meta_variables)
        ]
        self._tasks = self.add_variable(shape=(), dtype="int32", name="tasks")
        self._skipped = self.add_variable(shape=(), dtype="int32", name="skipped_tasks")
        self._tasks_started = self.add_variable(shape=(), dtype="int32", name="tasks_started")
        self._initialized = self.add_variable(shape=(), dtype="bool", name="initialized")
        self._task_learning_rate = self.add_variable(shape=(), name="task_learning_rate")
        if self._has_settable_rate:
            self._task_learning_rate.assign(self.inner_optimizer.learning_rate)
        self.meta_optimizer.build(self._initialization)

    def _attach(self, model):
        """Binds the optimizer to its model; at first sight the model is the initialization."""
        check_compiled(self, model)
        self.build(model.trainable_variables)
        check_same_variables(self._trainable_variables, model.trainable_variables)
        meta_learned = {id(variable) for variable in self.meta_variables}
        check_task_layer_names(
            self.task_layers,
            layer_variables(model, self.task_layers),
            [v for v in self._trainable_variables if id(v) not in meta_learned],
        )
        self._model = weakref.ref(model)
        if not self._initialized.numpy():
            for theta, variable in zip(self._initialization, self.meta_variables):
                theta.assign(variable.value)
            self._initialized.assign(True)
        if self._initial_state.value is None:
            self._initial_state.value = [v.numpy() for v in model.non_trainable_variables]

    def _restore_initialization(self, model):
        """Makes the model the initialization, with fresh task layers and an unused optimizer."""
        for variable, theta in zip(self.meta_variables, self._initialization):
            variable.assign(theta.value)
        for variable, value in zip(model.non_trainable_variables, self._initial_state.value):
            if not variable.path.endswith("seed_generator_state"):
                variable.assign(value)
        task_number = int(self._tasks_started.numpy())
        head_seed = int(np.random.default_rng([self.seed, task_number]).integers(2**31))
        fresh = fresh_values(model, self.task_layers, head_seed)
        for variable in layer_variables(model, self.task_layers):
            variable.assign(fresh[id(variable)])
        self._reset_inner_optimizer()
        if self._has_settable_rate:
            self.inner_optimizer.learning_rate = self._task_learning_rate.numpy()

    def _finish_task(self):
        path = self._recorder.path()
        check_trained(self._recorder.steps)
        if not self._recorder.finite:
            self._skipped.assign_add(1)
            return
        check_path(self._recorder.steps, int(path.points))
        gradients = mean_over_segments(path) if self.per_segment else path.meta_gradient
        for total, gradient in zip(self._meta_sum, gradients):
            total.assign_add(gradient)
        self._tasks.assign_add(1)
