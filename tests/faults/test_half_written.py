"""Tests that files of a run are complete, and that a restart removes the remains of a kill."""

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
