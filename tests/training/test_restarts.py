"""Restarts: training continues from complete meta-steps, bit-identical, whatever ended it."""

import keras
import numpy as np
import pytest

import leap_tf
from tests.training.sinusoids import (
    assert_same,
    constant_task,
    held_out,
    trainer,
    weights,
    weights_after,
)

MSE = keras.losses.MeanSquaredError()


def test_a_restart_ends_bit_identical(tmp_path):
    straight = trainer()
    expected = straight.fit(
        leap_tf.Sinusoids(), 6, validation_tasks=held_out(2), validation_freq=2, verbose=False
    )
    for meta_steps in (2, 3, 6):  # each a new process, as far as the trainer knows
        resumed = trainer()
        history = resumed.fit(
            leap_tf.Sinusoids(),
            meta_steps,
            validation_tasks=held_out(2),
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


def test_a_requested_stop_saves_whole_meta_steps(tmp_path):
    learner = trainer()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: learner.request_stop() if step == 1 else None
    )
    learner.fit(leap_tf.Sinusoids(), 5, callbacks=[stop], checkpoint_dir=tmp_path, verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 2
    resumed = trainer()
    resumed.fit(leap_tf.Sinusoids(), 5, checkpoint_dir=tmp_path, verbose=False)
    assert_same(weights(resumed), weights_after(5))


@pytest.mark.parametrize("moment", ["in a task", "in validation", "in a callback"])
def test_training_continues_after_an_exception_anywhere(tmp_path, moment):
    learner = trainer()

    def explode(*_):
        raise KeyboardInterrupt

    class Exploding(leap_tf.Sinusoids):
        def sample(self, count, rng):
            if moment == "in a task" and learner.meta_step == 2:
                explode()
            return super().sample(count, rng)

    class ExplodingTask:
        name = "exploding"

        def __init__(self):
            self._task = held_out(1)[0]
            self.train_batches = self._task.train_batches

        def test_batches(self):
            if moment == "in validation" and learner.meta_step == 2:
                explode()
            return self._task.test_batches()

    late = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda step, logs: explode() if moment == "in a callback" and step == 2 else 0
    )
    with pytest.raises(KeyboardInterrupt):
        learner.fit(
            Exploding(),
            5,
            validation_tasks=[ExplodingTask()],
            callbacks=[late],
            checkpoint_dir=tmp_path,
            checkpoint_seconds=0,
            verbose=False,
        )
    moment = "is over"
    resumed = trainer()
    resumed.fit(
        Exploding(), 5, validation_tasks=held_out(1), checkpoint_dir=tmp_path, verbose=False
    )
    assert resumed.meta_step == 5
    assert_same(weights(resumed), weights_after(5))


@pytest.mark.parametrize("meta_optimizer", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_a_meta_step_is_complete_or_undone(meta_optimizer):
    """An error after the meta-update, in validation or in a callback, takes the update back."""

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
        learner.fit(leap_tf.Sinusoids(), 3, validation_tasks=[Unreachable()], verbose=False)
    assert learner.meta_step == 1
    assert_same(weights(learner), before)
    history = learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
    straight = trainer(meta_optimizer=meta_optimizer(0.1))
    expected = straight.fit(leap_tf.Sinusoids(), 3, verbose=False)
    assert_same(weights(learner), weights(straight))
    assert history.history == expected.history
    assert history.epoch == expected.epoch == [0, 1, 2]


def test_a_stop_requested_before_fit_ends_it(tmp_path):
    learner = trainer()
    learner.request_stop()
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 0
    learner.fit(leap_tf.Sinusoids(), 3, checkpoint_dir=tmp_path, verbose=False)
    assert not learner.was_stopped
    assert learner.meta_step == 3


def test_a_stop_requested_in_validation_ends_it_there():
    learner = trainer()
    evaluated = []

    class Stopping:
        def __init__(self, number):
            self.name = f"task {number}"
            self._task = held_out(1)[0]
            self.test_batches = self._task.test_batches

        def train_batches(self, seed):
            evaluated.append(self.name)
            learner.request_stop()
            return self._task.train_batches(seed)

    tasks = [Stopping(number) for number in range(12)]
    learner.fit(leap_tf.Sinusoids(), 2, validation_tasks=tasks, verbose=False)
    assert learner.was_stopped
    assert learner.meta_step == 0
    assert len(evaluated) < 6


def test_the_last_finite_initialization_is_saved_if_all_tasks_diverge(tmp_path):
    class Worsening(leap_tf.Sinusoids):
        def sample(self, count, rng):
            if learner.meta_step < 2:
                return super().sample(count, rng)
            return [constant_task("bad", np.inf)] * count

    learner = trainer()
    with pytest.raises(leap_tf.MetaTrainingDivergedError, match="meta-step 3 .* 5 diverged"):
        learner.fit(Worsening(), 5, checkpoint_dir=tmp_path, verbose=False)
    restored = trainer()
    restored.load(tmp_path / "step-00000002")
    assert restored.meta_step == 2
    assert_same(weights(restored), weights(learner))
    assert all(np.isfinite(array).all() for array in weights(restored))


def test_numpy_numbers_are_accepted(tmp_path):
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


def test_a_call_that_was_passed_long_ago_does_not_bring_back_the_best_weights(tmp_path):
    class StopAt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                trainer.request_stop()

    def fit(meta_steps, *callbacks):
        highest = {"mode": "max", "patience": 50}  # the loss of the first meta-step
        best = keras.callbacks.EarlyStopping("loss", restore_best_weights=True, **highest)
        options = {"callbacks": [best, *callbacks], "checkpoint_dir": tmp_path, "verbose": False}
        trainer.fit(leap_tf.Sinusoids(), meta_steps, **options)
        return [variable.numpy() for variable in trainer.model.variables]

    def new_trainer():
        keras.utils.set_random_seed(0)
        options = {"steps_per_task": 3, "meta_batch_size": 2}
        return leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", "sgd", **options)

    trainer = new_trainer()
    fit(2)
    stopped = fit(6, StopAt())
    assert trainer.meta_step == 4
    trainer = new_trainer()  # the script is run again
    for value, other in zip(fit(2), stopped, strict=True):
        np.testing.assert_array_equal(value, other)
