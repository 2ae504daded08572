"""The outer loop: train a meta-batch of tasks at the same time, move the initialization, repeat.

The Keras model that is given *is* the initialization, before, during and after: its variables
change at meta-updates only, since tasks are trained functionally, on copies. Every random
number is derived from (seed, meta-step, task), so results depend neither on the number of
tasks in parallel nor on where a run was interrupted.

    one meta-step:  sample tasks ── pool.map(train one task) ── mean of the finite meta-gradients
                    ── meta_optimizer.apply ── validate ── callbacks ── checkpoint
"""

import contextlib
import copy
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import FunctionalModel, refuse_hidden_state, refuse_loss_scaling
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners import Leap, Learner
from leap_tf.tasks import Task, TaskDistribution
from leap_tf.training.checkpoint import (
    CheckpointFolder,
    CheckpointMismatchError,
    TrainingState,
)
from leap_tf.training.evaluation import Evaluation
from leap_tf.training.mastery import StopWhenMastered
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.stopping import (
    recall_stopping,
    refuse_restoring_weights,
    remember_stopping,
)
from leap_tf.training.task_pool import TaskPool, ThreadPool
from leap_tf.training.task_runner import SeededTask, TaskRunner
from leap_tf.training.threads import available_cores

# Streams of random numbers, kept apart by the second word of their seed.
_TRAINING, _VALIDATION, _EVALUATION = range(3)


class MetaTrainingDivergedError(FloatingPointError):
    """Every task of a meta-batch diverged; the last good initialization is kept."""


class _StopRequestedError(Exception):
    """A stop was asked for in the middle of a meta-step."""


