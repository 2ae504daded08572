"""Keras's own optimizer tests, run with the optimizer inside a LeapOptimizer.

The modules ship with Keras. In their namespaces, each optimizer under test is replaced by one that
is wrapped. `optimizer_sparse_test` takes its optimizers before that can be done; sparse gradients
are tested in `tests/test_front_ends.py`.
"""

import importlib
import inspect
import re

import keras
import pytest
import tensorflow as tf
from keras.src import optimizers as keras_optimizers

from leap_tf.optimizer import LeapOptimizer

MODULES = {
    "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "lamb", "lion",
    "loss_scale_optimizer", "multi_optimizer", "muon", "nadam", "optimizer", "rmsprop",
    "schedule_free_adamw", "sgd",
}  # fmt: skip
# Of optimizers that wrap others, only the outermost goes into a LeapOptimizer.
OUTERMOST = {
    "loss_scale_optimizer": "LossScaleOptimizer",
    "multi_optimizer": "MultiOptimizer",
}

NO_EMA = "has use_ema=True, which overwrites the parameters with their moving average"
NO_ACCUMULATION = "has gradient_accumulation_steps=[23], so most of its steps do not move"
NO_STEP_OF_ONE_VARIABLE = "A step of Wrapped is a step of all variables. Call apply"
NO_COPIES = "is a ScheduleFreeAdamW, which keeps copies of the parameters"
NO_OVERWRITING = r"Keras overwrites the variables \[.*\] with their gradients \(float8 training\)"
REFUSED = {
    r"\w+Test.test_ema\w*": NO_EMA,
    "MultiOptimizerTest.test_swap_ema_weights_with_multi_optimizer": NO_EMA,
    r"MultiOptimizerTest.test_(?!optimizer_map)\w+": "has no learning rate of its own",
    r"OptimizerTest.test_gradient_accumulation\w*": NO_ACCUMULATION,
    "OptimizerTest.test_overwrite_with_gradient_with_gradient_accumulation": NO_ACCUMULATION,
    r"\w+Test.test_\w*overwrite(_with_gradient|_stateful)": NO_OVERWRITING,
    "MuonTest.test_(adamw|muon)_single_step": NO_STEP_OF_ONE_VARIABLE,
    r"ScheduleFreeAdamWTest.test_\w+": NO_COPIES,
    "NadamTest.test_build_with_empty_var_list": "nothing is left to meta-learn",
    "OptimizerTest.test_mixed_with_tf_variables": "Gradient paths need Keras variables",
}
# These assert what a wrapper has of its own: the number of its variables, its name, its class.
OF_THE_WRAPPER = {
    "LossScaleOptimizerTest.test_serialization",
    "OptimizerTest.test_optimizer_auto_naming",
    "OptimizerTest.test_setting_lr_to_callable_untracks_lr_var",
    "SGDTest.test_single_step",
}


@keras.saving.register_keras_serializable(package="tests")
class Wrapped(LeapOptimizer):
    """A LeapOptimizer that needs no loss and shows the slots of the optimizer inside."""

    def apply(self, grads, trainable_variables=None):
        self._loss = tf.zeros(())
        super().apply(grads, trainable_variables)

    def _apply_weight_decay(self, variables):
        self.inner_optimizer._apply_weight_decay(variables)

    def _clip_gradients(self, grads):
        return self.inner_optimizer._clip_gradients(grads)

    def __getattr__(self, name):
        if name.startswith("__") or "inner_optimizer" not in vars(self):
            raise AttributeError(name)
        return getattr(self.inner_optimizer, name)


def wrapping(optimizer):
    """Returns a class whose instances are instances of `optimizer` inside a LeapOptimizer."""

    class Meta(type):
        def __instancecheck__(cls, instance):
            return isinstance(getattr(instance, "inner_optimizer", None), optimizer)

    class Wrapping(metaclass=Meta):
        def __new__(cls, *args, **kwargs):
            return wrapped(optimizer(*args, **kwargs))

        @classmethod
        def from_config(cls, config):
            return wrapped(optimizer.from_config(config))

    return Wrapping


def wrapped(optimizer):
    return optimizer and Wrapped(optimizer, keras.optimizers.SGD(0.1))


class Namespace:
    """Keras's module `optimizers`, with wrapped optimizers in the place of some."""

    def __init__(self, wraps):
        self._wraps = wraps

    def __getattr__(self, name):
        member = getattr(keras_optimizers, name)
        if name == "get" and self._wraps("SGD"):
            return lambda *args: wrapped(member(*args))
        return wrapping(member) if is_optimizer(member) and self._wraps(name) else member


def is_optimizer(member):
    return inspect.isclass(member) and issubclass(member, keras.optimizers.Optimizer)


def refused(test, message):
    def test_is_refused(self):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
            test(self)

    return test_is_refused


def collected_from(module):
    """Yields the test classes of a module of Keras, with the tests that are refused replaced."""
    for case in list(vars(module).values()):
        if not (inspect.isclass(case) and case.__module__ == module.__name__):
            continue
        members = {"keras_module": module}
        for name in filter(re.compile("test_").match, dir(case)):
            full = f"{case.__name__}.{name}"
            messages = [text for test, text in REFUSED.items() if re.fullmatch(test, full)]
            if full in OF_THE_WRAPPER or name == "test_session":
                members[name] = None
            elif messages:
                members[name] = refused(getattr(case, name), messages[0])
        yield type(case.__name__, (case,), members)


for _name in sorted(MODULES):
    for _case in collected_from(importlib.import_module(f"keras.src.optimizers.{_name}_test")):
        globals()[_case.__name__] = _case
del _case


@pytest.fixture(autouse=True)
def _wrapped_optimizers(request, monkeypatch):
    module = request.cls.keras_module
    only = OUTERMOST.get(module.__name__.split(".")[-1].removesuffix("_test"))

    def wraps(name):
        return name == (only or name)

    for name, member in list(vars(module).items()):
        if is_optimizer(member) and wraps(name):
            monkeypatch.setattr(module, name, wrapping(member))
        elif member is keras_optimizers:
            monkeypatch.setattr(module, name, Namespace(wraps))
