"""Tests of bin/train.py on Ray: same results as on threads, restarts on the other pool."""

import os
import signal
import subprocess

import numpy as np
import pytest

from leap_tf.experiments import commands
from leap_tf.experiments.commands import PoolChoice
from tests.runs import ROOT, command, learned, train_here, wait_for_meta_step, without_times

pytest.importorskip("ray", reason="needs the extra: requirements-cluster.txt")

LENGTH = "meta_train.meta_steps = 8"
RAY = ["--pool=ray", "--workers=1"]
ENVIRONMENT = os.environ | {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
}


def start(folder, flags):
    return subprocess.Popen(
        [*command("train.py", folder, LENGTH), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def end(folder, flags):
    process = start(folder, flags)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def test_a_run_continues_on_another_pool_with_the_same_bits(tmp_path, capsys):
    train_here(tmp_path / "threads", LENGTH)
    table = capsys.readouterr().out
    train_here(tmp_path / "both", "meta_train.meta_steps = 2")
    for meta_step, number in ((4, signal.SIGTERM), (6, signal.SIGKILL)):
        process = start(tmp_path / "both", RAY)
        wait_for_meta_step(process, tmp_path / "both", meta_step)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, errors
            assert "The same command continues from there" in errors
    assert end(tmp_path / "both", RAY).splitlines()[:4] == table.splitlines()[:4]
    for array, other in zip(learned(tmp_path / "both"), learned(tmp_path / "threads"), strict=True):
        np.testing.assert_array_equal(array, other)
    assert without_times(tmp_path / "both") == without_times(tmp_path / "threads")


def test_an_unusable_pool_ends_in_one_line(tmp_path):
    for setting in ({"workers": 2}, {"address": "auto"}, {"deadline": 60.0}):
        with pytest.raises(ValueError, match="need --pool=ray"):
            PoolChoice(**setting)
    nowhere = PoolChoice("ray", address="127.0.0.1:1")
    with pytest.raises(SystemExit, match=r"There is no Ray cluster at 127\.0\.0\.1:1"):
        with commands.one_line_errors():
            commands.train([ROOT / "gin_configs/sinusoid.gin"], [], tmp_path / "run", pool=nowhere)
