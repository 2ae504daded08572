"""The size of the public interface: few parameters, and few of them by position."""

import importlib
import inspect

import pytest

import leap_tf


def parameters_of(constructor):
    return list(inspect.signature(constructor).parameters.values())


def test_the_trainer_and_the_learner_protocol_stay_small():
    assert len(parameters_of(leap_tf.MetaTrainer)) <= 13
    public = [name for name in vars(leap_tf.Learner) if not name.startswith("_")]
    assert len(public) <= 9


@pytest.mark.parametrize(
    "module",
    ["leap_tf", *(f"leap_tf.{name}" for name in ("functional", "learners", "training"))],
)
def test_no_constructor_takes_more_than_five_positional_arguments(module):
    public = importlib.import_module(module)
    counts = {}
    for name in public.__all__:
        member = getattr(public, name)
        # Errors have no signature, and named tuples are results, which users do not construct.
        if inspect.isclass(member) and not issubclass(member, (Exception, tuple)):
            by_position = [
                parameter
                for parameter in parameters_of(member)
                if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ]
            counts[name] = len(by_position)
    assert counts
    assert max(counts.values()) <= 5, counts
