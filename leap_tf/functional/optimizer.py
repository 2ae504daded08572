"""A Keras optimizer as a pure function: gradients, parameters and slots in, new ones out.

Keras has `optimizer.stateless_apply`, and refuses it on the TensorFlow backend because that
backend overrides a handful of methods for `tf.distribute` in a way that needs real variables.
None of this project's loops runs under a distribution strategy, so the copy made here gets
the backend-neutral methods back. The optimizer's own arithmetic is untouched.

The two private classes below exist in Keras 3.15; `pyproject.toml` holds Keras to that minor
version and `tests/functional/test_optimizer.py` compares Keras's optimizers with their ordinary
selves, all but those that are refused.

An optimizer's update, or none at all where it would leave numbers that are not finite.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

from leap_tf.functional.model import scope_of


class FunctionalOptimizer:
    """The update rule of a Keras optimizer, free of variables.

    One instance serves any number of concurrent tasks, since nothing in it changes.

    Args:
        optimizer: any Keras optimizer, with any schedule, clipping or weight decay. It is
            copied from its configuration and stays untouched.
        variables: the Keras variables whose values will be updated, in order.

    Raises:
        ValueError: the optimizer keeps state that a task loop cannot honour.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]):
        check_optimizer(optimizer, role="inner_optimizer")
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or optimizer.loss_scale_factor:
            raise ValueError(
                "Loss scaling (a LossScaleOptimizer, or loss_scale_factor) cannot run in the "
                "functional task loop. Train in 'mixed_bfloat16', which needs none, or use "
                "leap_tf.LeapOptimizer with the scaling optimizer inside it."
            )
        if hasattr(optimizer, "inner_optimizer") or hasattr(optimizer, "optimizers"):
            raise ValueError(
                f"A {type(optimizer).__name__} wraps other optimizers and cannot run in the "
                "functional task loop. Give the ordinary optimizer inside it."
            )
        self._optimizer = _backend_neutral_copy(optimizer, variables)
        self._variables = list(variables)
        self._first_rate, rate = _make_scalable(self._optimizer)
        self._optimizer.build(self._variables)
        self._initial_slots = [variable.numpy() for variable in self._optimizer.variables]
        self._rate_index = next(
            index for index, slot in enumerate(self._optimizer.variables) if slot is rate
        )
        shaped_like = self._optimizer.reference_of
        position = {id(variable): index for index, variable in enumerate(self._variables)}
        self._owners = [
            position.get(shaped_like.get(id(slot))) for slot in self._optimizer.variables
        ]

    @property
    def resizes(self) -> bool:
        """Whether slots follow their parameters, so that these may have any last dimension."""
        return not any(
            owner is None and value.ndim for owner, value in zip(self._owners, self._initial_slots)
        )

    def initial_slots(
        self, parameters: Sequence[tf.Tensor], learning_rate: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Returns fresh slots: iteration 0, no momentum, the configured learning rate.

        Args:
            parameters: values of the variables. Slots of one whose last dimension is not known
                beforehand have its shape, too.
            learning_rate: of the first step, float32, in the place of the configured one. A
                schedule keeps its form and is scaled to start there.

        Raises:
            ValueError: the optimizer keeps slots for such a parameter that cannot be resized, or
                has a schedule that starts at zero.
        """
        free = {index for index, value in enumerate(parameters) if None in value.shape}
        if free and not self.resizes:
            raise ValueError(
                f"{self._optimizer.name} keeps slots of a shape of their own, so it cannot train "
                "heads with another number of classes on every task. Use SGD, Adam or the like."
            )
        slots = [
            tf.fill(tf.shape(parameters[owner]), value.flat[0])
            if owner in free
            else tf.convert_to_tensor(value)
            for owner, value in zip(self._owners, self._initial_slots)
        ]
        if learning_rate is not None:
            if not self._first_rate:
                raise ValueError(
                    "The learning-rate schedule starts at zero, so it cannot be scaled to start at "
                    "a rate that is asked for. Let it start at a small one."
                )
            slots[self._rate_index] = learning_rate / self._first_rate
        return slots

    def apply(
        self,
        gradients: Sequence[tf.Tensor | None],
        parameters: Sequence[tf.Tensor],
        slots: Sequence[tf.Tensor],
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Makes one optimizer step.

        Args:
            gradients: one per parameter; None where the loss does not depend on it.
            parameters: current values, in the order the optimizer was given the variables.
            slots: the optimizer's own state, as `initial_slots` or the last `apply` gave it.

        Returns:
            New parameters and new slots.
        """
        variables = [*self._variables, *self._optimizer.variables]
        with scope_of(zip(variables, [*parameters, *slots], strict=True)) as scope:
            self._optimizer.apply(list(gradients))
        values = [tf.convert_to_tensor(scope.get_current_value(each)) for each in variables]
        return values[: len(self._variables)], values[len(self._variables) :]


class OptimizerReset:
    """Puts a Keras optimizer back to its unused state; Keras itself has no way to do so.

    Args:
        optimizer: a built optimizer that has made no step yet.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self._optimizer = optimizer
        self._initial = {id(variable): variable.numpy() for variable in optimizer.variables}

    def __call__(self) -> None:
        """Assigns every slot, the iteration count and the learning rate their first values."""
        for variable in self._optimizer.variables:
            variable.assign(self._initial[id(variable)])


def check_optimizer(optimizer: keras.optimizers.Optimizer, role: str) -> None:
    """Refuses an optimizer whose step is not one step of a gradient path.

    Args:
        optimizer: the optimizer to look at, wrapped ones included.
        role: the argument's name, for the message.

    Raises:
        TypeError: it is no optimizer.
        ValueError: it accumulates gradients, averages parameters or keeps copies of them.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"{role} must be a keras.optimizers.Optimizer, and is a {type(optimizer).__name__}."
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"{role} has gradient_accumulation_steps={optimizer.gradient_accumulation_steps}: "
            "most of its steps do not move the parameters, and the path would be made of "
            "micro-batches. Give the task larger batches instead."
        )
    if optimizer.use_ema:
        raise ValueError(
            f"{role} has use_ema=True, which replaces the parameters by their average behind "
            "the path's back. Build it without EMA."
        )
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        raise ValueError(
            f"{role} is a ScheduleFreeAdamW, which keeps copies of the parameters it was built "
            "with and cannot start anew from others. Use AdamW with a schedule."
        )
    inside = getattr(optimizer, "inner_optimizer", None)
    for wrapped in [inside] if inside is not None else getattr(optimizer, "optimizers", ()):
        check_optimizer(wrapped, role)


