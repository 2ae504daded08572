"""Keras optimizers: as pure functions, reset to their unused state, and wrapped.

Keras has `optimizer.stateless_apply`, but not on TensorFlow, where some methods are overridden for
`tf.distribute` with code that needs real variables. `FunctionalOptimizer` restores the
backend-neutral methods on a copy of the optimizer, whose arithmetic is unchanged. It needs private
classes of Keras 3.15.
"""

import functools
import operator
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.functional.checks import check_optimizer, check_variables, wrapped_optimizers
from leap_tf.functional.model import scope_of


class KerasVersionError(LeapError, ImportError):
    """This version of Keras lacks a private class that `FunctionalOptimizer` needs."""


class FunctionalOptimizer:
    """The update rule of a Keras optimizer, as pure functions for any number of concurrent tasks.

    The optimizer may have a schedule, clipping or weight decay. It is copied from its
    configuration, not changed. It updates values of the variables, which are given in their order.
    `role` is the argument's name, for messages.

    Raises:
        TypeError, ValueError: the optimizer scales the loss, wraps other optimizers, or is refused
            by `check_optimizer`, or the variables are refused by `check_variables`.
        KerasVersionError: this version of Keras is not supported.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        role: str = "inner_optimizer",
    ):
        check_optimizer(optimizer, role)
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or optimizer.loss_scale_factor:
            raise ValueError(
                "The functional task loop does not support loss scaling (a LossScaleOptimizer, or "
                "loss_scale_factor). Train in 'mixed_bfloat16', which needs no scaling, or use "
                "leap_tf.LeapOptimizer with the scaling optimizer inside."
            )
        if hasattr(optimizer, "inner_optimizer") or hasattr(optimizer, "optimizers"):
            raise ValueError(
                f"A {type(optimizer).__name__} wraps other optimizers, which the functional task "
                "loop does not support. Use the optimizer inside it."
            )
        check_variables(variables)
        self._optimizer = _backend_neutral_copy(optimizer, variables)
        self._variables = list(variables)
        self._rate_factor, rate = _make_scalable(self._optimizer)
        self._optimizer.build(self._variables)
        slots, reference_of = self._optimizer.variables, self._optimizer.reference_of
        self._initial_slots = [slot.numpy() for slot in slots]
        self._rate_index = [id(slot) for slot in slots].index(id(rate))
        position = {id(variable): index for index, variable in enumerate(self._variables)}
        self._owners = [position.get(reference_of.get(id(slot))) for slot in slots]

    @property
    def resizes(self) -> bool:
        """Whether parameters may change size: every slot is a scalar or shaped like a parameter."""
        slots = zip(self._owners, self._initial_slots)
        return not any(owner is None and value.ndim for owner, value in slots)

    def initial_slots(
        self, parameters: Sequence[tf.Tensor], learning_rate: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Returns the slots of an unused optimizer.

        The slots of a variable with an unknown dimension take the shape of its value among the
        parameters. The float32 `learning_rate` is that of the first step, by default the configured
        one. A schedule is scaled so that it starts at this rate.

        Raises:
            ValueError: the optimizer cannot resize, or its schedule starts at zero.
        """
        free = {index for index, value in enumerate(parameters) if None in value.shape}
        if free and not self.resizes:
            raise ValueError(
                f"{self._optimizer.name} has state variables whose shapes differ from the "
                "parameters' shapes, so it cannot train heads whose number of classes differs "
                "between tasks. Use for example SGD or Adam."
            )
        # Keras initializes every slot of a parameter with a constant.
        slots = [
            tf.fill(tf.shape(parameters[owner]), value.flat[0])
            if owner in free
            else tf.convert_to_tensor(value)
            for owner, value in zip(self._owners, self._initial_slots)
        ]
        if learning_rate is not None:
            if not self._rate_factor:
                raise ValueError(
                    "The learning-rate schedule starts at zero, so it cannot be scaled to start at "
                    "the requested rate. Start it at a small positive rate."
                )
            slots[self._rate_index] = learning_rate / self._rate_factor
        return slots

    def apply(
        self,
        gradients: Sequence[tf.Tensor | None],
        parameters: Sequence[tf.Tensor],
        slots: Sequence[tf.Tensor],
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Makes one step and returns new parameters and slots.

        The gradient of a parameter on which the loss does not depend is None.
        """
        variables = [*self._variables, *self._optimizer.variables]
        with scope_of(zip(variables, [*parameters, *slots], strict=True)) as scope:
            self._optimizer.apply(list(gradients))
        values = [tf.convert_to_tensor(scope.get_current_value(each)) for each in variables]
        return values[: len(self._variables)], values[len(self._variables) :]


def all_finite(tensors: Iterable[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
    """Returns whether no tensor of floats has an infinity or NaN."""
    dense = [tf.convert_to_tensor(tensor) for tensor in tensors]
    floats = [tensor for tensor in dense if tensor.dtype.is_floating]
    return tf.reduce_all([True, *(tf.reduce_all(tf.math.is_finite(each)) for each in floats)])


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> bool:
    """Applies gradients unless a variable or a slot of the optimizer would overflow.

    Returns whether they were applied. If not, the variables and the optimizer keep their values.
    """
    touched = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in touched]
    optimizer.apply(gradients, variables)
    if all_finite(variable.value for variable in touched):
        return True
    for variable, value in zip(touched, before):
        variable.assign(value)
    return False


class OptimizerReset:
    """A callable that resets a Keras optimizer to its state at construction of this object.

    Create it after `build` and before the first step.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self._optimizer = optimizer
        self._initial = {id(variable): variable.numpy() for variable in optimizer.variables}

    def __call__(self) -> None:
        for variable in self._optimizer.variables:
            variable.assign(self._initial[id(variable)])


# Settings that every Keras optimizer has. The wrapper has none of its own.
_SETTINGS = (
    *("clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "loss_scale_factor"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency", "gradient_accumulation_steps"),
)
_OWN = ("built", "learning_rate", "name", "seed")


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Delegates its settings and its step counter to the optimizer inside.

    A subclass assigns `inner_optimizer` last in its constructor. From then on the wrapper reads
    settings from it. Assigning another value to the wrapper raises an AttributeError that tells the
    caller to set it on the `inner_optimizer`.
    """

    inner_optimizer: keras.optimizers.Optimizer

    def __setattr__(self, name, value):
        inner = vars(self).get("inner_optimizer")
        inherited = name in _SETTINGS
        if inner is not None and name not in _OWN and not name.startswith("_"):
            inherited = inherited or name in vars(inner)
            if inherited and getattr(inner, name) != value:
                raise AttributeError(
                    f"{type(self).__name__} has no {name} of its own. Set {name} on the "
                    "inner_optimizer, best in its constructor."
                )
        if not inherited:
            super().__setattr__(name, value)

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Excludes variables from the weight decay of the optimizers inside, before they are built.

        They are those of `var_list`, and others whose names have one of `var_names` as a part.
        """
        inside = [self.inner_optimizer]
        while inside:
            optimizer = inside.pop()
            optimizer.exclude_from_weight_decay(var_list, var_names)
            inside.extend(wrapped_optimizers(optimizer))

    def apply_gradients(self, grads_and_vars):
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights):
        """Sets all of `variables`, also those of the optimizers inside."""
        own = len(self._variables)
        super().set_weights(weights[:own])
        for variable, value in zip(self.variables[own:], weights[own:], strict=True):
            variable.assign(value)

    def update_step(self, gradient, variable, learning_rate):
        raise NotImplementedError(
            f"A step of {type(self).__name__} is a step of all variables. Call apply(), or "
            "update_step of the inner_optimizer."
        )

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        raise NotImplementedError(
            f"{type(self).__name__} changes variables and has no stateless form. Use "
            "leap_tf.MetaTrainer, whose task loop is functional."
        )


