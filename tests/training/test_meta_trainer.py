"""The outer loop: learning, determinism, restarts, callbacks, bad input."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetricsLog, ProgressDisplay, read_metrics
from tests import golden

MSE = keras.losses.MeanSquaredError()


def trainer(seed=0, model=None, **options):
    keras.utils.set_random_seed(int(seed))
    settings = {
        "loss": MSE,
        "inner_optimizer": keras.optimizers.SGD(0.02),
        "meta_optimizer": keras.optimizers.Adam(0.02),
        "steps_per_task": 8,
        "meta_batch_size": 5,
        "parallel_tasks": 2,
        "seed": seed,
    }
    return leap_tf.MetaTrainer(model or leap_tf.mlp(), **(settings | options))


def held_out(count=6):
    return leap_tf.Sinusoids().sample(count, np.random.default_rng(99))


def weights(of):
    return [array.copy() for array in of.model.get_weights()]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class RecordedTask:
    """One of the original's recorded tasks."""

    def __init__(self, number):
        self.number = number
        self.name = f"recorded {number}"

    def train_batches(self, seed):
        return golden.task_dataset(self.number)

    def test_batches(self):
        return golden.task_dataset(self.number)


def test_a_meta_step_descends_on_the_originals_meta_gradient():
    model = golden.build_model()
    before = model.get_weights()
    learner = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.5),
        meta_batch_size=2,
    )
    learner.fit(FiniteTasks([RecordedTask(0), RecordedTask(1)]), 1, verbose=False)
    moved = [(a - b) / 0.5 for a, b in zip(before, model.get_weights())]
    expected = golden.to_keras(golden.meta_gradient("a_sgd_lr0.1", "float32", golden.SWITCHES[0]))
    assert golden.relative_error(moved, expected) < 1e-5


def test_meta_training_makes_new_tasks_easier():
    learner = trainer()
    before = learner.evaluate(held_out())
    history = learner.fit(leap_tf.Sinusoids(), 40, verbose=False)
    after = learner.evaluate(held_out())
    assert after.error < 0.7 * before.error
    assert after.area_under_error < 0.7 * before.area_under_error
    assert len(history.history["loss"]) == 40
    assert history.history["path_length"][-1] < history.history["path_length"][0]


def test_evaluation_changes_nothing_and_repeats():
    learner = trainer()
    start = weights(learner)
    first, again = learner.evaluate(held_out()), learner.evaluate(held_out())
    assert_same(weights(learner), start)
    for a, b in zip(first.tasks, again.tasks):
        assert (a.name, a.error, a.loss) == (b.name, b.error, b.loss)
        np.testing.assert_array_equal(a.training_errors, b.training_errors)
    assert len(learner.evaluate(held_out(), steps=3).tasks[0].training_errors) == 3


@pytest.mark.parametrize("parallel_tasks", [1, 3])
def test_results_do_not_depend_on_parallel_tasks(parallel_tasks):
    ends = []
    for tasks in (2, parallel_tasks):
        learner = trainer(parallel_tasks=tasks)
        learner.fit(leap_tf.Sinusoids(), 4, verbose=False)
        ends.append(weights(learner))
    assert_same(*ends)


def test_the_seed_decides_everything():
    ends = []
    for seed in (1, 1, 2):
        learner = trainer(seed)
        learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
        ends.append(weights(learner))
    assert_same(ends[0], ends[1])
    assert not np.array_equal(ends[0][0], ends[2][0])


def test_task_layers_are_fresh_for_each_task_and_never_move():
    model = leap_tf.mlp()
    head = [array.copy() for array in model.get_layer("head").get_weights()]
    encoder = model.layers[0].get_weights()[0].copy()
    learner = trainer(model=model, task_layers=["head"])
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    assert_same(model.get_layer("head").get_weights(), head)
    assert not np.array_equal(model.layers[0].get_weights()[0], encoder)
    first = learner.evaluate(held_out(2), steps=1)
    assert len({task.training_errors[0] for task in first.tasks}) == 2


def test_batch_norm_state_of_the_initialization_never_moves():
    model = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    norm = model.layers[1]
    learner = trainer(model=model)
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    learner.evaluate(held_out(2))
    np.testing.assert_array_equal(norm.moving_mean.numpy(), np.zeros(4))
    np.testing.assert_array_equal(norm.moving_variance.numpy(), np.ones(4))


