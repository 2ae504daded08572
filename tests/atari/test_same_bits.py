"""The colour bandit's recorded run, see tests/same_bits.py."""

from tests.test_same_bits import assert_as_recorded


def test_results_are_as_recorded():
    assert_as_recorded("colour bandit")
