"""The program leap-compare on a shipped configuration."""

import re

import gin
import pandas as pd
import pytest

from leap_tf.experiments import commands
from leap_tf.experiments.config import ConfigurationError
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError

QUICK = [
    "MetaTrainer.steps_per_task = 2",
    "MetaTrainer.meta_batch_size = 2",
    "sinusoid_splits.validation_tasks = 2",
    "sinusoid_splits.test_tasks = 2",
    "compare.budget = 8",
    "compare.seeds = [3]",
    "mlp.hidden = [4]",
    "compare.inner_factors = [1.0]",
    "compare.meta_rates = [0.01]",
    'compare.learners = {"mine": @Leap()}',
]


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


def test_a_comparison_writes_its_table_and_continues(tmp_path, capsys):
    bindings = [*QUICK, "conv_net.filters = 8"]
    commands.compare(["compare/sinusoids.gin"], bindings, tmp_path / "comparison")
    table = pd.read_csv(tmp_path / "comparison" / "comparison.csv", index_col="method")
    assert sorted(table.index) == ["joint training", "mine", "no pretraining"]
    assert table.loc["mine", "gradient_steps"] == 8
    assert (tmp_path / "comparison" / "comparison.png").stat().st_size > 1000
    text = (tmp_path / "comparison" / "comparison.txt").read_text()
    printed = capsys.readouterr()
    assert text in printed.out
    assert re.findall("(.*) has no effect: nothing", printed.err) == ["conv_net.filters"]
    runs = {file: file.stat().st_mtime_ns for file in (tmp_path / "comparison").rglob("*.run")}
    assert len(runs) == 6  # a trial and a run of each method
    commands.compare(["compare/sinusoids.gin"], QUICK, tmp_path / "comparison")
    assert {file: file.stat().st_mtime_ns for file in runs} == runs
    other = RunDirectory(tmp_path / "comparison")
    other.lock_out_others()
    with pytest.raises(RunDirectoryError, match="Another process uses"):
        commands.compare(["compare/sinusoids.gin"], QUICK, tmp_path / "comparison")


def test_a_configuration_without_a_study_is_refused(tmp_path):
    (tmp_path / "empty.gin").write_text("compare.budget = 8\n")
    with pytest.raises(ConfigurationError, match=r"does not bind study\.model"):
        commands.compare([tmp_path / "empty.gin"], [], tmp_path / "comparison")
