"""Tests of readers with a few random inputs each, see `fuzz`."""

import pytest

from tests.faults import fuzz

TRIALS = {"configurations": 150, "results": 12, "metrics": 150, "requests": 60}


@pytest.mark.parametrize("reader", fuzz.ATTACKS)
def test_any_input_is_read_right_or_refused(reader, tmp_path):
    fault = fuzz.ATTACKS[reader](tmp_path, TRIALS.get(reader, 30))
    assert fault.trials >= TRIALS.get(reader, 30) // 2
    assert not fault.failures


@pytest.mark.parametrize(
    ("reader", "trials"),
    [
        ("configurations", 60),
        ("studies", 60),
        ("results", 20),
        ("checkpoints", 60),
        ("requests", 60),
    ],
)
def test_the_inputs_are_neither_all_good_nor_all_bad(reader, trials, tmp_path):
    fault = fuzz.ATTACKS[reader](tmp_path, trials, seed=1)
    assert set(fault.details) == {"read", "refused"}