for _name in _SETTINGS:
    setattr(OptimizerWrapper, _name, property(operator.attrgetter(f"inner_optimizer.{_name}")))


def copy_optimizer(
    optimizer: keras.optimizers.Optimizer, **changes: float
) -> keras.optimizers.Optimizer:
    """Returns an unused copy with changed settings; exclusions from weight decay by name stay."""
    copy = type(optimizer).from_config({**optimizer.get_config(), **changes})
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    copy._exclude_from_weight_decay_pattern = pattern
    return copy


def _backend_neutral_copy(optimizer, variables):
    # The class with the backend-neutral methods is the second base, so they override TensorFlow's
    # methods but not those of the optimizer.
    original = type(optimizer)
    functional = type(f"Functional{original.__name__}", (original, _backend_neutral_class()), {})
    copy = functional.from_config(optimizer.get_config())
    copy.reference_of = {}  # filled by `add_variable_from_reference` below
    # The configuration does not include the variables that are exempt from weight decay.
    exempt = getattr(optimizer, "_exclude_from_weight_decay", set())
    copy._exclude_from_weight_decay = {
        copy._var_key(variable) for variable in variables if optimizer._var_key(variable) in exempt
    }
    copy._exclude_from_weight_decay_pattern = getattr(
        optimizer, "_exclude_from_weight_decay_pattern", None
    )
    return copy


@functools.cache
def _backend_neutral_class() -> type:
    """Returns TensorFlow's optimizer class with the methods of Keras's base class restored."""
    try:
        from keras.src.backend.tensorflow.optimizer import TFOptimizer
        from keras.src.optimizers.base_optimizer import BaseOptimizer
    except ImportError as error:
        raise KerasVersionError(
            f"Keras {keras.__version__} lacks private classes that the functional task loop needs. "
            "Install keras>=3.15,<3.16, or use leap_tf.LeapOptimizer, which does not need them."
        ) from error

    class BackendNeutral(TFOptimizer):
        def add_variable_from_reference(self, reference_variable, *args, **kwargs):
            slot = BaseOptimizer.add_variable_from_reference(
                self, reference_variable, *args, **kwargs
            )
            self.reference_of[id(slot)] = id(reference_variable)
            return slot

    for name, method in vars(BaseOptimizer).items():
        overridden = name in vars(TFOptimizer) and name not in vars(BackendNeutral)
        if callable(method) and overridden and not name.startswith("__"):
            setattr(BackendNeutral, name, method)
    return BackendNeutral


def _make_scalable(optimizer):
    """Makes the learning rate of an unbuilt optimizer adjustable.

    Returns:
        (c, slot): the first learning rate is c times the slot, which scales a schedule.
    """
    schedule = rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable):
        return 1.0, rate
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        schedule = lambda step: rate()  # noqa: E731
    factor = optimizer.add_variable((), initializer="ones", name="learning_rate_factor")
    optimizer._learning_rate = _ScaledSchedule(schedule, factor)
    return float(schedule(0)), factor


class _ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a slot of the optimizer."""

    def __init__(self, schedule, factor):
        self._schedule = schedule
        self._factor = factor

    def __call__(self, step):
        return self._factor * self._schedule(step)
