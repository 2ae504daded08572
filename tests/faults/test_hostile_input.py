"""Files from somebody else: whatever they try, nothing is run, and the message says what is wrong.

Each file here carries a payload that would leave a mark; the mark must not be there afterwards.
"""

import base64
import json
import marshal
import pathlib
import pickle
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.experiments.gin_registration import ConfigurationError, read_configuration
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError
from leap_tf.functional.saved_arrays import SavedArrays, unpack_arrays
from leap_tf.tasks.datasets import open_dataset
from leap_tf.training.checkpoint import CheckpointMismatchError, CheckpointUnreadableError


@pytest.fixture
def mark(tmp_path):
    """A file that only a payload makes; it must not be there when the test is over."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "the payload ran"


class Payload:
    """What pickle would run when it is read."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self._mark,)


def test_the_payloads_work(tmp_path):
    """Otherwise the tests below would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "pickle")))
    assert (tmp_path / "pickle").exists()
    code = marshal.dumps(compile(leaving(tmp_path / "code"), "payload", "eval"))
    eval(marshal.loads(code))
    assert (tmp_path / "code").exists()


def leaving(mark):
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


# Configurations.


def evil_module(folder, mark, monkeypatch):
    (folder / "evil_module.py").write_text(leaving(mark))
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    "text",
    [
        "import evil_module",
        "import evil_module as harmless",
        "from os import system",
        "from __gin__ import dynamic_registration\nimport evil_module",
        "mlp.hidden = (3,)\n\n  import evil_module",
        "include 'evil.gin'",
    ],
)
@pytest.mark.parametrize("place", ["file", "binding"])
def test_a_configuration_runs_no_module(tmp_path, mark, monkeypatch, text, place):
    evil_module(tmp_path, mark, monkeypatch)
    (tmp_path / "evil.gin").write_text("import evil_module")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.gin").write_text(text if place == "file" else "mlp.hidden = (2,)")
    with pytest.raises(ConfigurationError, match=r"not allowed|cannot be read"):
        read_configuration([tmp_path / "given.gin"], [text] if place == "binding" else [])
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "binding",
    [
        "study.model = @os.system",
        "os.system.command = 'touch mark'",
        "study.model = @subprocess.Popen()",
        "study.seed = __import__('os').system('touch mark')",
        "study.seed = [].__class__",
        "study.data_dir = '/'",
        "judge.run = 3",
        "export.path = '/'",
    ],
)
def test_a_configuration_binds_what_is_registered_and_no_more(tmp_path, mark, monkeypatch, binding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.gin").write_text("mlp.hidden = (2,)\n")
    with pytest.raises(ConfigurationError):
        read_configuration([tmp_path / "some.gin"], [binding])
