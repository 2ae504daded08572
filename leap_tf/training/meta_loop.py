"""The outer loop: train a meta-batch of tasks at the same time, move the initialization, repeat.

The Keras model that is given *is* the initialization, before, during and after: its variables
change at meta-updates only, since tasks are trained functionally, on copies. Every random
number is derived from (seed, meta-step, task), so results depend neither on the number of
tasks in parallel nor on where a run was interrupted.

    one meta-step:  sample tasks ── pool.map(train one task) ── mean of the finite meta-gradients
                    ── meta_optimizer.apply ── validate ── callbacks ── checkpoint

What it is to train on a task, the loop leaves to a runner: supervised batches and games alike.
"""

import abc
import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import refuse_hidden_state, refuse_loss_scaling
from leap_tf.learners import Learner
from leap_tf.tasks import Task, TaskDistribution
from leap_tf.training.checkpoint import (
    CheckpointFolder,
    CheckpointMismatchError,
    TrainingState,
)
from leap_tf.training.meta_update import MetaTrainingDivergedError, apply_if_finite
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.seeded_task import SeededTask, TrainedTask
from leap_tf.training.stopping import (
    recall_stopping,
    refuse_restoring_weights,
    remember_stopping,
)
from leap_tf.training.task_pool import TaskPool

# Streams of random numbers, kept apart by the second word of their seed.
_TRAINING, _VALIDATION, _EVALUATION = range(3)


class _StopRequestedError(Exception):
    """A stop was asked for in the middle of a meta-step."""


class Runner(Protocol):
    """Trains on single tasks, from the present initialization.

    Attributes:
        meta_variables: the variables that are meta-learned, those of the learner among them.
        lasting_state: other variables that keep what a task left in them; usually none.
    """

    meta_variables: list[keras.Variable]
    lasting_state: list[keras.Variable]

    def train(self, seeded: SeededTask) -> TrainedTask:
        """Trains on a task and returns what the learner makes of it."""


class Judge(Protocol):
    """Adapts to single tasks, from the present initialization, and judges how well it went."""

    def evaluate(self, seeded: SeededTask) -> Any:
        """Trains on a task without a meta-learner and returns how well that went."""


class Summary(Protocol):
    """What was found on several tasks."""

    def metrics(self) -> Mapping[str, float]:
        """Returns their means, by name."""


