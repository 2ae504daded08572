"""Each callback of Keras does under `fit` what its docstring says, or is refused."""

import inspect

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.tasks import FiniteTasks
from leap_tf.training.callbacks import checked_callbacks
from tests.training.sinusoids import assert_same, constant_task, held_out, trainer, weights

TASKS = FiniteTasks(held_out(3))


def short(**options):
    layers = [keras.Input((1,)), keras.layers.Dense(1, name="head")]
    model = keras.Sequential(layers, name="small")
    return trainer(model=model, **{"steps_per_task": 2, "meta_batch_size": 2} | options)


def fit(*callbacks, meta_steps=3, learner=None, **options):
    learner = learner or short()
    options = {"validation_tasks": TASKS.tasks[:2], "verbose": False} | options
    return learner, learner.fit(TASKS, meta_steps, callbacks=callbacks, **options)


def base_callback(folder, monkeypatch):
    fit(keras.callbacks.Callback())


def callbacks_in_a_list(folder, monkeypatch):
    seen = []
    inner = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    learner = short()
    learner.fit(TASKS, 2, callbacks=keras.callbacks.CallbackList([inner]), verbose=False)
    learner.fit(TASKS, 3, callbacks=inner, verbose=False)
    assert seen == [0, 1, 2]


def csv_logger(folder, monkeypatch):
    fit(keras.callbacks.CSVLogger(folder / "log.csv"), meta_steps=2)
    header, *rows = (folder / "log.csv").read_text().splitlines()
    assert {"epoch", "loss", "val_error"} <= set(header.split(","))
    assert [row.split(",")[0] for row in rows] == ["0", "1"]


def early_stopping(folder, monkeypatch):
    stopping = keras.callbacks.EarlyStopping("val_error", patience=1, min_delta=1e9)
    _, history = fit(stopping, meta_steps=9)
    assert len(history.epoch) == 2  # the first is the best, and an improvement of 1e9 impossible
    assert stopping.best == history.history["val_error"][0]


def history(folder, monkeypatch):
    own = keras.callbacks.History()
    _, returned = fit(own)
    assert own.history == returned.history
    assert len(own.history["val_auc"]) == 3


def lambda_callback(folder, monkeypatch):
    called = []
    names = [
        f"on_{kind}_{moment}"
        for kind in ("train", "epoch", "train_batch", "test", "test_batch")
        for moment in ("begin", "end")
    ]
    hooks = {name: lambda *a, name=name, **k: called.append((name, *a)) for name in names}
    fit(keras.callbacks.LambdaCallback(**hooks), meta_steps=1)
    order = [(name, *arguments[:-1]) for name, *arguments in called if "batch" not in name]
    assert [name for name, *_ in order] == [
        *("on_train_begin", "on_epoch_begin", "on_test_begin", "on_test_end"),
        *("on_epoch_end", "on_train_end"),
    ]
    batches = [(name, arguments[0]) for name, *arguments in called if "batch" in name]
    pairs = [("begin", 0), ("end", 0), ("begin", 1), ("end", 1)]
    assert batches == [
        (f"on_{kind}_batch_{moment}", index)
        for kind in ("train", "test")
        for moment, index in pairs
    ]


def learning_rate_scheduler(folder, monkeypatch):
    learner, history = fit(keras.callbacks.LearningRateScheduler(lambda step, rate: rate / 2))
    assert history.history["learning_rate"] == pytest.approx([0.01, 0.005, 0.0025])
    assert float(learner.meta_optimizer.learning_rate) == pytest.approx(0.0025)


def model_checkpoint(folder, monkeypatch):
    best = keras.callbacks.ModelCheckpoint(
        folder / "best.keras", monitor="val_error", save_best_only=True
    )
    often = keras.callbacks.ModelCheckpoint(
        folder / "{epoch}-{batch}.weights.h5", save_freq=3, save_weights_only=True
    )
    learner, history = fit(best, often)
    assert best.best == min(history.history["val_error"])
    assert sorted(path.name for path in folder.glob("*.h5")) == [
        *("2-1.weights.h5", "3-2.weights.h5"),
    ]
    if np.argmin(history.history["val_error"]) == 2:
        assert_same(keras.saving.load_model(folder / "best.keras").get_weights(), weights(learner))


