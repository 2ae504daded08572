"""Tests that files of a run are complete, and that a restart removes the remains of a kill."""

import dataclasses

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.experiments import study as studies
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError
from leap_tf.experiments.study import evaluate, meta_train, study
from leap_tf.serialization import replacing
from leap_tf.training import MetaTrainer


def trainer(model, seed):
    return MetaTrainer(
        model,
        keras.losses.MeanSquaredError(),
        keras.optimizers.SGD(0.02),
        keras.optimizers.Adam(0.02),
        steps_per_task=3,
        meta_batch_size=2,
        seed=seed,
    )


@pytest.fixture
def small_run(tmp_path):
    """Builds an untrained study and its folder."""
    made = study(
        leap_tf.mlp,
        lambda **options: leap_tf.sinusoid_splits(test_tasks=1, validation_tasks=1, **options),
        trainer,
    )
    run = RunDirectory(tmp_path / "run")
    run.claim("a = 1\n")
    return made, run


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("whole")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        assert partial.suffix == ".keras"
        partial.write_text("ha")
        raise OSError("full")
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]
    assert path.read_text() == "whole"
    with replacing(path) as partial:
        partial.write_text("new")
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]
    assert path.read_text() == "new"


def test_a_run_that_dies_while_it_saves_its_model_has_none(small_run, monkeypatch):
    made, run = small_run

    def die(self, path, **options):
        with open(path, "wb") as file:
            file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Sequential, "save", die)
    monkeypatch.setattr(keras.Model, "save", die)
    with pytest.raises(KeyboardInterrupt):
        meta_train(made, run, meta_steps=1, verbose=False)
    assert not run.initialization.exists()


def test_evaluation_json_is_written_last(small_run, monkeypatch):
    """A sweep skips a run that has it."""
    made, run = small_run
    meta_train(made, run, meta_steps=1, verbose=False)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "plot_adaptation", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(made, run)
    assert not run.evaluation.exists()


def test_the_remains_of_a_checkpoint_after_a_kill_are_removed(tmp_path):
    left = tmp_path / "step-00000001_temp" / "part-00000-of-00001.data-00000-of-00001.tempstate7"
    left.parent.mkdir()
    left.write_bytes(b"half")
    (tmp_path / "step-00000002.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    learner = trainer(leap_tf.mlp(), seed=0)
    learner.fit(
        leap_tf.Sinusoids(), 5, checkpoint_dir=tmp_path, checkpoint_seconds=0, verbose=False
    )
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["notes.txt"] + [
        f"step-0000000{step}.{suffix}"
        for step in (3, 4, 5)
        for suffix in ("data-00000-of-00001", "index")
    ]
    again = trainer(leap_tf.mlp(), seed=0)
    again.fit(leap_tf.Sinusoids(), 5, checkpoint_dir=tmp_path, verbose=False)
    for a, b in zip(again.model.get_weights(), learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "left", [["lock"], ["lock", "plots"], ["lock", "plots", "config.partial.gin"]]
)
def test_a_start_that_died_at_once_does_not_stand_in_the_way(tmp_path, left):
    """Until the configuration is written, the folder holds no run."""
    for name in left:
        (tmp_path / name).mkdir() if name == "plots" else (tmp_path / name).write_text("")
    RunDirectory(tmp_path).claim("a = 1\n")
    assert RunDirectory(tmp_path).config.read_text() == "a = 1\n"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine.png").write_text("precious")
    with pytest.raises(RunDirectoryError, match="not empty and holds no run"):
        RunDirectory(tmp_path).claim("a = 1\n")


def test_a_run_is_evaluated_on_its_own_data_only(small_run, tmp_path):
    made, run = small_run
    meta_train(made, run, meta_steps=0, verbose=False)
    studies.load_learned(made, run)
    x, y = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    other = leap_tf.ArrayTask("other", (x, y), (x, y))
    changed = dataclasses.replace(made, tasks=leap_tf.TaskSplits([other], [], [other]))
    with pytest.raises(RunDirectoryError, match=r"not those .* trained on.*--data_dir"):
        studies.load_learned(changed, run)


def test_a_run_that_only_named_its_modules_can_take_another_configuration(small_run):
    _, run = small_run
    (run.path / "modules.json").write_text("[]")
    run.claim("a = 2\n")
    assert run.config.read_text() == "a = 2\n"


def test_a_folder_that_tensorflow_cannot_read_is_refused_before_training(small_run, tmp_path):
    made, _ = small_run
    run = RunDirectory(tmp_path / "run[1]")
    run.claim("a = 1\n")
    with pytest.raises(ValueError, match=r"no checkpoints below a folder with '\['"):
        meta_train(made, run, meta_steps=1, verbose=False)


def test_an_unknown_monitor_is_refused_at_the_first_validation(small_run):
    made, run = small_run
    options = {"patience": 1, "validation_freq": 2, "verbose": False}
    with pytest.raises(ValueError, match=r"monitor='val_eror' must be one of .*'val_error'"):
        meta_train(made, run, meta_steps=4, monitor="val_eror", **options)


def test_metrics_that_are_not_finite_are_recorded_as_null(small_run):
    made, _ = small_run
    evaluation = made.trainer.evaluate(made.tasks.test, 3)
    metrics = {"error_after_1": float("nan")}
    task = dataclasses.replace(evaluation.tasks[0], metrics=metrics)
    record = studies.as_record(dataclasses.replace(evaluation, tasks=(task,)), 0.1)
    assert record["tasks"][0]["metrics"] == {"error_after_1": None}
    assert record["error_after_1"] is None
