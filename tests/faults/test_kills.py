"""Tests of SIGKILL at any time: the same command continues, and ends with the same bits."""

import importlib.util

import pytest

from tests.faults.kills import attack, supervised


def one_of_each(planned):
    """Returns kills during writing, in the order of the run."""
    stages = ("checkpoint", "validation", "final model", "evaluating")
    first = {stage: (stage, meta_step) for stage, meta_step in reversed(planned)}
    return sorted((first[stage] for stage in stages), key=planned.index)


@pytest.mark.parametrize("flags", [(), ("--pool=ray",)], ids=["threads", "ray"])
def test_a_killed_run_ends_bit_identical(tmp_path, flags):
    if flags and importlib.util.find_spec("ray") is None:
        pytest.skip("the extra 'cluster' is not installed")
    fault = attack(supervised(flags), tmp_path, kills=4, seed=1, shorten=one_of_each)
    assert fault.injected == 4
    assert not fault.failures
    assert max(fault.repeated) <= 1  # a checkpoint after every meta-step
