"""The outer loop: train a meta-batch of tasks at the same time, move the initialization, repeat.

The Keras model that is given *is* the initialization, before, during and after: its variables
change at meta-updates only, since tasks are trained functionally, on copies. Every random
number is derived from (seed, meta-step, task), so results depend neither on the number of
tasks in parallel nor on where a run was interrupted.

    one meta-step:  sample tasks ── pool.map(train one task) ── mean of the finite meta-gradients
                    ── meta_optimizer.apply ── validate ── callbacks ── checkpoint
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    fresh_values,
    layer_variables,
    refuse_hidden_state,
)
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners import Leap, Learner, PlainTraining
from leap_tf.tasks import Task, TaskDistribution
from leap_tf.training.checkpoint import CheckpointFolder, TrainingState
from leap_tf.training.evaluation import Evaluation, TaskEvaluation
from leap_tf.training.progress import ProgressDisplay
from leap_tf.training.stopping import recall_stopping, remember_stopping
from leap_tf.training.task_loop import TaskLoop, TaskResult
from leap_tf.training.task_pool import TaskPool, ThreadPool
from leap_tf.training.threads import available_cores

# Streams of random numbers, kept apart by the second word of their seed.
_TRAINING, _VALIDATION, _EVALUATION = range(3)


class MetaTrainingDivergedError(FloatingPointError):
    """Every task of a meta-batch diverged; the last good initialization is kept."""


class _StopRequestedError(Exception):
    """A stop was asked for in the middle of a meta-step."""


@dataclasses.dataclass(frozen=True)
class _SeededTask:
    task: Task
    seed: int


class MetaTrainer:
    """Meta-learns the initialization of a Keras model, and judges it.

    Args:
        model: a built Keras model; it is the initialization and holds what was learned.
        loss: the loss of every task.
        inner_optimizer: the Keras optimizer that trains on tasks, fresh for each.
        meta_optimizer: the unused Keras optimizer that moves the initialization.
        learner: the meta-learner; `Leap()` by default.
        steps_per_task: gradient steps on a task, fewer if its batches end before.
        meta_batch_size: tasks in a meta-step.
        parallel_tasks: tasks trained at the same time, by default one per core. Call
            `leap_tf.one_thread_per_task()` first of all for full speed. Results do not
            depend on it.
        task_layers: names of layers that start fresh on every task and are not meta-learned.
        error: the figure on curves and tables, see `leap_tf.functional.FunctionalModel`.
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
        seed: int = 0,
    ):
        for name, number in (
            ("steps_per_task", steps_per_task),
            ("meta_batch_size", meta_batch_size),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, and is {number}.")
        refuse_hidden_state(meta_optimizer, role="meta_optimizer")
        if meta_optimizer.built:
            raise ValueError("meta_optimizer has been used already. Pass a new optimizer.")
        self.model = model
        self.meta_optimizer = meta_optimizer
        self.steps_per_task = steps_per_task
        self.meta_batch_size = meta_batch_size
        self.task_layers = tuple(task_layers)
        self.seed = seed
        self._functional = FunctionalModel(model, loss, error)
        heads = {id(variable) for variable in layer_variables(model, self.task_layers)}
        self._meta_indices = [
            index
            for index, variable in enumerate(self._functional.variables)
            if id(variable) not in heads
        ]
        if not self._meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        self.meta_variables = [self._functional.variables[index] for index in self._meta_indices]
        meta_optimizer.build(self.meta_variables)

        inner = FunctionalOptimizer(inner_optimizer, self._functional.variables)
        self._training_loop = TaskLoop(
            self._functional, inner, learner or Leap(), self._meta_indices
        )
        self._evaluation_loop = TaskLoop(
            self._functional, inner, PlainTraining(), self._meta_indices
        )
        self._pool: TaskPool = ThreadPool(parallel_tasks or available_cores())
        self._state = TrainingState(model.variables, meta_optimizer, seed)
        self._stop_requested = False

    @property
    def meta_step(self) -> int:
        """Meta-updates made so far."""
        return self._state.progress.meta_step

    def fit(
        self,
        task_distribution: TaskDistribution,
        meta_steps: int,
        validation_tasks: Sequence[Task] = (),
        validation_freq: int = 1,
        callbacks: Sequence[keras.callbacks.Callback] = (),
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
            validation_freq: meta-steps from one validation to the next.
            callbacks: Keras callbacks; a meta-step is their epoch, the model's weights are the
                initialization. Metrics: `loss` and `error` (means over the steps and tasks of
                the meta-batch), `final_loss`, `meta_gradient_norm`, `gradient_steps`,
                `tasks_skipped`, the learner's own, and `val_loss`, `val_error`, `val_auc`.
            checkpoint_dir: where checkpoints are kept.
            checkpoint_seconds: least time between two of them. One is always made at the end
                and when a stop is asked for; a restart repeats at most this much work.
            verbose: whether to show progress.

        Returns:
            The `History` of all meta-steps, those before a restart included.

        Raises:
            MetaTrainingDivergedError: all tasks of a meta-batch diverged.
            ValueError: a task has no batches, or not what the model takes.
        """
        folder = CheckpointFolder(os.fspath(checkpoint_dir)) if checkpoint_dir else None
        if folder and not self.meta_step:
            folder.restore(self._state)
        self._stop_requested = False
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
            recall_stopping(self._state, callbacks)
            last_save = time.monotonic()
            whole = True  # whether the state is that of a whole number of meta-steps
            try:
                while progress.meta_step < meta_steps and not progress.stopped:
                    epoch = progress.meta_step
                    callback_list.on_epoch_begin(epoch)
                    gradients, logs = self._meta_gradients(task_distribution, epoch)
                    whole = False
                    self.meta_optimizer.apply(gradients, self.meta_variables)
                    if validation_tasks and (epoch + 1) % validation_freq == 0:
                        logs |= self._validate(validation_tasks)
                    progress.meta_step += 1
                    callback_list.on_epoch_end(epoch, logs)
                    progress.stopped = bool(self.model.stop_training)
                    progress.history, progress.epochs = history.history, history.epoch
                    remember_stopping(self._state, callbacks)
                    whole = True
                    if folder and time.monotonic() - last_save >= checkpoint_seconds:
                        folder.save(self._state)
                        last_save = time.monotonic()
            except _StopRequestedError:
                # EarlyStopping would put the best weights in the place of the last.
                for callback in callback_list.callbacks:
                    if not isinstance(callback, keras.callbacks.EarlyStopping):
                        callback.on_train_end()
            else:
                if folder:
                    folder.save(self._state)
                    folder = None
                callback_list.on_train_end()
            finally:
                if folder and whole and progress.meta_step:
                    folder.save(self._state)
        return history

    def request_stop(self) -> None:
        """Asks a running `fit` to save and return soon; safe to call from a signal handler.

        The meta-step that is under way is dropped, and made again when training goes on.
        """
        self._stop_requested = True

    @property
    def stop_requested(self) -> bool:
        """Whether the last `fit` was asked to stop."""
        return self._stop_requested

    def evaluate(self, tasks: Iterable[Task], steps: int | None = None) -> Evaluation:
        """Adapts to each task from the initialization and judges on its held-out examples.

        Adaptation uses the inner optimizer, batch statistics and fresh task layers, exactly
        as in meta-training. Held-out examples are judged with the running statistics of the
        task's own training (inductive). Nothing of the model changes.

        Args:
            tasks: tasks to adapt to.
            steps: gradient steps; `steps_per_task` by default.

        Returns:
            Errors and curves of every task.
        """
        return self._evaluate(tasks, steps or self.steps_per_task, _EVALUATION)

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

    # -- inside -----------------------------------------------------------------------------

    def _meta_gradients(self, distribution, epoch) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """Trains the tasks of a meta-batch: their mean meta-gradient, and metrics."""
        rng = np.random.default_rng([self.seed, _TRAINING, epoch])
        tasks = distribution.sample(self.meta_batch_size, rng)
        seeded = [_SeededTask(task, int(rng.integers(2**31))) for task in tasks]
        total: Sequence[tf.Tensor] | None = None
        metrics: list[dict[str, float]] = []
        skipped = 0
        with contextlib.closing(self._pool.map(self._train_task, seeded)) as results:
            for result in results:
                if self._stop_requested:
                    raise _StopRequestedError
                if not result.finite:
                    skipped += 1
                    continue
                gradient = result.update.meta_gradient
                total = gradient if total is None else [a + b for a, b in zip(total, gradient)]
                metrics.append(_metrics_of(result))
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

    def _validate(self, tasks):
        result = self._evaluate(tasks, self.steps_per_task, _VALIDATION)
        return {
            "val_loss": result.loss,
            "val_error": result.error,
            "val_auc": result.area_under_error,
        }

    def _evaluate(self, tasks, steps, stream):
        seeded = [
            _SeededTask(
                task, int(np.random.default_rng([self.seed, stream, index]).integers(2**31))
            )
            for index, task in enumerate(tasks)
        ]
        return Evaluation(
            tuple(self._pool.map(lambda task: self._evaluate_task(task, steps), seeded))
        )

    def _train_task(self, seeded: _SeededTask) -> TaskResult:
        return self._adapt(self._training_loop, seeded, self.steps_per_task)

    def _evaluate_task(self, seeded: _SeededTask, steps: int) -> TaskEvaluation:
        adapted = self._adapt(self._evaluation_loop, seeded, steps)
        with _naming(seeded.task):
            held_out = self._evaluation_loop.evaluate(
                iter(seeded.task.test_batches()), adapted.parameters, adapted.state
            )
        if not int(held_out.examples):
            raise ValueError(f"Task {seeded.task.name!r} has no held-out examples to judge by.")
        return TaskEvaluation(
            name=seeded.task.name,
            error=float(held_out.error),
            loss=float(held_out.loss),
            examples=int(held_out.examples),
            training_errors=adapted.errors.numpy(),
            training_losses=adapted.losses.numpy(),
        )

    def _adapt(self, loop: TaskLoop, seeded: _SeededTask, steps: int) -> TaskResult:
        with _naming(seeded.task):
            fresh = fresh_values(self.model, self.task_layers, seeded.seed)
            parameters = [
                fresh.get(id(variable), value)
                for variable, value in zip(
                    self._functional.variables, self._functional.parameters()
                )
            ]
            batches = iter(seeded.task.train_batches(seeded.seed))
            result = loop.train(
                batches, tf.constant(steps), parameters, self._functional.state(seeded.seed)
            )
        if not result.losses.shape[0]:
            raise ValueError(
                f"Task {seeded.task.name!r} gave no training batch. Check that its data set is "
                "not empty, and not smaller than a batch with drop_remainder."
            )
        return result


@contextlib.contextmanager
def _naming(task):
    """Says of which task an error in the graph is, and what usually causes it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"Task {task.name!r} has data the model or loss cannot take. Labels must lie in "
            "[0, outputs of the model), and inputs must have the model's shape. TensorFlow "
            f"says: {error.message.strip().splitlines()[0]}"
        ) from error


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


def _metrics_of(result):
    losses, errors = result.losses.numpy(), result.errors.numpy()
    return {
        "loss": float(losses.mean()),
        "error": float(errors.mean()),
        "final_loss": float(losses[-1]),
        "gradient_steps": len(losses),
        **{name: float(value) for name, value in result.update.metrics.items()},
    }


def _copy(history):
    return {name: list(values) for name, values in history.items()}
