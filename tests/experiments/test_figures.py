"""Tests of figures of merit, tables and curves against numbers computed by hand."""

import numpy as np
import pytest

from leap_tf.experiments.study import (
    adaptation_curves,
    as_record,
    plot_learning_curve,
    table,
)
from leap_tf.training import (
    Evaluation,
    JSONLogger,
    TaskEvaluation,
    area_under_curve,
    read_metrics,
    steps_to,
)


def evaluation(*curves):
    return Evaluation(
        tuple(
            TaskEvaluation(
                f"task {index}",
                error=curve[-1],
                loss=2 * curve[-1],
                examples=10,
                training_errors=np.array(curve),
                training_losses=np.array(curve),
                path_length=3.0,
                path_energy=4.0,
                parameters=12,
                finite=True,
            )
            for index, curve in enumerate(curves)
        )
    )


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        ([1, 1, 1, 1], 100),
        ([0.3], 30),
        ([1, 0], 50),
        ([1, 0.5, 0], 50),
        ([1, 0, 0], 25),
        ([9, 1], 500),  # squared errors have no upper bound
    ],
)
def test_area_under_the_curve(curve, area):
    assert area_under_curve(curve) == pytest.approx(area)


def test_final_training_error_is_the_mean_of_the_last_fifty_batches():
    errors = np.concatenate([np.ones(100), np.full(25, 0.5), np.zeros(25)])
    task = evaluation(errors).tasks[0]
    assert task.final_training_error == pytest.approx(0.25)


def test_steps_to_a_target_are_counted_on_a_running_mean():
    curve = [1.0, 0.0, 0.9, 0.3, 0.2, 0.1]
    assert steps_to(curve, 0.1, window=1) == 1  # one lucky batch
    assert steps_to(curve, 0.5, window=2) == 1
    assert steps_to(curve, 0.25, window=2) == 4
    assert steps_to(curve, 0.05, window=2) is None
    assert steps_to(curve, 1.0) == 0


def test_curves_of_adaptation_are_smoothed():
    smooth = adaptation_curves(evaluation([0.1, 0.3, 0.5, 0.7]), window=2)
    np.testing.assert_allclose(smooth[0], [0.1, 0.2, 0.4, 0.6])


def test_curves_leave_out_tasks_that_diverged():
    curves = adaptation_curves(evaluation([1.0, 0.2], [1.0, 0.4, 0.1], [1.0, np.nan]), window=1)
    np.testing.assert_allclose(curves, [[1.0, 1.0], [0.2, 0.4]])
    assert adaptation_curves(evaluation([1.0, np.nan]), window=1).empty


def test_a_metric_that_is_not_finite_is_null_and_a_gap_in_the_picture(tmp_path):
    log = JSONLogger(tmp_path / "metrics.jsonl")
    log.on_train_begin()
    for step, value in enumerate((0.5, np.inf, np.float32(0.25))):
        log.on_epoch_begin(step)
        log.on_epoch_end(step, {"loss": value, "error": 0.5, "val_error": value})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in text
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["loss"] for entry in entries] == [0.5, None, 0.25]
    plot_learning_curve(entries, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_table():
    text = table(
        {
            "learned": evaluation([1.0, 0.2], [1.0, 0.4]),
            "fresh": evaluation([1.0, 1.0], [1.0, 0.8]),
        },
        target_error=0.7,
    )
    learned, fresh = (" ".join(line.split()) for line in text.splitlines()[2:])
    assert learned == "learned 0.300 ± 0.100 65.0 ± 5.0 1 (2 of 2 tasks)"
    assert fresh == "fresh 0.900 ± 0.100 95.0 ± 5.0 not reached (0 of 2 tasks)"


def test_the_table_names_no_range_that_squared_errors_leave():
    header, row = table({"learned": evaluation([9.0, 1.0])}, target_error=0.7).splitlines()[1:]
    assert " ".join(header.split()) == "error 100 × AUC steps to error 0.7"
    assert "500.0" in row
    assert "±" not in row  # of one task


def test_diverged_tasks_are_shown_and_not_averaged():
    mixed = evaluation([1.0, 0.2], [1.0, float("nan")])
    line = table({"learned": mixed}, target_error=0.7).splitlines()[2]
    assert "0.200      " in line
    assert "±" not in line  # of one task
    assert "(1 diverged, left out)" in line
    record = as_record(mixed, target_error=0.7)
    assert record["diverged"] == ["task 1"]
    assert record["tasks"][1]["training_errors"] == [1.0, None]
    nothing = table({"learned": evaluation([float("nan")])}, target_error=0.7).splitlines()[2]
    assert "(1 diverged, left out)" in nothing


def test_records_are_plain_numbers():
    record = as_record(evaluation([1.0, 0.2]), target_error=0.7)
    assert record["error"] == pytest.approx(0.2)
    assert record["tasks"][0]["steps_to_target"] == 1
    assert record["tasks"][0]["training_errors"] == [1.0, 0.2]
