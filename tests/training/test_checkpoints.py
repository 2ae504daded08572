"""Checkpoints: restored, damaged, and of another run."""

import dataclasses
import logging
import re
import shutil

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.learners import ANIL
from leap_tf.training.checkpoint import describe, describe_layers, differences
from leap_tf.training.sampling import describe_tasks
from tests.training.sinusoids import assert_same, trainer, weights, weights_after


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


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A folder with a checkpoint of each of the first three meta-steps, to be copied."""
    folder = tmp_path_factory.mktemp("checkpoints")
    options = {"checkpoint_seconds": 0, "verbose": False}
    trainer().fit(leap_tf.Sinusoids(), 3, checkpoint_dir=folder, **options)
    return folder


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path, three_checkpoints, how, suffix, caplog
):
    shutil.copytree(three_checkpoints, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / f"step-00000003.{suffix}", how)
    resumed = trainer()
    resumed.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(resumed), weights_after(3))
    if (how, suffix) != ("missing", "index"):  # without an index there is no checkpoint at all
        assert "Falling back to the checkpoint before it" in caplog.text


def test_training_does_not_start_over_if_no_checkpoint_can_be_read(tmp_path, three_checkpoints):
    shutil.copytree(three_checkpoints, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.data*"):
        damage(path, "truncated")
    with pytest.raises(leap_tf.CheckpointUnreadableError, match="None of the 3 checkpoints"):
        trainer().fit(leap_tf.Sinusoids(), 4, checkpoint_dir=tmp_path, verbose=False)


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
        ({"task_layers": "head"}, "task_layers: [] then, ['head'] now"),
        ({"model": leap_tf.mlp(activation="tanh")}, ".activation: relu then, tanh now"),
    ],
)
def test_a_restart_with_other_settings_is_refused(tmp_path, change, message):
    def made(**options):
        return trainer(**{"meta_optimizer": keras.optimizers.SGD(0.1)} | options)

    made().fit(leap_tf.Sinusoids(), 0, checkpoint_dir=tmp_path, verbose=False)
    other = made(**change)
    before = weights(other)
    with pytest.raises(leap_tf.CheckpointMismatchError, match=re.escape(message)):
        other.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(other), before)
    made().fit(leap_tf.Sinusoids(), 0, checkpoint_dir=tmp_path, verbose=False)


def test_checkpoints_of_before_the_layers_were_described_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            leap_tf.training.SupervisedProblem,
            "get_config",
            lambda self: {"loss": describe(self.loss), "task_layers": []},
        )
        trainer().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
    resumed = trainer()
    resumed.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(resumed), weights_after(2))


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


def lines(*slopes, names=None, count=12, **options):
    """Tasks y = slope · x, a slope for each."""
    inputs = np.linspace(-1, 1, count, dtype="float32")[:, None]
    parts = [(inputs, slope * inputs) for slope in slopes]
    names = names or [f"line {slope}" for slope in slopes]
    return leap_tf.FiniteTasks(
        [leap_tf.ArrayTask(name, part, part, **options) for name, part in zip(names, parts)]
    )


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines without end, of one name."""

    highest: float = 1.0

    def sample(self, count, rng):
        return lines(*rng.uniform(0, self.highest, count), names=["line"] * count).tasks


class UndescribedLines:
    def __init__(self, highest):
        self._family = Lines(highest)

    def sample(self, count, rng):
        return self._family.sample(count, rng)


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (leap_tf.Sinusoids(), lines(1.0), "tasks.class: Sinusoids then, FiniteTasks now"),
        (leap_tf.Sinusoids(), leap_tf.Sinusoids(50), "tasks.examples: 100 then, 50 now"),
        (lines(1.0, 2.0), lines(1.0), "tasks.number: 2 then, 1 now"),
        (lines(1.0, 2.0), lines(2.0, 1.0), "tasks.0: ArrayTask 'line 1.0'"),
        (lines(1.0), lines(2.0, names=["line 1.0"]), "tasks.0: ArrayTask 'line 1.0'"),
        (lines(1.0), lines(1.0, count=13), "float32 [13, 1]"),
        (lines(1.0), lines(1.0, batch_size=5), "batch_size 5"),
        (lines(*range(30)), lines(*range(29), 3.0), "tasks.others: CRC"),
        (Lines(1.0), Lines(2.0), "tasks.highest: 1.0 then, 2.0 now"),
        (UndescribedLines(1.0), UndescribedLines(2.0), "tasks.0: ArrayTask 'line'"),
    ],
)
def test_a_restart_on_other_tasks_is_refused(tmp_path, then, now, message):
    assert describe_tasks(then) == describe_tasks(then)
    trainer().fit(then, 0, checkpoint_dir=tmp_path, verbose=False)
    other = trainer()
    with pytest.raises(
        leap_tf.CheckpointMismatchError, match=f"another checkpoint_dir.*{re.escape(message)}"
    ):
        other.fit(now, 2, checkpoint_dir=tmp_path, verbose=False)
    assert other.meta_step == 0
    other.fit(then, 0, checkpoint_dir=tmp_path, verbose=False)