def test_keras_callbacks_see_meta_steps_as_epochs(tmp_path):
    learner = trainer()
    seen = []
    stopping = keras.callbacks.EarlyStopping("loss", mode="min", patience=100)
    history = learner.fit(
        leap_tf.Sinusoids(),
        3,
        validation_tasks=held_out(2),
        validation_freq=2,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=lambda step, logs: seen.append(step)),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TensorBoard(tmp_path / "board"),
            stopping,
        ],
        verbose=False,
    )
    assert seen == history.epoch == [0, 1, 2]
    assert len(history.history["val_error"]) == 1
    assert (tmp_path / "log.csv").read_text().count("\n") == 4
    assert list((tmp_path / "board").rglob("events*"))
    assert not hasattr(learner.model, "optimizer")
    assert stopping.best == min(history.history["loss"])


def test_early_stopping_ends_with_the_best_weights():
    learner = trainer()
    best = {}

    def remember(step, logs):
        if logs["loss"] < best.get("loss", np.inf):
            best.update(loss=logs["loss"], weights=weights(learner), step=step)

    history = learner.fit(
        leap_tf.Sinusoids(),
        30,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=remember),
            keras.callbacks.EarlyStopping(
                "loss", mode="min", patience=2, restore_best_weights=True
            ),
        ],
        verbose=False,
    )
    assert len(history.epoch) == best["step"] + 3 < 30
    assert_same(weights(learner), best["weights"])


def test_a_restart_ends_bit_identical(tmp_path):
    straight = trainer()
    expected = straight.fit(leap_tf.Sinusoids(), 6, held_out(2), validation_freq=2, verbose=False)
    for meta_steps in (2, 3, 6):  # each a new process, as far as the trainer knows
        resumed = trainer()
        history = resumed.fit(
            leap_tf.Sinusoids(),
            meta_steps,
            held_out(2),
            validation_freq=2,
            checkpoint_dir=tmp_path,
            verbose=False,
        )
        assert resumed.meta_step == meta_steps
    assert_same(weights(resumed), weights(straight))
    assert history.history == expected.history
    assert history.epoch == expected.epoch
    for a, b in zip(resumed.meta_optimizer.variables, straight.meta_optimizer.variables):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_early_stopping_remembers_across_a_restart(tmp_path):
    def run(meta_steps, folder):
        learner = trainer()
        stopping = keras.callbacks.EarlyStopping(
            "loss", mode="min", patience=2, restore_best_weights=True
        )
        history = learner.fit(
            leap_tf.Sinusoids(),
            meta_steps,
            callbacks=[stopping],
            checkpoint_dir=folder,
            verbose=False,
        )
        return learner, history, stopping

    straight, expected, _ = run(30, tmp_path / "straight")
    stopped_at = len(expected.epoch)
    for meta_steps in (stopped_at - 1, 30):
        resumed, history, stopping = run(meta_steps, tmp_path / "resumed")
    assert history.history == expected.history
    assert stopping.best == min(expected.history["loss"])
    assert_same(weights(resumed), weights(straight))
    again, history, _ = run(30, tmp_path / "resumed")  # it has stopped: nothing more to do
    assert len(history.epoch) == stopped_at
    assert_same(weights(again), weights(straight))


def test_a_requested_stop_saves_whole_meta_steps(tmp_path):
    learner = trainer()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: learner.request_stop() if step == 1 else None
    )
    learner.fit(leap_tf.Sinusoids(), 5, callbacks=[stop], checkpoint_dir=tmp_path, verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 2
    resumed, straight = trainer(), trainer()
    resumed.fit(leap_tf.Sinusoids(), 5, checkpoint_dir=tmp_path, verbose=False)
    straight.fit(leap_tf.Sinusoids(), 5, verbose=False)
    assert_same(weights(resumed), weights(straight))


@pytest.mark.parametrize("moment", ["in a task", "in validation", "in a callback"])
def test_an_exception_anywhere_leaves_a_state_to_go_on_from(tmp_path, moment):
    learner = trainer()

    def explode(*_):
        raise KeyboardInterrupt

    class Exploding(leap_tf.Sinusoids):
        def sample(self, count, rng):
            if moment == "in a task" and learner.meta_step == 2:
                explode()
            return super().sample(count, rng)

    class Validation(list):
        def __iter__(self):
            if moment == "in validation" and learner.meta_step == 2:
                explode()
            return super().__iter__()

    late = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: explode() if moment == "in a callback" and step == 2 else 0
    )
    with pytest.raises(KeyboardInterrupt):
        learner.fit(
            Exploding(),
            5,
            Validation(held_out(1)),
            callbacks=[late],
            checkpoint_dir=tmp_path,
            checkpoint_seconds=0,
            verbose=False,
        )
    resumed, straight = trainer(), trainer()
    resumed.fit(leap_tf.Sinusoids(), 5, held_out(1), checkpoint_dir=tmp_path, verbose=False)
    straight.fit(leap_tf.Sinusoids(), 5, held_out(1), verbose=False)
    assert_same(weights(resumed), weights(straight))


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


