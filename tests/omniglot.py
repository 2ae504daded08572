"""The folder of Omniglot on this machine, for tests that need it."""

import os
import pathlib

import pytest

CANDIDATES = [os.environ.get("TFDS_DATA_DIR"), "../shared/tfds", "~/tensorflow_datasets"]
FOLDERS = [pathlib.Path(path).expanduser() for path in CANDIDATES if path]
OMNIGLOT = next((path for path in FOLDERS if (path / "omniglot").exists()), None)
needs_omniglot = pytest.mark.skipif(OMNIGLOT is None, reason="Omniglot is not on this machine")
