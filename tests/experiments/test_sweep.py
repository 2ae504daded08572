"""Tests of bin/sweep.py with real cells that finish, fail, are skipped or stopped."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import gin
import pytest

from leap_tf.experiments import commands
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.experiments.sweep import cells_of

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = f"""
sweep.gin_files = ["{ROOT}/gin_configs/sinusoid.gin"]
sweep.bindings = [
    "MetaTrainer.meta_batch_size = 2",
    "MetaTrainer.steps_per_task = 5",
    "MetaTrainer.pool = 1",
    "sinusoid_splits.test_tasks = 2",
    "sinusoid_splits.validation_tasks = 1",
    "meta_train.meta_steps = 3",
]
sweep.grids = [
    {{
        "method": {{
            "leap": ["MetaTrainer.learner = @Leap()"],
            "metasgd": ["MetaTrainer.learner = @MetaSGD()"],
            "none": ["MetaTrainer.learner = @NoMetaLearning()", "meta_train.meta_steps = 0"],
        }},
        "seed": {{"1": ["study.seed = 1"]}},
    }},
]
"""


def start_sweep(folder, text):
    (folder / "sweep.gin").write_text(text)
    arguments = [sys.executable, ROOT / "bin" / "sweep.py", f"--gin_file={folder / 'sweep.gin'}"]
    arguments += [f"--output_dir={folder / 'out'}", "--workers=2"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)


def sweep_here(folder, text=SWEEP):
    """Runs the function of bin/sweep.py in this process. Cells have processes of their own."""
    (folder / "sweep.gin").write_text(text)
    train = [sys.executable, str(ROOT / "bin" / "train.py")]
    with commands.one_line_errors():
        commands.sweep(folder / "sweep.gin", [], folder / "out", 2, train)


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


def test_cells_are_the_product_of_each_grid():
    grids = [
        {"method": {"a": ["x = 1"], "b": ["x = 2"]}, "seed": {"0": [], "1": ["s = 1"]}},
        {"other": {"c": ["y = 1"]}},
    ]
    files, cells = cells_of(["base.gin"], grids, ["z = 0"])
    assert files == ["base.gin"]
    assert [cell.name for cell in cells] == ["a-0", "a-1", "b-0", "b-1", "c"]
    assert cells[3].bindings == ("z = 0", "x = 2", "s = 1")
    assert cells[3].values == {"method": "b", "seed": "1"}


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([], "needs cells with different names"),
        ([{"a": {}}], "needs cells with different names"),
        ([{"a": {"x": []}}, {"b": {"x": []}}], "needs cells with different names"),
        ([{"a": {"x-y": []}}], "cannot be part of a folder's name"),
    ],
)
def test_grids_without_distinct_names_are_refused(grids, message):
    with pytest.raises(ValueError, match=message):
        cells_of([], grids)


def test_a_sweep_runs_skips_what_is_finished_and_refuses_what_changed(tmp_path, capsys):
    sweep_here(tmp_path)
    assert "All 3 cells" in capsys.readouterr().out
    cells = tmp_path / "out" / "cells"
    results = {
        name: json.loads((cells / f"{name}-1" / "evaluation.json").read_text())["results"]
        for name in ("leap", "metasgd", "none")
    }
    errors = {name: result["learned initialization"]["error"] for name, result in results.items()}
    assert len(set(errors.values())) == 3
    # A cell without meta-steps is the fresh initialization of the others.
    assert errors["none"] == results["leap"]["no pretraining"]["error"]
    # The fresh Meta-SGD has its rates at 1 again, and is plain training.
    assert errors["none"] == results["metasgd"]["no pretraining"]["error"]
    assert (cells / "metasgd-1" / "learner.npz").exists()
    index = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [cell["name"] for cell in index] == ["leap-1", "metasgd-1", "none-1"]

    stamps = {path: path.stat().st_mtime_ns for path in cells.glob("*/evaluation.json")}
    (cells / "leap-1" / "evaluation.json").unlink()
    sweep_here(tmp_path)
    again = json.loads((cells / "leap-1" / "evaluation.json").read_text())["results"]
    assert again == results["leap"]
    for name in ("metasgd-1", "none-1"):
        path = cells / name / "evaluation.json"
        assert path.stat().st_mtime_ns == stamps[path]

    with pytest.raises(SystemExit, match="a different configuration"):
        sweep_here(tmp_path, SWEEP.replace("meta_batch_size = 2", "meta_batch_size = 3"))

    sweep_here(tmp_path, without(SWEEP, '"none"'))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == index
    with pytest.raises(SystemExit, match="a sweep over other axes, with cells such as leap-1. Pas"):
        sweep_here(tmp_path, SWEEP.replace('"method"', '"learner"'))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == index


def without(text, start):
    """Returns the text without the lines that start so."""
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith(start))


def test_a_cell_that_fails_is_named_and_the_others_finish(tmp_path):
    text = re.sub(r'"(leap|metasgd)": .*', "", SWEEP)
    text = text.replace('["study.seed = 1"]', '["study.seed = 1"], "bad": ["study.seed = \'x\'"]')
    with pytest.raises(SystemExit, match=r"(?s)1 of 2 cells failed.*none-bad\.log"):
        sweep_here(tmp_path, text)
    finished = sorted(path.parent.name for path in tmp_path.glob("out/cells/*/evaluation.json"))
    assert finished == ["none-1"]


def test_bindings_that_would_not_reach_the_cells_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"meta_train.meta_steps would not reach the cells"):
        sweep_here(tmp_path, SWEEP + "\nmeta_train.meta_steps = 5\n")
    assert not (tmp_path / "out").exists()


def test_cells_end_with_a_sweep_that_is_killed(tmp_path):
    process = start_sweep(tmp_path, SWEEP.replace("meta_steps = 3", "meta_steps = 100000"))
    metrics = tmp_path / "out" / "cells" / "leap-1" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    run = RunDirectory(metrics.parent)
    for _ in range(600):
        if not run.is_in_use():
            break
        time.sleep(0.1)
    assert not run.is_in_use()
    log = (tmp_path / "out" / "logs" / "leap-1.log").read_text()
    assert "The same command continues from there" in log


def test_a_stopped_sweep_stops_its_cells_and_saves(tmp_path):
    long = SWEEP.replace("meta_steps = 3", "meta_steps = 100000")
    process = start_sweep(tmp_path, long)
    metrics = tmp_path / "out" / "cells" / "leap-1" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command continues from there" in errors
    assert not re.search(r"\d failed", errors)
    steps = metrics.read_text().count("\n")
    assert 0 < steps < 100000
    assert list((tmp_path / "out" / "cells" / "leap-1" / "checkpoints").glob("*.index"))
    time.sleep(0.5)
    assert metrics.read_text().count("\n") == steps  # no process continues in the background
