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
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from leap_tf.errors import whole_number
from leap_tf.functional import apply_if_finite, refuse_hidden_state, refuse_loss_scaling
from leap_tf.learners import Learner
from leap_tf.serialization import Divisible, Parts
from leap_tf.tasks import Task, TaskDistribution, TaskSplits
from leap_tf.training.callbacks import (
    ProgressDisplay,
    recall_callbacks,
    refuse_restoring_weights,
    remember_callbacks,
)
from leap_tf.training.checkpoint import CheckpointFolder, TrainingState, describe
from leap_tf.training.meta_batch import MetaBatch, MetaTrainingDivergedError, shown_as_optimizer
from leap_tf.training.pools import Job, TaskFailure, TaskPool
from leap_tf.training.problem import Judge, Runner, Summary, TaskAddress, TrainedTask
from leap_tf.training.sampling import EVALUATION, VALIDATION, TaskDraws


class _StopRequestedError(Exception):
    """A stop was asked for in the middle of a meta-step."""


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
        settings: what else training depends on, so that a restart with other ones is refused.
        seed: decides everything random but the initial weights.
        tolerated_failures: the share of a meta-batch that may fail.
        report: called with what the runner returns for every task, in order.

    Attributes:
        task_variables: all variables that the results of tasks depend on.

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
        settings: Mapping[str, Any],
        seed: int,
        tolerated_failures: float = 0.0,
        report: Callable[[Any], None] | None = None,
    ):
        steps_per_task = whole_number("steps_per_task", steps_per_task, learner.minimum_steps)
        meta_batch_size = whole_number("meta_batch_size", meta_batch_size, 1)
        seed = whole_number("seed", seed, 0)
        if not 0.0 <= tolerated_failures < 1.0:
            raise ValueError(
                f"tolerated_failures is a share of the meta-batch, at least 0 and below 1, and is "
                f"{tolerated_failures}."
            )
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
        self.pool = pool
        self.tolerated_failures = tolerated_failures
        self.meta_variables = list(runner.meta_variables)
        every = [*variables, *model.variables]
        self.task_variables = list({id(variable): variable for variable in every}.values())
        self._runner = runner
        self._judge = judge
        self._report = report
        self._draws = TaskDraws(learner, steps_per_task, meta_batch_size, seed)
        meta_optimizer.build(self.meta_variables)
        settings = {
            **settings,
            "learner": learner,
            "inner_optimizer": inner_optimizer,
            "meta_optimizer": meta_optimizer,
            "stopping": stopping,
            "steps_per_task": steps_per_task,
            "meta_batch_size": meta_batch_size,
        }
        self._state = TrainingState(
            variables,
            meta_optimizer,
            seed,
            {name: describe(setting) for name, setting in settings.items()},
        )
        self._known_folders: set[pathlib.Path] = set()
        self._stop_requested = False
        self._was_stopped = False

    @property
    @abc.abstractmethod
    def learner_variables(self) -> list[keras.Variable]:
        """The learner's own variables, which are meta-learned beside the initialization."""

    @abc.abstractmethod
    def summary(self, results: Sequence[Any]) -> Summary:
        """Returns what the judge found on several tasks as one."""

    @abc.abstractmethod
    def read_judged(self, parts: Parts) -> Any:
        """Returns what the judge found on a task elsewhere; raises UnfitPartsError."""

    def read_trained(self, parts: Parts) -> TrainedTask:
        """Returns what the runner made of a task elsewhere; raises UnfitPartsError."""
        return TrainedTask.from_parts(parts, self.meta_variables, self._runner.lasting_state)

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
        started again ends bit-identical to one that was not, on the same machine's CPU. A
        meta-step is made as a whole or not at all, whatever ends it.

        Args:
            task_distribution: where the tasks of each meta-batch come from.
            meta_steps: meta-updates to have made in the end, those before a restart included.
            validation_tasks: tasks to adapt to and judge by, as `evaluate` does.
            callbacks: Keras callbacks; a meta-step is their epoch, the model's weights are the
                initialization. Metrics: `loss` and `error` (means over the steps and tasks of
                the meta-batch), `final_loss`, `meta_gradient_norm`, `gradient_steps`,
                `tasks_skipped`, `tasks_failed`, the learner's own, and `val_loss`, `val_error`,
                `val_training_error`, `val_auc`, `val_final_loss`, `val_path_length`,
                `val_path_energy`, `val_diverged`.
            validation_freq: meta-steps from one validation to the next.
            validation_steps: gradient steps on a validation task; `steps_per_task` by default.
            checkpoint_dir: where checkpoints are kept.
            checkpoint_seconds: least time between two of them. One is always made at the end
                and when a stop is asked for. A restart repeats at most this much work and the
                meta-step that was under way.
            verbose: whether to show progress.

        Returns:
            The `History` of all meta-steps, those before a restart included.

        Raises:
            MetaTrainingDivergedError: all tasks of a meta-batch diverged.
            ValueError: a task has no batches, or not what the model takes.
            TaskFailedError: more tasks failed than are tolerated; if none are, what it raised.
            CheckpointMismatchError, CheckpointUnreadableError: the checkpoints are of another
                run, or none of them can be read.
        """
        whole_number("validation_freq", validation_freq, 1)
        if validation_steps is None:
            validation_steps = self.steps_per_task
        whole_number("validation_steps", validation_steps, 1)
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
        with shown_as_optimizer(self.model, self.meta_optimizer):
            callback_list.on_train_begin()
            history.history = {name: list(values) for name, values in progress.history.items()}
            history.epoch = list(progress.epochs)
            if restored:
                recall_callbacks(self._state, callbacks)
            last_save = time.monotonic()
            try:
                while progress.meta_step < meta_steps and not progress.stopped:
                    epoch = progress.meta_step
                    callback_list.on_epoch_begin(epoch)
                    with self._state.all_or_nothing():
                        logs = self._make_meta_step(task_distribution, epoch)
                        if validation_tasks and (epoch + 1) % validation_freq == 0:
                            found = self._evaluate(
                                validation_tasks,
                                validation_steps,
                                VALIDATION,
                                "validation",
                                stoppable=True,
                            )
                            logs |= {f"val_{name}": each for name, each in found.metrics().items()}
                        progress.meta_step += 1
                        callback_list.on_epoch_end(epoch, logs)
                        progress.stopped = bool(self.model.stop_training)
                        progress.history = {k: list(v) for k, v in history.history.items()}
                        progress.epochs = list(history.epoch)
                        remember_callbacks(self._state, callbacks)
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
                if folder and progress.meta_step:
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

    def evaluate(self, tasks: Iterable[Task], steps: int | None = None, split: str = "test") -> Any:
        """Adapts to each task from the initialization; returns the `summary` of how it went.

        Args:
            tasks: tasks to adapt to.
            steps: gradient steps; `steps_per_task` by default.
            split: "test" or "validation", whichever tasks of the study these are: workers
                elsewhere find them by it. Results do not depend on it.
        """
        if steps is None:
            steps = self.steps_per_task
        whole_number("steps", steps, 1)
        return self._evaluate(tasks, steps, EVALUATION, split)

    def run_again(
        self, job: str, tasks: TaskSplits, address: TaskAddress, seed: int, steps: int
    ) -> tuple[str, Divisible]:
        """Does for a pool what another process, of which this is a replica, asks for.

        Args:
            job: "train" or "evaluate".
            tasks: all of the study.
            address: where the task is among them.
            seed: of the visit.
            steps: gradient steps.

        Returns:
            The task's name, and its result.

        Raises:
            ValueError: this is no replica of that study, or the task cannot be used.
        """
        seeded = self._draws.again(tasks, address, seed, steps)
        run = {"train": self._runner.train, "evaluate": self._judge.evaluate}[job]
        return seeded.task.name, run(seeded)

    def evaluation_seed(self, index: int) -> int:
        """Returns the seed that `evaluate` gives the task at this place among its tasks."""
        return self._draws.seed_of_judged(EVALUATION, index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes initialization, meta-optimizer, history and random state to a checkpoint."""
        self._state.save(os.fspath(path))

    def load(self, path: str | os.PathLike) -> None:
        """Reads what `save` wrote.

        Raises:
            CheckpointMismatchError: it is of another model, seed or setting.
            CheckpointUnreadableError: its files are missing or damaged.
        """
        self._state.load(os.fspath(path))
        self._known_folders.add(pathlib.Path(path).resolve().parent)

    def _restore(self, folder: CheckpointFolder | None) -> bool:
        """Goes on from a folder's checkpoint, if this trainer has not moved on by itself."""
        if folder is None:
            return False
        restored = folder.go_on(self._state, from_here=folder.path in self._known_folders)
        self._known_folders.add(folder.path)
        return restored

    def _make_meta_step(self, distribution, epoch) -> dict[str, Any]:
        """Trains a meta-batch of tasks and moves the initialization; returns metrics."""
        gradients, state, logs = self._meta_gradients(distribution, epoch)
        if not apply_if_finite(self.meta_optimizer, gradients, self.meta_variables):
            raise MetaTrainingDivergedError(
                f"Meta-step {epoch + 1} overflows and is not made. Lower the meta rate."
            )
        for variable, value in zip(self._runner.lasting_state, state):
            variable.assign(value)
        return logs

    def _meta_gradients(
        self, distribution, epoch
    ) -> tuple[list[tf.Tensor], Sequence[tf.Tensor], dict[str, Any]]:
        """Trains the tasks of a meta-batch: mean meta-gradient, lasting state, and metrics."""
        tasks = self._draws.meta_batch(distribution, epoch)
        batch = MetaBatch(epoch + 1, len(tasks), self.tolerated_failures)
        job: Job[Any] = Job("train", self._runner.train, self.read_trained)
        with contextlib.closing(self.pool.map(job, self.task_variables, tasks)) as results:
            for result in results:
                if self._stop_requested:
                    raise _StopRequestedError
                batch.add(result)
                if self._report and isinstance(result, TrainedTask):
                    self._report(result)
        gradients, logs = batch.mean(self.meta_variables)
        return gradients, batch.state, logs

    def _evaluate(self, tasks, steps, stream, split, stoppable=False):
        seeded = self._draws.judged(tasks, steps, stream, split)
        job: Job[Any] = Job("evaluate", self._judge.evaluate, self.read_judged)
        results = []
        with contextlib.closing(self.pool.map(job, self.task_variables, seeded)) as found:
            for result in found:
                if stoppable and self._stop_requested:
                    raise _StopRequestedError
                if isinstance(result, TaskFailure):
                    raise result.as_error()
                results.append(result)
        return self.summary(results)