def test_if_no_checkpoint_can_be_read_training_does_not_start_over(tmp_path):
    learner = trainer()
    learner.fit(
        leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, checkpoint_seconds=0, verbose=False
    )
    for path in tmp_path.glob("*.data*"):
        damage(path, "truncated")
    with pytest.raises(leap_tf.CheckpointUnreadableError, match="None of the 2 checkpoints"):
        trainer().fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
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


def constant_task(name, value, count=12):
    inputs = np.full((count, 1), value, np.float32)
    return ArrayTask(name, (inputs, inputs), (inputs, inputs), batch_size=4)


def test_diverging_tasks_are_left_out_and_counted():
    good, bad = constant_task("good", 1.0), constant_task("bad", np.nan)
    mixed = trainer(meta_batch_size=2)
    history = mixed.fit(FiniteTasks([bad, good]), 1, verbose=False)
    assert history.history["tasks_skipped"] == [1]
    assert np.isfinite(history.history["loss"][0])
    alone = trainer(meta_batch_size=1)
    alone.fit(FiniteTasks([good]), 1, verbose=False)
    assert_same(weights(mixed), weights(alone))


def test_if_all_tasks_diverge_the_last_good_initialization_is_saved(tmp_path):
    class Worsening(leap_tf.Sinusoids):
        def sample(self, count, rng):
            if learner.meta_step < 2:
                return super().sample(count, rng)
            return [constant_task("bad", np.inf)] * count

    learner = trainer()
    with pytest.raises(leap_tf.MetaTrainingDivergedError, match="All 5 tasks of meta-step 3"):
        learner.fit(Worsening(), 5, checkpoint_dir=tmp_path, verbose=False)
    restored = trainer()
    restored.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False)
    assert restored.meta_step == 2
    assert_same(weights(restored), weights(learner))
    assert all(np.isfinite(array).all() for array in weights(restored))


def classification(labels, empty=False):
    class Labelled:
        name = "labelled"

        def train_batches(self, seed):
            inputs = np.ones((len(labels), 1), np.float32)
            batches = tf.data.Dataset.from_tensor_slices((inputs, np.array(labels))).batch(2)
            return batches.take(0) if empty else batches

        def test_batches(self):
            return self.train_batches(0)

    return FiniteTasks([Labelled()])