class MetaTrainer:
    """Meta-learns the initialization of a Keras model, and judges it.

    Args:
        model: a built Keras model; it is the initialization and holds what was learned.
        loss: the loss of every task.
        inner_optimizer: the Keras optimizer that trains on tasks, fresh for each.
        meta_optimizer: the unused Keras optimizer that moves the initialization.
        learner: the meta-learner; `Leap()` by default.
        steps_per_task: gradient steps on a task, fewer if its batches end before; learners with
            query batches need all of them. Those of second order record every step: five to ten
            are usual.
        meta_batch_size: tasks in a meta-step.
        parallel_tasks: tasks trained at the same time, by default one per core. Call
            `leap_tf.one_thread_per_task()` first of all for full speed. Results do not
            depend on it.
        task_layers: names of layers that start fresh on every task and are not meta-learned.
        error: the figure on curves and tables, see `leap_tf.functional.FunctionalModel`.
        stopping: when training on a task ends before its steps are used up; never by default,
            and never in evaluation.
        transductive: whether held-out examples are judged with the statistics of their own
            batch in batch norm. By default the running ones of the task's training are used.
        seed: decides everything random.

    Raises:
        ValueError: the model, an optimizer or a number cannot be used, and why.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: keras.losses.Loss,
        inner_optimizer: keras.optimizers.Optimizer,
        meta_optimizer: keras.optimizers.Optimizer,
        learner: Learner | None = None,
        steps_per_task: int = 100,
        meta_batch_size: int = 20,
        parallel_tasks: int | None = None,
        task_layers: Sequence[str] = (),
        error: ErrorFunction | None = None,
        stopping: StopWhenMastered | None = None,
        transductive: bool = False,
        seed: int = 0,
    ):
        learner = copy.copy(learner) if learner else Leap()  # it will know this model's variables
        _check_at_least("steps_per_task", steps_per_task, learner.minimum_steps)
        _check_at_least("meta_batch_size", meta_batch_size, 1)
        refuse_hidden_state(meta_optimizer, role="meta_optimizer")
        refuse_loss_scaling(meta_optimizer)
        learner.check(meta_optimizer, stopping)
        if meta_optimizer.built:
            raise ValueError("meta_optimizer has been used already. Pass a new optimizer.")
        self.model = model
        self.meta_optimizer = meta_optimizer
        self.steps_per_task = steps_per_task
        self.meta_batch_size = meta_batch_size
        self.task_layers = tuple(task_layers)
        self.seed = seed
        self.learner = learner
        self.transductive = transductive
        self._runner = TaskRunner(
            FunctionalModel(model, loss, error),
            inner_optimizer,
            learner,
            self.task_layers,
            stopping,
            transductive,
        )
        training_model = learner.training_model(model, self.task_layers)
        self._training_runner = self._runner
        if training_model is not model:
            self._training_runner = TaskRunner(
                FunctionalModel(training_model, loss, error), inner_optimizer, learner, (), stopping
            )
        self.meta_variables = self._training_runner.meta_variables
        meta_optimizer.build(self.meta_variables)
        self._pool: TaskPool = ThreadPool(
            available_cores() if parallel_tasks is None else parallel_tasks
        )
        variables = [*training_model.variables, *self._training_runner.own_variables]
        self._state = TrainingState(variables, meta_optimizer, seed, type(learner).__name__)
        self._stop_requested = False
        self._was_stopped = False
        self._torn = False  # whether the weights are those of a meta-step that did not end

    @property
    def variables(self) -> list[keras.Variable]:
        """The model's variables and the learner's own: what judging on a task starts from."""
        return [*self.model.variables, *self.learner_variables]

    @property
    def learner_variables(self) -> list[keras.Variable]:
        """The learner's own variables, which are meta-learned beside the initialization."""
        return self._runner.own_variables

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
        _check_at_least("validation_freq", validation_freq, 1)
        if validation_steps is None:
            validation_steps = self.steps_per_task
        _check_at_least("validation_steps", validation_steps, 1)
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
            history.history, history.epoch = _copy(progress.history), list(progress.epochs)
            if restored:
                recall_stopping(self._state, callbacks)
            last_save = time.monotonic()
            try:
                while progress.meta_step < meta_steps and not progress.stopped:
                    epoch = progress.meta_step
                    callback_list.on_epoch_begin(epoch)
                    gradients, logs = self._meta_gradients(task_distribution, epoch)
                    self._torn = True
                    self.meta_optimizer.apply(gradients, self.meta_variables)
                    if validation_tasks and (epoch + 1) % validation_freq == 0:
                        logs |= self._validate(validation_tasks, validation_steps)
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

    def evaluate(self, tasks: Iterable[Task], steps: int | None = None) -> Evaluation:
        """Adapts to each task from the initialization and judges on its held-out examples.

        Adaptation uses the inner optimizer, batch statistics and fresh task layers, exactly
        as in meta-training. Held-out examples are judged with the running statistics of the
        task's own training (inductive) unless the trainer is `transductive`. Nothing of the
        model changes.

        Args:
            tasks: tasks to adapt to.
            steps: gradient steps; `steps_per_task` by default.

        Returns:
            Errors and curves of every task.

        Raises:
            ValueError: there are no tasks, a task has no batches, or not what the model takes.
        """
        if steps is None:
            steps = self.steps_per_task
        _check_at_least("steps", steps, 1)
        return self._evaluate(tasks, steps, _EVALUATION)

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

    # -- inside -----------------------------------------------------------------------------

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

    def _meta_gradients(self, distribution, epoch) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """Trains the tasks of a meta-batch: their mean meta-gradient, and metrics."""
        rng = np.random.default_rng([self.seed, _TRAINING, epoch])
        tasks = self.learner.training_tasks(distribution).sample(self.meta_batch_size, rng)
        if not tasks:
            raise ValueError(
                f"{distribution!r} gave no tasks when asked for {self.meta_batch_size}."
            )
        steps = self.learner.training_steps(self.steps_per_task, self.meta_batch_size)
        seeded = [SeededTask(task, int(rng.integers(2**31)), steps) for task in tasks]
        total: Sequence[tf.Tensor] | None = None
        metrics: list[Mapping[str, float]] = []
        skipped = 0
        with contextlib.closing(self._pool.map(self._training_runner.train, seeded)) as results:
            for result in results:
                if self._stop_requested:
                    raise _StopRequestedError
                if not result.finite:
                    skipped += 1
                    continue
                gradient = result.meta_gradient
                total = gradient if total is None else [a + b for a, b in zip(total, gradient)]
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
        return [tf.cast(g, v.dtype) for g, v in zip(mean, self.meta_variables)], logs

    def _validate(self, tasks, steps):
        result = self._evaluate(tasks, steps, _VALIDATION)
        return {
            "val_loss": result.loss,
            "val_error": result.error,
            "val_auc": result.area_under_error,
            "val_final_loss": result.mean("final_loss"),
            "val_path_length": result.mean("path_length"),
            "val_path_energy": result.mean("path_energy"),
            "val_diverged": len(result.diverged),
        }

    def _evaluate(self, tasks, steps, stream):
        seeded = [
            SeededTask(
                task,
                int(np.random.default_rng([self.seed, stream, index]).integers(2**31)),
                steps,
            )
            for index, task in enumerate(tasks)
        ]
        if not seeded:
            raise ValueError("There are no tasks to evaluate.")
        return Evaluation(tuple(self._pool.map(self._runner.evaluate, seeded)))


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


def _check_at_least(name, number, least):
    if number < least:
        raise ValueError(f"{name} must be at least {least}, and is {number}.")


def _copy(history):
    return {name: list(values) for name, values in history.items()}
