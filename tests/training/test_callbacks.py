"""Keras callbacks, logs and progress around the outer loop."""

import json

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.training import JSONLogger, ProgressDisplay, read_metrics
from leap_tf.training.callbacks import HealthWarnings
from tests.training.sinusoids import assert_same, held_out, trainer, weights


def test_a_meta_step_is_an_epoch_to_keras_callbacks(tmp_path):
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


def test_a_callback_that_lowers_the_rate_continues_after_a_restart(tmp_path):
    def fit(learner, meta_steps, **options):
        callback = keras.callbacks.ReduceLROnPlateau("loss", 0.5, 2, mode="min", min_delta=1e9)
        learner.fit(leap_tf.Sinusoids(), meta_steps, callbacks=[callback], verbose=False, **options)
        return float(learner.meta_optimizer.learning_rate)

    straight = [fit(trainer(), meta_steps) for meta_steps in (2, 4, 6)]
    assert len(set(straight)) == 3
    restarted = [fit(trainer(), step, checkpoint_dir=tmp_path) for step in range(1, 7)]
    assert restarted[1::2] == straight


def test_the_next_fit_continues_after_an_early_stop():
    learner = trainer()
    now = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: setattr(learner.model, "stop_training", True)
    )
    learner.fit(leap_tf.Sinusoids(), 3, callbacks=[now], verbose=False)
    assert learner.meta_step == 1
    learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
    assert learner.meta_step == 3


def test_another_monitored_metric_starts_anew(tmp_path):
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


def test_the_json_log_has_each_meta_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    learner = trainer()
    learner.fit(leap_tf.Sinusoids(), 3, callbacks=[JSONLogger(path)], verbose=False)
    path.write_text(path.read_text() + '{"meta_step": 4, "los')  # killed while writing
    other = trainer()
    other.fit(leap_tf.Sinusoids(), 1, verbose=False)
    other.fit(leap_tf.Sinusoids(), 3, callbacks=[JSONLogger(path)], verbose=False)
    entries = read_metrics(path)
    assert [entry["meta_step"] for entry in entries] == [1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert entries[0]["gradient_steps"] == 40


def warnings_of(norms, caplog):
    return messages_of(caplog, [{"meta_gradient_norm": norm} for norm in norms])


def messages_of(caplog, all_logs, updates=None):
    """Returns the warnings of meta-steps with these metrics and lengths of meta-updates."""
    model = leap_tf.mlp(hidden=())
    callback = HealthWarnings()
    callback.set_model(model)
    callback.on_train_begin()
    caplog.clear()
    kernel = model.trainable_variables[0]
    for meta_step, logs in enumerate(all_logs):
        callback.on_epoch_begin(meta_step)
        kernel.assign(kernel + (updates[meta_step] if updates else 0.0))
        callback.on_epoch_end(meta_step, {"meta_gradient_norm": 1.0, "tasks_skipped": 0, **logs})
    return library_messages(caplog)


def library_messages(caplog):
    """Returns what leap_tf logged, since TensorFlow's warnings depend on the tests before."""
    return [record.getMessage() for record in caplog.records if record.name == "leap_tf"]


def test_skipped_tasks_are_reported_once(caplog):
    (message,) = messages_of(caplog, [{"tasks_skipped": skipped} for skipped in (0, 2, 0, 1)])
    assert message.startswith("Tasks are skipped: at meta-step 2 the loss")
    assert "of 2 tasks were not finite" in message


def test_a_collapse_is_reported_once(caplog):
    (message,) = warnings_of([0.15, 0.2, 0.1, *[1e-4] * 5, 0.2, *[1e-4] * 3], caplog)
    assert "at meta-step 6 its norm is 0.0001, and its median so far is 0.05" in message


def test_convergence_spikes_and_single_small_meta_gradients_are_no_collapse(caplog):
    assert not warnings_of([1.0, 0.5, 0.1, 0.03, 0.02, 0.02, 0.02, 0.02], caplog)
    assert not warnings_of([200.0, 1.0, 1.0, 1.0, 1.0], caplog)
    assert not warnings_of([1.0, 1.0, 1e-3, 1e-3, 1.0, 1e-3], caplog)
    assert not warnings_of([0.0, 0.0, 0.0, 0.0], caplog)


def test_a_network_that_dies_in_meta_training_is_reported(caplog):
    model = leap_tf.mlp()
    model.layers[-1].trainable = False  # as a head that is not meta-learned
    learner = trainer(model=model)

    def die(meta_step, logs):
        if meta_step == 4:
            for layer in model.layers[:-1]:
                if layer.weights:
                    layer.bias.assign(0 * layer.bias - 100.0)

    dying = keras.callbacks.LambdaCallback(on_epoch_end=die)
    history = learner.fit(leap_tf.Sinusoids(), 8, callbacks=[dying], verbose=False)
    assert history.history["meta_gradient_norm"][-1] == 0.0
    (message,) = library_messages(caplog)
    assert "at meta-step 8 its norm is 0," in message


def moved(distance, length=1.0, loss=1.0):
    return {"distance_moved": distance, "path_length": length, "loss": loss}


def test_meta_updates_longer_than_the_way_of_the_tasks_are_reported_once(caplog):
    updates = [9.0, 3.1, 2.9, 3.1, 2.9, 3.1, 2.9, 3.1, 2.9, 3.2, 3.1, 3.1, 3.1, 2.9, 2.9, 2.9, 3.1]
    (message,) = messages_of(caplog, [moved(2.0)] * len(updates), updates)
    assert message.startswith(
        "Meta-updates are too long: at meta-step 10 the initialization moved by 3.2, and tasks "
        "move by 2 on average."
    )


def test_meta_updates_as_long_as_the_way_of_the_tasks_are_healthy(caplog):
    assert not messages_of(caplog, [moved(2.0)] * 12, [2.9] * 12)
    assert not messages_of(caplog, [moved(2.0)] * 12, [9.0] * 4 + [0.5] * 8)  # Adam's first steps
    assert not messages_of(caplog, [{}] * 12, [9.0] * 12)  # a learner without a distance


def test_tasks_that_get_harder_are_reported_once(caplog):
    first = [moved(9.0, length, loss) for length, loss in zip(range(1, 11), range(11, 1, -1))]
    harder = [moved(9.0, 10.5, 11.5)] * 10
    (message,) = messages_of(caplog, [*first, *harder, *harder], [0.0] * 30)
    assert message.startswith("Meta-training makes tasks harder: at meta-step 20")
    assert "10.5 and 11.5, above the largest of the first ten meta-steps (10 and 11)" in message
    longer, higher = [moved(9.0, 20.0, 10.9)] * 20, [moved(9.0, 9.9, 20.0)] * 20
    for healthy in (longer, higher, [*harder[:9], moved(9.0), *harder[:9]]):
        assert not messages_of(caplog, [*first, *healthy], [0.0] * 30)


@pytest.mark.parametrize(("rate", "signs"), [(0.02, []), (0.1, ["Meta-updates are too long"])])
def test_a_meta_rate_that_is_too_high_is_reported_from_fit(rate, signs, caplog):
    learner = trainer(meta_optimizer=keras.optimizers.SGD(rate))
    learner.fit(leap_tf.Sinusoids(), 12, verbose=False)
    assert [each.split(":")[0] for each in library_messages(caplog)] == signs


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
