"""Checkpoints: restored, damaged, and of another run."""

import re

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.learners import ANIL
from leap_tf.training.checkpoint import describe, describe_tasks, differences
from tests.training.sinusoids import assert_same, trainer, weights


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 3
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"")


def test_save_and_load(tmp_path):
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    learner.save(tmp_path / "saved")
    learner.fit(leap_tf.Sinusoids(), 4, verbose=False)
    other = trainer()
    other.load(tmp_path / "saved")
    assert other.meta_step == 2
    other.fit(leap_tf.Sinusoids(), 4, verbose=False)
    assert_same(weights(other), weights(learner))


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, how, suffix, caplog):
    learner = trainer()
    learner.fit(
        leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, checkpoint_seconds=0, verbose=False
    )
    damage(tmp_path / f"step-00000003.{suffix}", how)
    resumed = trainer()
    resumed.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(resumed), weights(learner))
    if (how, suffix) != ("missing", "index"):  # without an index there is no checkpoint at all
        assert "Falling back to the checkpoint before it" in caplog.text


def test_training_does_not_start_over_if_no_checkpoint_can_be_read(tmp_path):
    learner = trainer()
    learner.fit(
        leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, checkpoint_seconds=0, verbose=False
    )
    for path in tmp_path.glob("*.data*"):
        damage(path, "truncated")
    with pytest.raises(leap_tf.CheckpointUnreadableError, match="None of the 2 checkpoints"):
        trainer().fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)


def test_a_checkpoint_of_another_model_or_seed_is_refused(tmp_path):
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
    for other in (
        trainer(model=leap_tf.mlp(hidden=(40, 41))),
        trainer(model=leap_tf.mlp(hidden=(40,))),
        trainer(meta_optimizer=keras.optimizers.SGD(0.1)),
    ):
        with pytest.raises(leap_tf.CheckpointMismatchError, match="does not fit this model"):
            other.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    with pytest.raises(leap_tf.CheckpointMismatchError, match="seed 0, this one has seed 1"):
        trainer(1).fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    trained = trainer(1)
    trained.fit(leap_tf.Sinusoids(), 2, verbose=False)
    trained.save(tmp_path / "saved")
    learner = trainer(0)
    learner.fit(leap_tf.Sinusoids(), 1, verbose=False)
    before = weights(learner)
    with pytest.raises(leap_tf.CheckpointMismatchError):
        learner.load(tmp_path / "saved")
    assert_same(weights(learner), before)
    assert learner.meta_step == 1


def test_a_trainer_that_has_moved_on_does_not_overwrite_a_folder(tmp_path):
    trainer().fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    before = sorted(path.name for path in tmp_path.iterdir())
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 1, verbose=False)
    with pytest.raises(
        leap_tf.CheckpointMismatchError, match="meta-step 3, and this trainer is at 1"
    ):
        learner.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta_optimizer": keras.optimizers.SGD(0.01)}, "meta_optimizer.learning_rate: 0.1"),
        ({"inner_optimizer": keras.optimizers.SGD(0.02, momentum=0.5)}, "inner_optimizer.momentum"),
        ({"learner": leap_tf.Leap("energy")}, "learner.distance: length then, energy now"),
        ({"learner": leap_tf.Reptile()}, "learner.class: Leap then, Reptile now"),
        ({"steps_per_task": 7}, "steps_per_task: "),
        ({"meta_batch_size": 2}, "meta_batch_size: "),
        ({"stopping": leap_tf.StopOnPlateau()}, "stopping.patience: nothing then, 10 now"),
        (
            {"loss": keras.losses.MeanAbsoluteError()},
            "loss.class: MeanSquaredError then, MeanAbsoluteError now",
        ),
        ({"task_layers": ["head"]}, "task_layers: [] then, ['head'] now"),
    ],
)
def test_a_restart_with_other_settings_is_refused(tmp_path, change, message):
    def made(**options):
        return trainer(**{"meta_optimizer": keras.optimizers.SGD(0.1)} | options)

    made().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
    other = made(**change)
    before = weights(other)
    with pytest.raises(leap_tf.CheckpointMismatchError, match=re.escape(message)):
        other.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(other), before)
    made().fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)


def test_settings_that_are_lists_are_described():
    described = describe(ANIL(("conv4", "head")))
    assert described == {
        "class": "ANIL",
        "query_batches": 1,
        "adapted_layers": ["conv4", "head"],
    }
    assert differences(described, describe(ANIL())) == [
        "adapted_layers: ['conv4', 'head'] then, ['head'] now"
    ]