def test_tasks_are_compared_at_the_fit_after_a_load(tmp_path):
    trainer().fit(lines(1.0), 1, checkpoint_dir=tmp_path / "ones", verbose=False)
    learner = trainer()
    learner.load(tmp_path / "ones" / "step-00000001")
    with pytest.raises(leap_tf.CheckpointMismatchError, match="of a run on other tasks"):
        learner.fit(lines(2.0), 2, checkpoint_dir=tmp_path / "ones", verbose=False)
    assert learner.meta_step == 1
    learner.fit(lines(2.0), 2, checkpoint_dir=tmp_path / "twos", verbose=False)
    again = trainer()
    again.fit(lines(2.0), 3, checkpoint_dir=tmp_path / "twos", verbose=False)
    assert again.meta_step == 3


def test_one_trainer_may_train_on_other_tasks_without_a_folder(tmp_path):
    learner = trainer()
    learner.fit(lines(1.0), 1, checkpoint_dir=tmp_path, verbose=False)
    learner.fit(lines(2.0), 2, verbose=False)
    assert learner.meta_step == 2
    with pytest.raises(leap_tf.CheckpointMismatchError, match="of a run on other tasks"):
        learner.fit(lines(2.0), 3, checkpoint_dir=tmp_path, verbose=False)


def test_the_fingerprint_of_tasks_is_computed_once_and_the_same_everywhere():
    tasks = lines(1.0, 2.0)
    first = describe_tasks(tasks)
    tasks.tasks[0].train[1][:] = 7.0  # the pipelines keep their copy too
    assert describe_tasks(tasks) == first
    described = describe_tasks(leap_tf.Sinusoids())
    assert described["number"] == "endless"
    assert "CRC" not in str(described)  # sines differ in their last bit between processors


def test_a_fit_with_nothing_to_do_says_so(tmp_path, caplog):
    def messages():
        found = [record.getMessage() for record in caplog.records if record.name == "leap_tf"]
        caplog.clear()
        return found

    learner = trainer()
    with caplog.at_level(logging.WARNING, "leap_tf"):
        learner.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
        assert messages() == []
        learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
        trainer().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
        second, third = messages()
        assert "2 meta-steps have been made already" in second
        assert "To continue, give more than meta_steps=1" in third
        stop = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda step, logs: setattr(learner.model, "stop_training", True)
        )
        learner.fit(
            leap_tf.Sinusoids(), 9, callbacks=[stop], checkpoint_dir=tmp_path, verbose=False
        )
        assert messages() == []
        ended = trainer()
        ended.fit(leap_tf.Sinusoids(), 9, checkpoint_dir=tmp_path, verbose=False)
        assert "a callback ended this training at meta-step 3" in messages()[0]
        ended.load(tmp_path / "step-00000003")
        ended.fit(leap_tf.Sinusoids(), 4, checkpoint_dir=tmp_path, verbose=False)
        assert messages() == []
        assert ended.meta_step == 4


def test_other_precision_and_other_numbers_are_other_settings():
    def described(dtype):
        return describe_layers(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype=dtype)])
        )

    assert described("mixed_bfloat16") != described("float32")
    assert "compute_dtype" not in described("float32")["0"]  # as in earlier checkpoints

    class Rule:
        def get_config(self):
            return {"rate": np.float32(0.5)}

    assert describe(Rule()) == {"class": "Rule", "rate": 0.5}
