"""Shared set-up: quiet, seeded, one thread an operation, so that results repeat to the bit."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import hypothesis
import keras
import pytest
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)

hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=40
)
hypothesis.settings.load_profile("deterministic")


# TF-Agents needs another `tf.keras` than the rest, so its tests have a process of their own.
LEGACY_KERAS = tf.keras.layers.Layer.__module__.startswith("tf_keras")
collect_ignore = [] if LEGACY_KERAS else ["atari"]


def pytest_report_header():
    return (
        "" if LEGACY_KERAS else "tests/atari runs apart: TF_USE_LEGACY_KERAS=1 pytest tests/atari"
    )


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def tfds_subset():
    """The folder with small subsets of seven image data sets, where there is one."""
    folder = pathlib.Path(__file__).parents[2] / "shared" / "tfds_subset"
    if not folder.exists():
        pytest.skip("the subsets of image data sets are not on this machine")
    return folder