def orbax_checkpoint(folder, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    fit(keras.callbacks.OrbaxCheckpoint(folder / "orbax"))
    assert any((folder / "orbax").iterdir())


def progbar_logger(folder, monkeypatch):
    printed = []
    monkeypatch.setattr("sys.stdout.write", printed.append)
    monkeypatch.setattr("sys.stderr.write", lambda text: pytest.fail(f"a second display: {text}"))
    bar = keras.callbacks.ProgbarLogger()
    fit(bar, meta_steps=2, verbose=True)
    text = "".join(printed)
    assert bar.target == 2
    assert "Epoch 2/2" in text
    assert "2/2" in text
    assert "val_error" in text


def reduce_lr_on_plateau(folder, monkeypatch):
    callback = keras.callbacks.ReduceLROnPlateau("val_error", 0.5, patience=1, min_delta=1e9)
    learner, _ = fit(callback)
    assert float(learner.meta_optimizer.learning_rate) == pytest.approx(0.02 / 4)


def remote_monitor(folder, monkeypatch):
    requests = pytest.importorskip("requests")
    sent = []
    monkeypatch.setattr(requests, "post", lambda url, json, headers: sent.append(json))
    fit(keras.callbacks.RemoteMonitor(send_as_json=True), meta_steps=2)
    assert [each["epoch"] for each in sent] == [0, 1]
    assert "val_error" in sent[0]


def tensor_board(folder, monkeypatch):
    board = keras.callbacks.TensorBoard(
        folder / "board",
        histogram_freq=1,
        write_images=True,
        update_freq="batch",
        write_steps_per_second=True,
        profile_batch=2,
    )
    fit(board, leap_tf.training.TensorBoardLogger(folder / "own"), meta_steps=2)
    event_processing = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for part in ("board/train", "board/validation", "own/train", "own/validation"):
        events = event_processing.EventAccumulator(str(folder / part))
        events.Reload()
        found[part] = {tag: len(events.Tensors(tag)) for tag in events.Tags()["tensors"]}
    assert found["board/train"]["batch_loss"] == 4
    assert found["board/train"]["small/head/kernel/histogram"] == 2
    assert found["board/validation"]["evaluation_error_vs_iterations"] == 2
    for part in ("board", "own"):
        assert found[f"{part}/train"]["epoch_loss"] == 2
        assert found[f"{part}/validation"]["epoch_error"] == 2
    assert "batch_loss" not in found["own/train"]


def terminate_on_nan(folder, monkeypatch):
    tasks = FiniteTasks([constant_task("good", 1.0), constant_task("bad", np.nan)])
    learner = short()
    stop = keras.callbacks.TerminateOnNaN()
    history = learner.fit(tasks, 5, callbacks=[stop], verbose=False)
    assert history.history["tasks_skipped"] == [1]
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        short().fit(
            tasks, 5, callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)], verbose=False
        )


def backup_and_restore(folder, monkeypatch):
    with pytest.raises(ValueError, match="BackupAndRestore cannot .*checkpoint_dir"):
        fit(keras.callbacks.BackupAndRestore(folder / "backup"))


def swap_ema_weights(folder, monkeypatch):
    with pytest.raises(ValueError, match="SwapEMAWeights cannot .*ReduceLROnPlateau"):
        fit(keras.callbacks.SwapEMAWeights())


TRIALS = {
    "BackupAndRestore": backup_and_restore,
    "CSVLogger": csv_logger,
    "Callback": base_callback,
    "CallbackList": callbacks_in_a_list,
    "EarlyStopping": early_stopping,
    "History": history,
    "LambdaCallback": lambda_callback,
    "LearningRateScheduler": learning_rate_scheduler,
    "ModelCheckpoint": model_checkpoint,
    "OrbaxCheckpoint": orbax_checkpoint,
    "ProgbarLogger": progbar_logger,
    "ReduceLROnPlateau": reduce_lr_on_plateau,
    "RemoteMonitor": remote_monitor,
    "SwapEMAWeights": swap_ema_weights,
    "TensorBoard": tensor_board,
    "TerminateOnNaN": terminate_on_nan,
}
IN_KERAS = [name for name, value in vars(keras.callbacks).items() if inspect.isclass(value)]


