"""Runs all tests: `python -m tests`, and what the BUILD file's test runs."""

import pathlib
import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:] or [str(pathlib.Path(__file__).parent)]))