def test_bad_tasks_are_named():
    def classifier():
        return trainer(
            model=leap_tf.mlp(outputs=3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    with pytest.raises(ValueError, match="'labelled' has data the model or loss cannot take"):
        classifier().fit(classification([0, 1, 2, 3]), 1, verbose=False)
    with pytest.raises(ValueError, match="'labelled' gave no training batch"):
        classifier().fit(classification([0, 1], empty=True), 1, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_task": 0}, "steps_per_task must be at least 2"),
        ({"meta_batch_size": 0}, "meta_batch_size must be at least 1"),
        ({"parallel_tasks": -1}, "at least one thread"),
        ({"parallel_tasks": 0}, "at least one thread"),
        ({"steps_per_task": 1}, "steps_per_task must be at least 2"),  # one point, no segment
        ({"task_layers": ["nose"]}, "no layer named"),
        ({"meta_optimizer": keras.optimizers.SGD(loss_scale_factor=8.0)}, "unscaled"),
        ({"meta_optimizer": keras.optimizers.SGD(use_ema=True)}, "meta_optimizer has use_ema"),
        (
            {"inner_optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)},
            "larger batches",
        ),
    ],
)
def test_settings_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


def test_calls_that_cannot_be_right_are_refused():
    learner = trainer()
    with pytest.raises(ValueError, match="validation_freq must be at least 1"):
        learner.fit(leap_tf.Sinusoids(), 1, held_out(1), validation_freq=0, verbose=False)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        learner.evaluate(held_out(1), steps=0)
    with pytest.raises(ValueError, match="no tasks to evaluate"):
        learner.evaluate([])

    class Nothing:
        def sample(self, count, rng):
            return []

    with pytest.raises(ValueError, match="gave no tasks when asked for 5"):
        learner.fit(Nothing(), 1, verbose=False)
    wide = np.ones((8, 3), np.float32)
    with pytest.raises(ValueError, match="Task 'wide' cannot be trained on.*: Input 0"):
        learner.evaluate([ArrayTask("wide", (wide, wide), (wide, wide), batch_size=4)])


def test_a_stop_requested_before_fit_is_honoured(tmp_path):
    learner = trainer()
    learner.request_stop()
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 0
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert not learner.was_stopped
    assert learner.meta_step == 3


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


@pytest.mark.parametrize("meta_optimizer", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_a_meta_step_is_made_as_a_whole_or_not_at_all(meta_optimizer):
    """Broken off after the meta-update, in validation or in a callback."""

    class Unreachable:
        name = "unreachable"

        def test_batches(self):
            raise ConnectionError

    def explode(step, logs):
        raise KeyError("a bug in a callback")

    bug = keras.callbacks.LambdaCallback(on_epoch_end=explode)
    learner = trainer(meta_optimizer=meta_optimizer(0.1))
    learner.fit(leap_tf.Sinusoids(), 1, verbose=False)
    before = weights(learner)
    with pytest.raises(KeyError):
        learner.fit(leap_tf.Sinusoids(), 3, callbacks=[bug], verbose=False)
    with pytest.raises(ConnectionError):
        learner.fit(leap_tf.Sinusoids(), 3, [Unreachable()], verbose=False)
    assert learner.meta_step == 1
    assert_same(weights(learner), before)
    history = learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
    straight = trainer(meta_optimizer=meta_optimizer(0.1))
    expected = straight.fit(leap_tf.Sinusoids(), 3, verbose=False)
    assert_same(weights(learner), weights(straight))
    assert history.history == expected.history
    assert history.epoch == expected.epoch == [0, 1, 2]


def test_a_stop_that_is_asked_for_in_validation_is_heard_there():
    learner = trainer()
    judged = []

    class Stopping:
        def __init__(self, number):
            self.name = f"task {number}"
            self._task = held_out(1)[0]
            self.test_batches = self._task.test_batches

        def train_batches(self, seed):
            judged.append(self.name)
            learner.request_stop()
            return self._task.train_batches(seed)

    learner.fit(leap_tf.Sinusoids(), 2, [Stopping(number) for number in range(12)], verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 0
    assert len(judged) < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta_optimizer": keras.optimizers.SGD(0.01)}, "meta_optimizer.learning_rate: 0.1"),
        ({"inner_optimizer": keras.optimizers.SGD(0.02, momentum=0.5)}, "inner_optimizer.momentum"),
        ({"learner": leap_tf.Leap("energy")}, "geometry.distance: length then, energy now"),
        ({"learner": leap_tf.Reptile()}, "learner.class: Leap then, Reptile now"),
        ({"steps_per_task": 7}, "steps_per_task: "),
        ({"meta_batch_size": 2}, "meta_batch_size: "),
        ({"stopping": leap_tf.StopWhenStalled()}, "stopping.patience: nothing then, 10 now"),
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


def test_files_of_others_in_the_folder_are_left_alone(tmp_path):
    theirs = ["step-counts.csv", "step-best.index", "step-00000001.txt", "step-size/thesis.txt"]
    for name in theirs:
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
    assert all((tmp_path / name).read_text() == "precious" for name in theirs)
    assert len(list(tmp_path.glob("step-0000000?.index"))) == 3


def test_a_folder_of_another_training_is_not_taken_over(tmp_path):
    trainer().fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path / "other", verbose=False)
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path / "own", verbose=False)
    with pytest.raises(leap_tf.CheckpointMismatchError, match="which it did not reach from there"):
        learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path / "other", verbose=False)
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path / "own", verbose=False)
    again = trainer()
    again.load(tmp_path / "own" / "step-00000003")
    again.fit(leap_tf.Sinusoids(), 4, checkpoint_dir=tmp_path / "own", verbose=False)


def test_a_callback_that_lowers_the_rate_goes_on_where_it_was(tmp_path):
    def fit(learner, meta_steps, **options):
        callback = keras.callbacks.ReduceLROnPlateau("loss", 0.5, 2, mode="min", min_delta=1e9)
        learner.fit(leap_tf.Sinusoids(), meta_steps, callbacks=[callback], verbose=False, **options)
        return float(learner.meta_optimizer.learning_rate)

    straight = [fit(trainer(), meta_steps) for meta_steps in (2, 4, 6)]
    assert len(set(straight)) == 3
    restarted = [fit(trainer(), step, checkpoint_dir=tmp_path) for step in range(1, 7)]
    assert restarted[1::2] == straight


