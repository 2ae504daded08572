"""Results of recorded short runs: to the bit on recorded kinds of machines, see same_bits.py."""

import pytest

from tests import same_bits
from tests.conftest import LEGACY_KERAS

pytestmark = pytest.mark.skipif(LEGACY_KERAS, reason="these run without tf_keras")


@pytest.mark.parametrize("name", same_bits.CONFIGURED)
def test_results_of_configured_runs_are_as_recorded(name):
    if name == "Multi-CV, HAT" and not same_bits.SUBSETS.exists():
        pytest.skip("the subsets of image data sets are not on this machine")
    same_bits.assert_as_recorded(name, same_bits.configured(name))


def test_a_served_adaptation_is_as_recorded():
    same_bits.assert_as_recorded("served adapt", same_bits.adapt())
