"""Tests of readers with a few random inputs each, see `fuzz`."""

import pytest

from tests.faults import fuzz

TRIALS = {"configurations": 150, "results": 10, "metrics": 150}


@pytest.mark.parametrize("reader", fuzz.ATTACKS)
def test_any_input_is_read_right_or_refused(reader, tmp_path):
    trials = TRIALS.get(reader, 60)
    fault = fuzz.ATTACKS[reader](tmp_path, trials, seed=1)
    assert fault.trials >= trials // 2
    assert not fault.failures
    if reader in ("configurations", "studies", "results", "checkpoints", "requests"):
        assert set(fault.details) == {"read", "refused"}  # neither all good nor all bad