def test_numbers_of_numpy_are_numbers(tmp_path):
    learner = trainer(seed=np.int64(3), steps_per_task=np.int32(5))
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: logs.update(extra=np.float32(0.5))
    )
    learner.fit(leap_tf.Sinusoids(), 1, callbacks=[note], checkpoint_dir=tmp_path, verbose=False)
    again = trainer(seed=3, steps_per_task=5)
    again.fit(leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(again), weights(learner))
    for options in ({"seed": -1}, {"seed": None}, {"steps_per_task": 8.0}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))} must be"):
            leap_tf.MetaTrainer(
                leap_tf.mlp(), MSE, keras.optimizers.SGD(), keras.optimizers.SGD(), **options
            )


def test_tasks_that_end_too_soon_or_never_are_refused():
    class Short:
        name = "short"

        def train_batches(self, seed):
            return held_out(1)[0].train_batches(seed).take(1)

    with pytest.raises(ValueError, match="'short' gave 1 training batches, .* no less than 2"):
        trainer().fit(leap_tf.FiniteTasks([Short()]), 1, verbose=False)

    class Endless:
        name = "endless"

        def test_batches(self):
            return held_out(1)[0].test_batches().repeat()

    with pytest.raises(ValueError, match=r"test_batches\(\) of task 'endless' never end"):
        trainer().evaluate([Endless()])


def test_a_fit_that_stopped_early_does_not_bind_the_next():
    learner = trainer()
    now = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: setattr(learner.model, "stop_training", True)
    )
    learner.fit(leap_tf.Sinusoids(), 3, callbacks=[now], verbose=False)
    assert learner.meta_step == 1
    learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
    assert learner.meta_step == 3


def test_another_criterion_starts_from_nothing(tmp_path):
    def stopper(monitor):
        return keras.callbacks.EarlyStopping(monitor, mode="min", patience=50)

    first = trainer()
    first.fit(
        leap_tf.Sinusoids(),
        2,
        callbacks=[stopper("path_length")],
        checkpoint_dir=tmp_path,
        verbose=False,
    )
    other, second = stopper("loss"), trainer()
    history = second.fit(
        leap_tf.Sinusoids(), 3, callbacks=[other], checkpoint_dir=tmp_path, verbose=False
    )
    assert other.best == history.history["loss"][-1]


def test_diverged_held_out_tasks_are_named_and_left_out_of_means():
    learner = trainer()
    tasks = held_out(2)
    result = learner.evaluate([tasks[0], constant_task("bad", np.nan), tasks[1]])
    assert result.diverged == ("bad",)
    finite = [task.error for task in result.tasks if task.name != "bad"]
    assert result.error == pytest.approx(np.mean(finite))
    assert learner.evaluate([constant_task("bad", np.nan)]).error == np.inf


def test_fresh_task_layers_are_fresh_in_their_state_too():
    model = keras.Sequential(
        [
            keras.layers.Input((1,)),
            keras.layers.Dense(4, name="encoder"),
            keras.layers.BatchNormalization(momentum=0.999999, name="norm"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    learner = trainer(model=model, task_layers=["norm", "head"])
    clean = learner.evaluate(held_out(1)).loss
    model.get_layer("norm").moving_mean.assign(np.full(4, 1e3))
    assert learner.evaluate(held_out(1)).loss == clean


def test_everything_fresh_leaves_nothing_to_learn():
    model = leap_tf.mlp()
    with pytest.raises(ValueError, match="nothing is left to meta-learn"):
        trainer(model=model, task_layers=[layer.name for layer in model.layers])


def test_a_used_meta_optimizer_is_refused():
    used = trainer().meta_optimizer
    with pytest.raises(ValueError, match="has been used already"):
        trainer(meta_optimizer=used)


def test_metrics_log_holds_each_meta_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 3, callbacks=[MetricsLog(path)], verbose=False)
    path.write_text(path.read_text() + '{"meta_step": 4, "los')  # killed while writing
    other = trainer()
    other.fit(leap_tf.Sinusoids(), 1, verbose=False)
    other.fit(leap_tf.Sinusoids(), 3, callbacks=[MetricsLog(path)], verbose=False)
    entries = read_metrics(path)
    assert [entry["meta_step"] for entry in entries] == [1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert entries[0]["gradient_steps"] == 40


class Stream:
    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal):
    stream = Stream(terminal)
    learner = trainer()
    display = ProgressDisplay(seconds=0.0, stream=stream)
    learner.fit(leap_tf.Sinusoids(), 2, callbacks=[display], verbose=False)
    assert "steps/s" in stream.text
    assert ("meta-step 2/2" in stream.text) == (not terminal)
    assert "2/2" in stream.text
    assert ("\r" in stream.text) == terminal
