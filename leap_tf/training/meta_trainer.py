"""The outer loop: train a meta-batch of tasks in parallel, move the initialization, repeat.

The user's Keras model *is* the initialization, before, during and after: its variables change only
at meta-updates, since tasks are trained functionally, on copies. Every random number is derived
from (seed, meta-step, task), so results depend neither on the number of parallel tasks nor on
where a run was interrupted.

    one meta-step:  sample tasks ── pool.map(train one task) ── mean of the finite meta-gradients
                    ── meta_optimizer.apply ── validate ── callbacks ── checkpoint
"""

import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import keras

from leap_tf.errors import whole_number
from leap_tf.functional import apply_if_finite, check_no_loss_scaling, check_optimizer
from leap_tf.learners import Leap, Learner, with_meta_optimizer
from leap_tf.learners.base import TrainingSetup
from leap_tf.tasks import Task, TaskDistribution
from leap_tf.training.callbacks import (
    HealthWarnings,
    callback_list,
    checked_callbacks,
    restore_callback_state,
    save_callback_state,
    shown_as_optimizer,
    with_batch_hooks,
)
from leap_tf.training.checkpoint import CheckpointFolder, TrainingState, settings_of
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.pools import TaskFailure, TaskPool, ThreadPool, available_cores
from leap_tf.training.problem import (
    MetaBatch,
    MetaTrainingDivergedError,
    Problem,
    evaluation_job,
    training_job,
)
from leap_tf.training.sampling import (
    EVALUATION,
    VALIDATION,
    as_distribution,
    as_tasks,
    describe_tasks,
)
from leap_tf.training.supervised import EvaluationConfig, SupervisedProblem


class _StopRequestedError(Exception):
    """A stop was requested in the middle of a meta-step."""