class MetaLoop(abc.ABC):
    """Meta-trains, whatever the tasks are.

    Args:
        model: the Keras model that callbacks see.
        meta_optimizer: the unused Keras optimizer that moves the initialization.
        inner_optimizer: the Keras optimizer that trains on tasks.
        learner: the meta-learner; the runner has built it.
        runner: trains on tasks.
        judge: judges on them; may be the same.
        variables: all that must be saved beside the meta-optimizer.
        steps_per_task: gradient steps on a task.
        meta_batch_size: tasks in a meta-step.
        pool: where tasks run.
        stopping: the rule by which tasks end early, or None.
        seed: decides everything random.

    Raises:
        ValueError: an optimizer or a number cannot be used, and why.
    """

    def __init__(
        self,
        model: keras.Model,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        runner: Runner,
        judge: Judge,
        variables: Sequence[keras.Variable],
        steps_per_task: int,
        meta_batch_size: int,
        pool: TaskPool,
        stopping: object | None,
        seed: int,
    ):
        check_at_least("steps_per_task", steps_per_task, learner.minimum_steps)
        check_at_least("meta_batch_size", meta_batch_size, 1)
        if learner.sequential and meta_batch_size != 1:
            raise ValueError(
                f"{type(learner).__name__} trains on one task after another, each from where the "
                f"last one ended. Set meta_batch_size to 1; it is {meta_batch_size}."
            )
        refuse_hidden_state(meta_optimizer, role="meta_optimizer")
        refuse_loss_scaling(meta_optimizer)
        learner.check(meta_optimizer, inner_optimizer, stopping)
        if meta_optimizer.built:
            raise ValueError("meta_optimizer has been used already. Pass a new optimizer.")
        self.model = model
        self.meta_optimizer = meta_optimizer
        self.learner = learner
        self.steps_per_task = steps_per_task
        self.meta_batch_size = meta_batch_size
        self.seed = seed
        self.meta_variables = list(runner.meta_variables)
        self._runner = runner
        self._judge = judge
        self._pool = pool
        meta_optimizer.build(self.meta_variables)
        self._state = TrainingState(variables, meta_optimizer, seed, type(learner).__name__)
        self._stop_requested = False
        self._was_stopped = False
        self._torn = False  # whether the weights are those of a meta-step that did not end

    @property
    @abc.abstractmethod
    def learner_variables(self) -> list[keras.Variable]:
        """The learner's own variables, which are meta-learned beside the initialization."""

    @abc.abstractmethod
    def summary(self, results: Sequence[Any]) -> Summary:
        """Returns what the judge found on several tasks as one."""

    @property
    def meta_step(self) -> int:
        """Meta-updates made so far."""
        return self._state.progress.meta_step

    def fit(
        self,
        task_distribution: TaskDistribution,
        meta_steps: int,
        validation_tasks: Sequence[Task] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        validation_freq: int = 1,
        validation_steps: int | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
        checkpoint_seconds: float = 30.0,
        verbose: bool = True,
    ) -> keras.callbacks.History:
        """Meta-trains until `meta_steps` meta-updates have been made in all.

        With `checkpoint_dir`, training goes on from what is there. A run that was killed and
        started again ends bit-identical to one that was not.

        Args:
            task_distribution: where the tasks of each meta-batch come from.
            meta_steps: meta-updates to have made in the end, those before a restart included.
            validation_tasks: tasks to adapt to and judge by, as `evaluate` does.
            callbacks: Keras callbacks; a meta-step is their epoch, the model's weights are the
                initialization. Metrics: `loss` and `error` (means over the steps and tasks of
                the meta-batch), `final_loss`, `meta_gradient_norm`, `gradient_steps`,
                `tasks_skipped`, the learner's own, and `val_loss`, `val_error`, `val_auc`,
                `val_final_loss`, `val_path_length`, `val_path_energy`, `val_diverged`.
            validation_freq: meta-steps from one validation to the next.
            validation_steps: gradient steps on a validation task; `steps_per_task` by default.
            checkpoint_dir: where checkpoints are kept.
            checkpoint_seconds: least time between two of them. One is always made at the end
                and when a stop is asked for; a restart repeats at most this much work.
            verbose: whether to show progress.

        Returns:
            The `History` of all meta-steps, those before a restart included.

        Raises:
            MetaTrainingDivergedError: all tasks of a meta-batch diverged.
            ValueError: a task has no batches, or not what the model takes.
            CheckpointMismatchError, CheckpointUnreadableError: the checkpoints are of another
                run, or none of them can be read.
            RuntimeError: an earlier `fit` was broken off in mid-step and left no checkpoint.
        """
        check_at_least("validation_freq", validation_freq, 1)
        if validation_steps is None:
            validation_steps = self.steps_per_task
        check_at_least("validation_steps", validation_steps, 1)
        if self.learner_variables:
            refuse_restoring_weights(callbacks)
        folder = CheckpointFolder(os.fspath(checkpoint_dir)) if checkpoint_dir else None
        restored = self._restore(folder)
        self._was_stopped = False
        if not restored:
            self._state.progress.stopped = False
        self.model.stop_training = False
        history = keras.callbacks.History()
        shown = [ProgressDisplay()] if verbose else []
        callback_list = keras.callbacks.CallbackList(
            [*callbacks, history, *shown], model=self.model, epochs=meta_steps, verbose=0
        )
        progress = self._state.progress
        with _optimizer_of(self.model, self.meta_optimizer):
            callback_list.on_train_begin()
            history.history = {name: list(values) for name, values in progress.history.items()}
            history.epoch = list(progress.epochs)
            if restored:
                recall_stopping(self._state, callbacks)
            last_save = time.monotonic()
            try:
                while progress.meta_step < meta_steps and not progress.stopped:
                    epoch = progress.meta_step
                    callback_list.on_epoch_begin(epoch)
                    gradients, state, logs = self._meta_gradients(task_distribution, epoch)
                    self._torn = True
                    if not apply_if_finite(self.meta_optimizer, gradients, self.meta_variables):
                        self._torn = False
                        raise MetaTrainingDivergedError(
                            f"Meta-step {epoch + 1} overflows and is not made. Lower the meta rate."
                        )
                    for variable, value in zip(self._runner.lasting_state, state):
                        variable.assign(value)
                    if validation_tasks and (epoch + 1) % validation_freq == 0:
                        found = self._evaluate(validation_tasks, validation_steps, _VALIDATION)
                        logs |= {f"val_{name}": value for name, value in found.metrics().items()}
                    progress.meta_step += 1
                    callback_list.on_epoch_end(epoch, logs)
                    progress.stopped = bool(self.model.stop_training)
                    progress.history, progress.epochs = history.history, history.epoch
                    remember_stopping(self._state, callbacks)
                    self._torn = False
                    if folder and time.monotonic() - last_save >= checkpoint_seconds:
                        folder.save(self._state)
                        last_save = time.monotonic()
            except _StopRequestedError:
                self._stop_requested, self._was_stopped = False, True
                # EarlyStopping would put the best weights in the place of the last.
                for callback in callback_list.callbacks:
                    if not isinstance(callback, keras.callbacks.EarlyStopping):
                        callback.on_train_end()
            else:
                self._stop_requested = False
                if folder:
                    folder.save(self._state)
                    folder = None
                callback_list.on_train_end()
            finally:
                if folder and not self._torn and progress.meta_step:
                    folder.save(self._state)
        return history

    def request_stop(self) -> None:
        """Asks `fit` to save and return soon; safe to call from a signal handler.

        The meta-step that is under way is dropped, and made again when training goes on.
        """
        self._stop_requested = True

    @property
    def was_stopped(self) -> bool:
        """Whether the last `fit` returned early because it was asked to."""
        return self._was_stopped

    def evaluate(self, tasks: Iterable[Task], steps: int | None = None) -> Any:
        """Adapts to each task from the initialization; returns the `summary` of how it went."""
        if steps is None:
            steps = self.steps_per_task
        check_at_least("steps", steps, 1)
        return self._evaluate(tasks, steps, _EVALUATION)

    def evaluation_seed(self, index: int) -> int:
        """Returns the seed that `evaluate` gives the task at this place among its tasks."""
        return self._seed_of_judged(_EVALUATION, index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes initialization, meta-optimizer, history and random state to a checkpoint."""
        self._state.save(os.fspath(path))

    def load(self, path: str | os.PathLike) -> None:
        """Reads what `save` wrote.

        Raises:
            CheckpointMismatchError: it is of another model, meta-optimizer or seed.
            CheckpointUnreadableError: its files are missing or damaged.
        """
        self._state.load(os.fspath(path))
        self._torn = False

    def _restore(self, folder: CheckpointFolder | None) -> bool:
        """Goes on from a folder's checkpoint, if this trainer has not moved on by itself."""
        restored = False
        if folder and (self._torn or not self.meta_step):
            restored = folder.restore(self._state)
            self._torn = self._torn and not restored
        elif folder and folder.newest_step > self.meta_step:
            raise CheckpointMismatchError(
                f"The folder holds a checkpoint of meta-step {folder.newest_step}, and this "
                f"trainer is at {self.meta_step}. Give another checkpoint_dir, or a new trainer "
                "to go on from the folder."
            )
        if self._torn:
            raise RuntimeError(
                "An earlier fit was broken off in the middle of a meta-step, so the weights are "
                "those of no whole number of meta-steps. Load a checkpoint, or build the model and "
                "the trainer again."
            )
        return restored

    def _meta_gradients(
        self, distribution, epoch
    ) -> tuple[list[tf.Tensor], Sequence[tf.Tensor], dict[str, Any]]:
        """Trains the tasks of a meta-batch: mean meta-gradient, lasting state, and metrics."""
        rng = np.random.default_rng([self.seed, _TRAINING, epoch])
        tasks = self.learner.draw_tasks(distribution, self.meta_batch_size, epoch, rng)
        if not tasks:
            raise ValueError(
                f"{distribution!r} gave no tasks when asked for {self.meta_batch_size}."
            )
        steps = self.learner.training_steps(self.steps_per_task, self.meta_batch_size)
        seeded = [SeededTask(task, int(rng.integers(2**31)), steps) for task in tasks]
        total: Sequence[tf.Tensor] | None = None
        state: Sequence[tf.Tensor] = ()
        metrics: list[Mapping[str, float]] = []
        skipped = 0
        with contextlib.closing(self._pool.map(self._runner.train, seeded)) as results:
            for result in results:
                if self._stop_requested:
                    raise _StopRequestedError
                if not result.finite:
                    skipped += 1
                    continue
                gradient = result.meta_gradient
                total = gradient if total is None else [a + b for a, b in zip(total, gradient)]
                state = result.state
                metrics.append(result.metrics)
        if total is None:
            raise MetaTrainingDivergedError(
                f"All {skipped} tasks of meta-step {epoch + 1} diverged (loss or meta-gradient "
                "not finite). The initialization before it is kept. Lower the inner learning "
                "rate, clip its gradients, or lower the meta learning rate."
            )
        mean = [gradient / tf.cast(len(metrics), gradient.dtype) for gradient in total]
        logs: dict[str, Any] = {
            name: float(np.mean([task[name] for task in metrics])) for name in metrics[0]
        }
        logs["gradient_steps"] = sum(task["gradient_steps"] for task in metrics)
        logs["meta_gradient_norm"] = float(tf.linalg.global_norm(mean))
        logs["tasks_skipped"] = skipped
        return [tf.cast(g, v.dtype) for g, v in zip(mean, self.meta_variables)], state, logs

    def _evaluate(self, tasks, steps, stream):
        seeded = [
            SeededTask(
                self.learner.judged_task(task),
                self._seed_of_judged(stream, index),
                steps,
            )
            for index, task in enumerate(tasks)
        ]
        if not seeded:
            raise ValueError("There are no tasks to evaluate.")
        return self.summary(list(self._pool.map(self._judge.evaluate, seeded)))

    def _seed_of_judged(self, stream, index):
        return int(np.random.default_rng([self.seed, stream, index]).integers(2**31))


@contextlib.contextmanager
def _optimizer_of(model, optimizer):
    """Shows Keras callbacks the meta-optimizer as the model's, for the time of a `fit`."""
    had_one, before = hasattr(model, "optimizer"), getattr(model, "optimizer", None)
    model.optimizer = optimizer
    try:
        yield
    finally:
        if had_one:
            model.optimizer = before
        else:
            del model.optimizer


def check_at_least(name, number, least):
    if number < least:
        raise ValueError(f"{name} must be at least {least}, and is {number}.")
