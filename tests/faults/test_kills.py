"""Tests of SIGKILL at any time: the same command continues, and ends with the same bits."""

import dataclasses

from tests.faults.kills import attack, supervised

SHORT = ("meta_train.meta_steps = 14", "sinusoid_splits.test_tasks = 10")


STAGES = ("checkpoint", "validation", "final model", "evaluating")


def one_at_each_stage(planned):
    """Returns a kill at each of the stages, in the order of the run."""
    first = {stage: (stage, meta_step) for stage, meta_step in reversed(planned)}
    return sorted((first[stage] for stage in STAGES), key=planned.index)


def test_a_killed_run_ends_bit_identical(tmp_path):
    """On threads; tests/cluster/test_ray_commands.py has one on Ray."""
    full = supervised()
    victim = dataclasses.replace(full, bindings=(*full.bindings, *SHORT))
    fault = attack(victim, tmp_path, kills=len(STAGES), seed=1, shorten=one_at_each_stage)
    assert fault.injected == len(STAGES)
    assert not fault.failures
    assert max(fault.repeated) <= 1  # a checkpoint after every meta-step
