"""Entry point that runs all tests, for `python -m tests` and the test of the BUILD file."""

import pathlib
import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:] or [str(pathlib.Path(__file__).parent)]))