class MetaTrainer:
    """Meta-learns the initialization of a Keras model and evaluates it.

    Args:
        model: a built Keras model; it is the initialization and holds what is learned.
        loss: the Keras loss of every task, or its name. A model with several outputs takes a list
            of them, or a dictionary if it returns one; the loss is their sum.
        inner_optimizer: the Keras optimizer that trains on tasks, reset for each, or its name.
        meta_optimizer: the unused Keras optimizer that moves the initialization, or its name; by
            default that of `leap_tf.learners.with_meta_optimizer`, for any number of steps.
        learner: the meta-learner; `Leap()` by default.
        steps_per_task: gradient steps on a task, fewer if its batches end before; learners with
            query batches need all of them. Those of second order record every step: five to ten
            are usual.
        meta_batch_size: tasks in a meta-step.
        task_layers: names of layers that are reinitialized for every task and not meta-learned. If
            the model's output layer is among them, it has as many units as a task has `classes`.
        running_statistics: "learned": a meta-step sets running statistics to the mean of where
            its tasks left them. "fresh": every task starts from those of the given model, as in
            the paper; few steps hardly move them.
        stopping: the rule that ends training on a task early; never by default.
        evaluation: how evaluation adapts to tasks, where that differs from meta-training.
        seed: for task sampling, batch order and dropout. Initial weights come from
            `keras.utils.set_random_seed`.
        pool: where tasks run: a number of threads of this process, by default one per core, or a
            pool such as `leap_tf.cluster.RayPool`. Results do not depend on it. For full speed call
            `leap_tf.configure_threads()` before anything else.

    Attributes:
        problem: what trains and evaluates on single tasks.
        model: the model that was given, or the one the learner made of it (HAT, Progressive Nets).
        pool: where tasks run.
        was_stopped: whether the last `fit` ended early because `request_stop` was called.

    Raises:
        ValueError: the model, an optimizer or a number cannot be used.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: "keras.losses.Loss | str | Sequence | Mapping",
        inner_optimizer: keras.optimizers.Optimizer | str,
        meta_optimizer: keras.optimizers.Optimizer | str | None = None,
        *,
        learner: Learner | None = None,
        steps_per_task: int = 100,
        meta_batch_size: int = 20,
        task_layers: Sequence[str] = (),
        running_statistics: str = "learned",
        stopping: StopRule | None = None,
        evaluation: EvaluationConfig | None = None,
        seed: int = 0,
        pool: "TaskPool | int | None" = None,
    ):
        learner, meta = with_meta_optimizer(learner or Leap(), _optimizer(meta_optimizer))
        setup = TrainingSetup(
            model=model,
            inner_optimizer=_optimizer(inner_optimizer),
            meta_optimizer=meta,
            steps_per_task=whole_number("steps_per_task", steps_per_task, 1),
            meta_batch_size=whole_number("meta_batch_size", meta_batch_size, 1),
            task_layers=tuple(task_layers),
            running_statistics=running_statistics,
            stopping=stopping,
        )
        problem = SupervisedProblem(setup, loss, learner, evaluation=evaluation, seed=seed)
        self._start(problem, pool)

    @classmethod
    def from_problem(cls, problem: Problem, pool: "TaskPool | int | None" = None) -> "MetaTrainer":
        """Returns a trainer of any problem, such as games.

        Args:
            problem: trains and evaluates on single tasks.
            pool: as for `MetaTrainer`.
        """
        trainer = cls.__new__(cls)
        trainer._start(problem, pool)
        return trainer

    def _start(self, problem, pool):
        setup = problem.setup
        if setup.steps_per_task < problem.plan.minimum_steps:
            raise ValueError(
                f"steps_per_task must be at least {problem.plan.minimum_steps} for "
                f"{type(problem.learner).__name__}, and is {setup.steps_per_task}."
            )
        if setup.meta_optimizer in (
            setup.inner_optimizer,
            getattr(problem, "evaluation_optimizer", None),
        ):
            raise ValueError(
                "The same optimizer object cannot train on tasks and move the initialization. Pass "
                "two optimizers, for example keras.optimizers.SGD(0.1) twice."
            )
        check_optimizer(setup.meta_optimizer, role="meta_optimizer")
        check_no_loss_scaling(setup.meta_optimizer)
        if setup.meta_optimizer.built:
            raise ValueError("meta_optimizer has been used already. Pass a new optimizer.")
        self.problem: Any = problem
        problem.stop_requested = lambda: self._stop_requested
        self.model = problem.plan.evaluation_model
        if not hasattr(pool, "map"):
            pool = ThreadPool(available_cores() if pool is None else whole_number("pool", pool, 1))
        self.pool: TaskPool = pool
        self._threads: ThreadPool | None = None
        setup.meta_optimizer.build(problem.meta_variables)
        self._state = TrainingState(
            problem.variables, setup.meta_optimizer, problem.sampler.seed, settings_of(problem)
        )
        self._known_folders: dict[pathlib.Path, Mapping[str, Any]] = {}  # with their tasks
        self._stop_requested = False
        self.was_stopped = False

    def __repr__(self) -> str:
        setup, name = self.problem.setup, type(self.problem.learner).__name__
        return (
            f"<MetaTrainer of {self.model.name!r} by {name} at meta-step {self.meta_step}: "
            f"{setup.meta_batch_size} tasks of {setup.steps_per_task} steps>"
        )

    @property
    def learner(self) -> Learner:
        """The meta-learner."""
        return self.problem.learner

    @property
    def meta_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer that moves the initialization."""
        return self.problem.setup.meta_optimizer

    @property
    def learner_variables(self) -> list[keras.Variable]:
        """The learner's own variables, which are meta-learned beside the initialization."""
        return self.problem.learner_variables

    @property
    def variables(self) -> list[keras.Variable]:
        """The model's variables and the learner's: what adaptation to a task starts from."""
        return [*self.model.variables, *self.learner_variables]

    @property
    def meta_step(self) -> int:
        """Meta-updates made so far."""
        return self._state.progress.meta_step

    def fit(
        self,
        task_distribution: TaskDistribution | Iterable[Task],
        meta_steps: int,
        *,
        validation_tasks: TaskDistribution | Iterable[Task] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        validation_freq: int = 1,
        validation_steps: int | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
        checkpoint_seconds: float = 30.0,
        tolerated_failures: float = 0.0,
        verbose: bool = True,
    ) -> keras.callbacks.History:
        """Meta-trains until `meta_steps` meta-updates have been made in all.

        With `checkpoint_dir`, training continues from the checkpoint there. A run that was killed
        and restarted ends bit-identical to one that was not, on the same machine's CPU. Whatever
        ends a meta-step, it is made as a whole or not at all.

        Args:
            task_distribution: where the tasks of each meta-batch come from. A list of tasks stands
                for `FiniteTasks` of them.
            meta_steps: meta-updates to have made in the end, those before a restart included.
            validation_tasks: tasks that are evaluated meanwhile, as `evaluate` does.
            callbacks: Keras callbacks. A meta-step is their epoch, a task their batch, the model's
                weights are the initialization, its optimizer is the meta-optimizer; see "Callbacks"
                in docs/design.md. Metrics: `loss` and `error` (means over the steps and tasks of
                the meta-batch), `final_loss`, `meta_gradient_norm`, `gradient_steps`,
                `tasks_skipped`, `tasks_failed`, the learner's own, and `val_loss`, `val_error`,
                `val_training_error`, `val_auc`, `val_final_loss`, `val_path_length`,
                `val_path_energy`, `val_diverged`.
            validation_freq: meta-steps from one validation to the next.
            validation_steps: gradient steps on a validation task; `steps_per_task` by default.
            checkpoint_dir: where checkpoints are kept.
            checkpoint_seconds: least time between two of them. One is always written at the end
                and when a stop is requested. A restart repeats at most this much work and the
                meta-step that was interrupted.
            tolerated_failures: the share of a meta-batch, at least 0 and below 1, whose tasks may
                raise an error. The meta-step continues without them and counts them as
                `tasks_failed`. By default the first failure ends `fit`.
            verbose: whether to show progress.

        Returns:
            The `History` of all meta-steps, those before a restart included.

        Raises:
            MetaTrainingDivergedError: all tasks of a meta-batch diverged.
            ValueError: a task has no batches or does not fit the model, or an argument is out of
                its range.
            TaskFailedError: more tasks failed than are tolerated; if none are, what it raised.
            CheckpointMismatchError: the checkpoints are of another run, or of other tasks.
            CheckpointUnreadableError: no checkpoint in the folder can be read.
        """
        meta_steps = whole_number("meta_steps", meta_steps, 0)
        whole_number("validation_freq", validation_freq, 1)
        if validation_steps is None:
            validation_steps = self.problem.setup.steps_per_task
        whole_number("validation_steps", validation_steps, 1)
        if not 0.0 <= tolerated_failures < 1.0:
            raise ValueError(
                f"tolerated_failures is a share of the meta-batch, at least 0 and below 1, and is "
                f"{tolerated_failures}."
            )
        callbacks = checked_callbacks(callbacks, bool(self.learner_variables))
        task_distribution = as_distribution(task_distribution)
        self._use_distribution(task_distribution)
        tasks = describe_tasks(task_distribution)
        validation_tasks = as_tasks(validation_tasks)
        folder = CheckpointFolder(os.fspath(checkpoint_dir)) if checkpoint_dir else None
        restored = False
        if folder:
            restored = folder.resume(self._state, tasks, self._known_folders.get(folder.path))
            self._known_folders[folder.path] = tasks
        self._state.tasks = tasks
        self.was_stopped = False
        if not restored:
            self._state.progress.stopped = False
        steps = self._tasks_of_a_meta_step(meta_steps)
        self.model.stop_training = False
        history = keras.callbacks.History()
        progress = self._state.progress
        logs: dict[str, Any] = {}
        with shown_as_optimizer(self.model, self.meta_optimizer):
            shown = {"epochs": meta_steps, "steps": steps, "verbose": verbose}
            hooks = callback_list([HealthWarnings(), *callbacks, history], self.model, **shown)
            hooks.on_train_begin()
            progress.restore_history(history)
            if restored:
                restore_callback_state(self._state, callbacks)
            last_save = time.monotonic()
            try:
                while progress.meta_step < meta_steps and not progress.stopped:
                    epoch = progress.meta_step
                    hooks.on_epoch_begin(epoch)
                    with self._state.all_or_nothing():
                        logs = self._make_meta_step(epoch, tolerated_failures, hooks)
                        if validation_tasks and (epoch + 1) % validation_freq == 0:
                            found = self._evaluate(
                                validation_tasks, validation_steps, VALIDATION, hooks
                            )
                            logs |= {f"val_{name}": each for name, each in found.metrics().items()}
                        progress.meta_step += 1
                        hooks.on_epoch_end(epoch, logs)
                        progress.stopped = bool(self.model.stop_training)
                        progress.save_history(history)
                        save_callback_state(self._state, callbacks)
                    if folder and time.monotonic() - last_save >= checkpoint_seconds:
                        folder.save(self._state)
                        last_save = time.monotonic()
            except _StopRequestedError:
                self._stop_requested, self.was_stopped = False, True
                # EarlyStopping would put the best weights in the place of the last.
                for callback in hooks.callbacks:
                    if not isinstance(callback, keras.callbacks.EarlyStopping):
                        callback.on_train_end(logs)
            else:
                self._stop_requested = False
                if folder:
                    folder.save(self._state)
                    folder = None
                hooks.on_train_end(logs)
            finally:
                if folder and progress.meta_step:
                    folder.save(self._state)
        return history

    def request_stop(self) -> None:
        """Asks `fit` to save and return soon; safe to call from a signal handler.

        The current meta-step is discarded, and made again when training continues.
        """
        self._stop_requested = True

    def evaluate(
        self,
        tasks: TaskDistribution | Iterable[Task],
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> Any:
        """Adapts to each task from the initialization and evaluates its held-out examples.

        Adaptation uses batch statistics and reinitialized task layers, exactly as in
        meta-training. Held-out examples are evaluated with the running statistics of the task's own
        training (inductive) unless the `EvaluationConfig` is transductive. No variable changes.
        A pool in other processes evaluates only the study's own tasks; others run on threads here.

        Args:
            tasks: tasks to adapt to, a single task, or `FiniteTasks`.
            steps: gradient steps; `steps_per_task` by default.
            callbacks: Keras callbacks, whose test hooks are called. A task is a batch to them.

        Returns:
            An `Evaluation` with the errors and curves of every task.

        Raises:
            ValueError: there are no tasks, or a task has no batches or does not fit the model.
        """
        steps = self.problem.setup.steps_per_task if steps is None else steps
        steps, tasks = whole_number("steps", steps, 1), as_tasks(tasks)
        callbacks = checked_callbacks(callbacks, learner_has_variables=False)
        shown = shown_as_optimizer(self.model, self.meta_optimizer) if callbacks else nullcontext()
        with shown:
            hooks = callback_list(callbacks, self.model, epochs=1, steps=len(tasks))
            return self._evaluate(tasks, steps, EVALUATION, hooks)

    def adapt(self, task: Task, steps: int | None = None) -> keras.Model:
        """Adapts to a task from the initialization and returns the adapted Keras model.

        The model is a copy, compiled with the loss, a new optimizer of evaluation, and accuracy or
        `EvaluationConfig.error_fn`. It has the weights and the running statistics with which
        `evaluate([task])` computes the held-out error, and an output for each of the task's
        `classes`. Its own `evaluate` is inductive.

        Args:
            task: needs `train_batches` only.
            steps: gradient steps; `steps_per_task` by default.

        Raises:
            ValueError: the task does not fit the model, or the problem or the learner adapts no
                Keras model of the user's (games, HAT, Progressive Nets).
            UnsupportedModelError: the model cannot be copied.

        Example:

            >>> import keras, leap_tf
            >>> sgd = keras.optimizers.SGD
            >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", sgd(0.01), sgd(0.1))
            >>> task = leap_tf.sinusoid_splits().test[0]
            >>> model = trainer.adapt(task, steps=3)
            >>> loss = model.evaluate(task.test_batches(), verbose=0)
            >>> round(loss, 4) == round(trainer.evaluate([task], steps=3).loss, 4)
            True
        """
        steps = self.problem.setup.steps_per_task if steps is None else steps
        if not hasattr(self.problem, "adapt"):
            raise ValueError(f"A {type(self.problem).__name__} cannot adapt a Keras model.")
        [task] = as_tasks(task)
        steps = whole_number("steps", steps, 1)
        return self.problem.adapt(task, self.evaluation_seed(0), steps)

    def evaluation_seed(self, index: int) -> int:
        """Returns the seed that `evaluate` gives the task at this index of its tasks."""
        return self.problem.sampler.evaluation_seed(index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes initialization, meta-optimizer, history and random state to a checkpoint."""
        self._state.save(os.fspath(path))

    def load(self, path: str | os.PathLike) -> None:
        """Reads what `save` wrote. It does not compare the tasks.

        Raises CheckpointMismatchError and CheckpointUnreadableError as `fit`.
        """
        self._state.load(os.fspath(path))
        self._known_folders[pathlib.Path(path).resolve().parent] = self._state.tasks

    def _use_distribution(self, distribution):
        if self.pool.remote and not self.problem.sampler.is_own(distribution):
            raise ValueError(
                f"{type(self.pool).__name__} trains in other processes, which sample from the task "
                "distribution of their own study. Give fit() the study's tasks.train, or train on "
                "threads."
            )
        self.problem.sampler.use_distribution(distribution)

    def _tasks_of_a_meta_step(self, meta_steps):
        progress = self._state.progress
        if progress.warn_if_finished(meta_steps):
            return self.problem.setup.meta_batch_size
        return len(self.problem.sampler.training_specs(progress.meta_step))

    def _make_meta_step(self, epoch, tolerated_failures, hooks) -> dict[str, Any]:
        """Trains a meta-batch of tasks and moves the initialization; returns metrics."""
        problem = self.problem
        specs = problem.sampler.training_specs(epoch)
        batch = MetaBatch(epoch + 1, len(specs), tolerated_failures)
        with closing(self.pool.map(training_job(problem), specs)) as results:
            begin, end = hooks.on_train_batch_begin, hooks.on_train_batch_end
            for result in with_batch_hooks(results, len(specs), begin, end):
                if self._stop_requested:
                    raise _StopRequestedError
                if batch.add(result) and problem.on_result:
                    problem.on_result(result)
        gradients, logs = batch.mean(problem.meta_variables)
        if not apply_if_finite(self.meta_optimizer, gradients, problem.meta_variables):
            raise MetaTrainingDivergedError(
                f"Meta-step {epoch + 1} overflows and is not made. Lower the meta learning rate."
            )
        states = problem.state_variables
        for variable, value in zip(states, batch.mean_state(states)):
            variable.assign(value)
        return logs

    def _evaluate(self, tasks, steps, stream, hooks):
        sampler, pool = self.problem.sampler, self.pool
        split = sampler.own_split(tasks) if pool.remote else None
        if pool.remote and split is None:
            pool = self._threads = self._threads or ThreadPool(available_cores())
        with sampler.temporary_list(tasks) as name:
            specs = sampler.evaluation_specs(split or name, len(tasks), steps, stream)
            results = []
            hooks.on_test_begin()
            with closing(pool.map(evaluation_job(self.problem), specs)) as found:
                begin, end = hooks.on_test_batch_begin, hooks.on_test_batch_end
                for result in with_batch_hooks(found, len(specs), begin, end, self._logs_of_test):
                    if stream == VALIDATION and self._stop_requested:
                        raise _StopRequestedError
                    if isinstance(result, TaskFailure):
                        raise result.as_error()
                    results.append(result)
        summary = self.problem.summarize(results)
        hooks.on_test_end(summary.metrics())
        return summary

    def _logs_of_test(self, evaluation):
        return self.problem.summarize([evaluation]).metrics()


def _optimizer(optimizer):
    return keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer
