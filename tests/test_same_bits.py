"""Results of recorded short runs: to the bit on the recorded kind of machine, else to 1e-5."""

import json

import numpy as np
import pytest

from tests import same_bits
from tests.conftest import LEGACY_KERAS


def assert_as_recorded(name):
    record = json.loads(same_bits.RECORD.read_text())
    expected = record["results"][name]
    found = same_bits.results([name])[name]
    if same_bits.fingerprint() == record["machine"]:
        assert found["weights"] == expected["weights"]
    np.testing.assert_allclose(found["figures"], expected["figures"], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(LEGACY_KERAS, reason="these run without tf_keras")
@pytest.mark.parametrize("name", [*same_bits.CONFIGURED, "served adapt"])
def test_results_are_as_recorded(name):
    if name == "Multi-CV, HAT" and not same_bits.SUBSETS.exists():
        pytest.skip("the subsets of image data sets are not on this machine")
    assert_as_recorded(name)