@pytest.mark.parametrize("name", sorted(IN_KERAS))
def test_a_callback_of_keras_works_or_is_refused(tmp_path, monkeypatch, name):
    assert name in TRIALS, f"Keras has a new callback, {name}: try it under fit(), and add it here."
    TRIALS[name](tmp_path, monkeypatch)


def test_every_trial_is_of_a_callback_of_keras():
    assert set(TRIALS) == set(IN_KERAS)


def test_parameters_and_logs_are_those_of_keras():
    seen = {}

    class Spy(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen["params"] = dict(self.params)

        def on_train_batch_end(self, batch, logs=None):
            seen.setdefault("tasks", []).append(logs["loss"])

        def on_test_batch_end(self, batch, logs=None):
            seen.setdefault("tests", []).append(logs["error"])

        def on_test_end(self, logs=None):
            seen["test"] = logs["error"]

        def on_train_end(self, logs=None):
            seen["last"] = logs

    learner, history = fit(Spy(), meta_steps=1)
    assert seen["params"] == {"epochs": 1, "steps": 2, "verbose": 0}
    assert np.mean(seen["tasks"]) == pytest.approx(history.history["loss"][0])
    assert np.mean(seen["tests"]) == pytest.approx(seen["test"])
    assert seen["test"] == history.history["val_error"][0] == seen["last"]["val_error"]
    evaluation = learner.evaluate(TASKS.tasks, callbacks=[Spy()])
    assert seen["tests"][2:] == [task.error for task in evaluation.tasks]
    assert seen["test"] == evaluation.error
    assert not hasattr(learner.model, "optimizer")


def test_a_task_that_failed_has_no_logs():
    class Failing:
        name = "failing"

        def train_batches(self, seed):
            raise ConnectionError("by design")

    seen = []
    hook = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append((batch, "loss" in logs))
    )
    short().fit(
        [Failing(), TASKS.tasks[0]], 1, callbacks=[hook], tolerated_failures=0.5, verbose=False
    )
    assert sorted(worked for _, worked in seen) == [False, True]
    assert [batch for batch, _ in seen] == [0, 1]


def test_the_best_of_a_model_checkpoint_outlives_a_restart(tmp_path):
    def run(meta_steps):
        callback = keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor="val_error", save_best_only=True
        )
        _, history = fit(callback, meta_steps=meta_steps, checkpoint_dir=tmp_path / "checkpoints")
        return callback.best, min(history.history["val_error"])

    for meta_steps in (1, 3):
        best, lowest = run(meta_steps)
        assert best == lowest


@pytest.mark.parametrize("how", ["interrupted", "loaded"])
def test_callbacks_remember_after_an_interruption_and_after_load(tmp_path, how):
    """A plateau of three meta-steps, of which two were before the interruption."""

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def plateau():
        return keras.callbacks.ReduceLROnPlateau(
            "loss", factor=0.1, patience=3, min_delta=1e9, min_lr=0.0
        )

    learner = short()
    before = float(learner.meta_optimizer.learning_rate)
    with pytest.raises(KeyboardInterrupt):
        fit(plateau(), Interrupt(), meta_steps=6, learner=learner)
    if how == "loaded":
        learner.save(tmp_path / "saved")
        learner = short()
        learner.load(tmp_path / "saved")
    fit(plateau(), meta_steps=4, learner=learner)
    assert float(learner.meta_optimizer.learning_rate) == pytest.approx(0.1 * before)
    fit(plateau(), meta_steps=6, learner=learner)  # begins anew, since the last fit() had ended
    assert float(learner.meta_optimizer.learning_rate) == pytest.approx(0.1 * before)


def test_modes_of_other_metrics_and_of_the_user_stay():
    def mode(monitor, given="auto"):
        (callback,) = checked_callbacks(keras.callbacks.EarlyStopping(monitor, mode=given), False)
        return callback.mode

    assert mode("val_auc") == mode("error") == mode("path_energy") == "min"
    assert mode("val_final_reward") == "max"
    assert mode("val_error", "max") == "max"
    assert mode("accuracy") == "auto"


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="is no keras.callbacks.Callback"):
        fit(print)