def test_other_files_in_the_folder_are_not_touched(tmp_path):
    others = ["step-counts.csv", "step-best.index", "step-00000001.txt", "step-size/thesis.txt"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    for last in (6, 7):
        trainer().fit(
            leap_tf.Sinusoids(),
            last,
            checkpoint_dir=tmp_path,
            checkpoint_seconds=0.0,
            verbose=False,
        )
    assert all((tmp_path / name).read_text() == "precious" for name in others)
    assert len(list(tmp_path.glob("step-0000000?.index"))) == 3


def test_a_folder_of_another_run_is_refused(tmp_path):
    trainer().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path / "other", verbose=False)
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path / "this", verbose=False)
    with pytest.raises(leap_tf.CheckpointMismatchError, match="which it did not reach from there"):
        learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path / "other", verbose=False)
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path / "this", verbose=False)
    again = trainer()
    again.load(tmp_path / "this" / "step-00000003")
    again.fit(leap_tf.Sinusoids(), 4, checkpoint_dir=tmp_path / "this", verbose=False)


def lines(*slopes, count=12):
    inputs = np.linspace(-1, 1, count, dtype=np.float32)[:, None]
    arrays = [(inputs, slope * inputs) for slope in slopes]
    return leap_tf.FiniteTasks(
        [leap_tf.ArrayTask(f"line {k}", each, each, 4) for k, each in enumerate(arrays)]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (leap_tf.Sinusoids(), "tasks.class: FiniteTasks then, Sinusoids now"),
        (lines(1, 2, 3), "tasks.number: 2 then, 3 now"),
        (lines(1, 2, count=13), "float32[13, 1]"),
        (lines(1, 3), "tasks.crc32: "),
        (leap_tf.FiniteTasks(lines(1, 2).tasks[::-1]), "line 0, line 1 then, line 1, line 0 now"),
    ],
)
def test_a_folder_is_not_continued_on_other_tasks(tmp_path, other, message):
    first = trainer()
    first.fit(lines(1, 2), 1, checkpoint_dir=tmp_path, verbose=False)
    for learner in (trainer(), first):
        with pytest.raises(leap_tf.CheckpointMismatchError, match=re.escape(message)) as error:
            learner.fit(other, 2, checkpoint_dir=tmp_path, verbose=False)
        assert "or another checkpoint_dir" in str(error.value)
    assert first.meta_step == 1
    trainer().fit(lines(1, 2), 2, checkpoint_dir=tmp_path, verbose=False)


def test_other_parameters_of_an_endless_family_are_other_tasks(tmp_path):
    trainer().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
    with pytest.raises(leap_tf.CheckpointMismatchError, match="batch_size=10.*batch_size=5"):
        other = leap_tf.Sinusoids(batch_size=5)
        trainer().fit(other, 2, checkpoint_dir=tmp_path, verbose=False)


def test_tasks_may_change_without_a_folder_and_after_load(tmp_path):
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path / "sinusoids", verbose=False)
    learner.save(tmp_path / "saved")
    learner.fit(lines(1, 2), 2, verbose=False)
    other = trainer()
    other.load(tmp_path / "saved")
    other.fit(lines(1, 2), 2, checkpoint_dir=tmp_path / "lines", verbose=False)
    assert_same(weights(other), weights(learner))
    resumed = trainer()
    resumed.fit(lines(1, 2), 2, checkpoint_dir=tmp_path / "lines", verbose=False)
    assert_same(weights(resumed), weights(learner))


def test_tasks_are_described_by_their_class_and_their_arrays():
    described = describe_tasks(lines(1, 2))
    assert described["kinds"] == [
        "ArrayTask(classes=None, batch_size=4) "
        "float32[12, 1], float32[12, 1], float32[12, 1], float32[12, 1]"
    ]
    assert described == describe_tasks(lines(1, 2)) != describe_tasks(lines(1, 2.5))

    class Game:
        name = "pong"
        classes = 6

    assert describe_tasks(leap_tf.FiniteTasks([Game()]))["kinds"] == ["Game(classes=6)"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_run_that_has_made_its_meta_steps_says_so(tmp_path, caplog, folder):
    options = {"checkpoint_dir": tmp_path if folder else None, "verbose": False}
    learner = trainer()
    learner.fit(lines(1, 2), 2, **options)
    assert "already" not in caplog.text
    (trainer() if folder else learner).fit(lines(1, 2), 2, **options)
    assert "has made 2 meta-steps already, so fit(..., meta_steps=2) does nothing" in caplog.text
    assert "meta_steps counts all of them. Ask for more" in caplog.text
