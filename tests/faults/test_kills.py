"""Tests of SIGKILL at any time: the same command continues, and ends with the same bits."""

import dataclasses
import importlib.util

import pytest

from tests.faults.kills import attack, supervised

SHORT = ("meta_train.meta_steps = 14", "sinusoid_splits.test_tasks = 10")


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        ((), ("checkpoint", "validation", "final model", "evaluating")),
        (("--pool=ray",), ("validation", "evaluating")),  # when workers have tasks
    ],
    ids=["threads", "ray"],
)
def test_a_killed_run_ends_bit_identical(tmp_path, flags, stages):
    if flags and importlib.util.find_spec("ray") is None:
        pytest.skip("the extra 'cluster' is not installed")
    full = supervised(flags)
    victim = dataclasses.replace(full, bindings=(*full.bindings, *SHORT))

    def one_of_each(planned):
        """Returns a kill at each of the stages, in the order of the run."""
        first = {stage: (stage, meta_step) for stage, meta_step in reversed(planned)}
        return sorted((first[stage] for stage in stages), key=planned.index)

    fault = attack(victim, tmp_path, kills=len(stages), seed=1, shorten=one_of_each)
    assert fault.injected == len(stages)
    assert not fault.failures
    assert max(fault.repeated) <= 1  # a checkpoint after every meta-step