def check_no_loss_scaling(meta_optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses a meta-optimizer that divides what it is given by the scale of a loss.

    Raises:
        ValueError: it scales, or wraps one that does.
    """
    if meta_optimizer.loss_scale_factor or isinstance(
        meta_optimizer, keras.optimizers.LossScaleOptimizer
    ):
        raise ValueError(
            "meta_optimizer scales a loss, and there is none: meta-gradients are unscaled. Put "
            "loss scaling on the inner_optimizer."
        )


class _BackendNeutral(TFOptimizer):
    """The methods that TensorFlow's optimizer overrides, as Keras's base class has them."""

    def add_variable_from_reference(self, reference_variable, *args, **kwargs):
        """Remembers which parameter a slot has the shape of."""
        slot = BaseOptimizer.add_variable_from_reference(self, reference_variable, *args, **kwargs)
        self.reference_of[id(slot)] = id(reference_variable)
        return slot


for _name, _method in vars(BaseOptimizer).items():
    if (
        callable(_method)
        and _name in vars(TFOptimizer)
        and not (_name.startswith("__") or _name in vars(_BackendNeutral))
    ):
        setattr(_BackendNeutral, _name, _method)


class _ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a number that is one of the optimizer's slots."""

    def __init__(self, schedule, factor):
        self._schedule = schedule
        self._factor = factor

    def __call__(self, step):
        return self._factor * self._schedule(step)


def _make_scalable(optimizer):
    """Returns (c, slot) of an optimizer that is not built: its first rate is c times the slot."""
    schedule = rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable):
        return 1.0, rate
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        schedule = lambda step: rate()  # noqa: E731
    factor = optimizer.add_variable((), initializer="ones", name="learning_rate_factor")
    optimizer._learning_rate = _ScaledSchedule(schedule, factor)
    return float(schedule(0)), factor


def _backend_neutral_copy(optimizer, variables):
    # As second base, the neutral methods come before TensorFlow's and after the optimizer's own.
    original = type(optimizer)
    functional = type(f"Functional{original.__name__}", (original, _BackendNeutral), {})
    copy = functional.from_config(optimizer.get_config())
    copy.reference_of = {}
    # What is exempt from weight decay is not in the configuration, and kept by variable.
    exempt = getattr(optimizer, "_exclude_from_weight_decay", set())
    copy._exclude_from_weight_decay = {
        copy._var_key(variable) for variable in variables if optimizer._var_key(variable) in exempt
    }
    copy._exclude_from_weight_decay_pattern = getattr(
        optimizer, "_exclude_from_weight_decay_pattern", None
    )
    return copy


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> bool:
    """Applies meta-gradients, unless a variable or a slot of the optimizer overflows.

    Finite gradients of tasks may have an infinite sum, and a finite mean may lead too far.

    Args:
        optimizer: the meta-optimizer, built on the variables.
        gradients: one for each variable.
        variables: what is meta-learned.

    Returns:
        Whether they were applied. If not, variables and optimizer are as they were.
    """
    touched = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in touched]
    optimizer.apply(gradients, variables)
    floats = [variable.value for variable in touched if variable.value.dtype.is_floating]
    if all(bool(tf.reduce_all(tf.math.is_finite(value))) for value in floats):
        return True
    for variable, value in zip(touched, before):
        variable.assign(value)
    return False
