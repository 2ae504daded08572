"""The outer loop: train a meta-batch of tasks in parallel, move the initialization, repeat.

The user's Keras model *is* the initialization: its variables change only at meta-updates, since
tasks are trained functionally, on copies. Every random number is derived from (seed, meta-step,
task), so results depend neither on the number of parallel tasks nor on where a run was interrupted.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import keras

from leap_tf.errors import names, whole_number
from leap_tf.learners import Leap, Learner, TrainingSetup, with_meta_optimizer
from leap_tf.tasks import Task, TaskDistribution
from leap_tf.training.callbacks import (
    HealthWarnings,
    callback_list,
    checked_callbacks,
    end_training,
    restore_callback_state,
    save_callback_state,
    shown_as_optimizer,
    with_batch_hooks,
)
from leap_tf.training.checkpoint import CheckpointFolder, TrainingState
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import EvaluationConfig
from leap_tf.training.pools import Job, TaskPool, available_cores, failure_of, submit_ahead
from leap_tf.training.problem import (
    MetaBatch,
    Problem,
    StopRequestedError,
    check_setup,
    evaluate_specs,
    settings_of,
    training_job,
)
from leap_tf.training.sampling import EVALUATION, VALIDATION, TaskSpec, as_tasks
from leap_tf.training.supervised import SupervisedProblem


class ThreadPool:
    """Runs tasks on threads of this process. TensorFlow releases the GIL while it computes.

    Args:
        threads: how many tasks run at the same time.

    Raises:
        ValueError: `threads` is below 1.
    """

    remote = False

    def __init__(self, threads: int):
        self.threads = whole_number("threads", threads, 1)
        # Never replaced: TensorFlow keeps a few kilobytes for each thread that it has ever seen.
        self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def map(self, job: Job, specs: Sequence[TaskSpec]) -> Generator[Any, None, None]:
        def run(spec):
            result = job.run(spec)
            if job.on_result:
                job.on_result(spec, result)
            return result

        with closing(submit_ahead(self._executor, self.threads, run, specs)) as futures:
            for spec, future in futures:
                error = future.exception()
                yield failure_of(job, spec, error) if error else future.result()


class MetaTrainer:
    """Meta-learns the initialization of a Keras model and evaluates it.

    Args:
        model: a built Keras model. Its weights are the initialization and are updated in place.
        loss: the Keras loss of every task, or its name. A model with several outputs takes a list
            of them, or a dictionary if it returns one; the loss is their sum.
        inner_optimizer: a Keras optimizer that has not been built, or its name. A copy, with its
            settings of now, trains on each task.
        meta_optimizer: a Keras optimizer that has not been built, or its name. It updates the
            initialization. For the default, which suits any number of steps, see
            `leap_tf.learners.with_meta_optimizer`. MAML and its variants have no default.
        learner: the meta-learner; `Leap()` by default.
        steps_per_task: the number of gradient steps on a task. If the task's batches run out, it
            ends early, or raises an error if the learner is second-order or takes its query
            batches from the same stream. Second-order learners need memory for every step; five
            to ten steps are usual.
        meta_batch_size: tasks in a meta-step.
        task_layers: names of layers that get new values for every task and are not meta-learned.
            An output layer among them gets one unit for each of a task's `classes`.
        running_statistics: "learned": each meta-step sets the running statistics to their mean
            over the tasks at the end of training. "fresh": every task starts from the statistics
            of the given model, as in the paper; a few steps hardly change them.
        stopping: the rule that ends training on a task early. By default all steps are made.
        evaluation: settings of evaluation that differ from those of meta-training.
        seed: decides task sampling, batch order, values of task layers and dropout. Initial weights
            are controlled by `keras.utils.set_random_seed`.
        pool: where tasks run: a number of threads of this process, by default one per core, or a
            pool such as `leap_tf.cluster.RayPool`. Results do not depend on it. For full speed call
            `leap_tf.configure_threads()` before anything else.

    Attributes:
        problem: the `Problem` that trains on and evaluates single tasks.
        model: the given model, or the one that the learner builds from it (HAT, Progressive Nets).
        pool: where tasks run.
        was_stopped: whether the last `fit` ended early because `request_stop` was called.

    Raises:
        TypeError: an optimizer, the loss or a number has the wrong type, or a learner or stop rule
            has no `get_config()`.
        ValueError: the model, an optimizer or a number is unsuitable; the message says why.
        KerasVersionError: this version of Keras is not supported.
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
            task_layers=names(task_layers),
            running_statistics=running_statistics,
            stopping=stopping,
        )
        problem = SupervisedProblem(setup, loss, learner, evaluation=evaluation, seed=seed)
        self._initialize(problem, pool)

    @classmethod
    def from_problem(cls, problem: Problem, pool: "TaskPool | int | None" = None) -> "MetaTrainer":
        """Returns a trainer for any `Problem`, such as `leap_tf.atari.AtariProblem`.

        Args:
            problem: the problem. It belongs to this trainer, which sets its `stop_requested`.
            pool: as for `MetaTrainer`.
        """
        trainer = cls.__new__(cls)
        trainer._initialize(problem, pool)
        return trainer

    def _initialize(self, problem, pool):
        check_setup(problem)
        self.problem: Any = problem
        problem.stop_requested = lambda: self._stop_requested
        self.model = problem.plan.evaluation_model
        if not hasattr(pool, "map"):
            pool = ThreadPool(available_cores() if pool is None else whole_number("pool", pool, 1))
        self.pool: TaskPool = pool
        self._local_pool: ThreadPool | None = None  # for tasks outside a remote pool's study
        meta_optimizer = problem.setup.meta_optimizer
        meta_optimizer.build(problem.meta_variables)
        self._state = TrainingState(
            problem.variables, meta_optimizer, problem.sampler.seed, settings_of(problem)
        )
        self._known_folders: dict[pathlib.Path, Mapping[str, Any]] = {}  # folder: its tasks
        # `_continues`: whether the next fit() continues one that was interrupted.
        self._stop_requested = self._continues = self.was_stopped = False

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
        """The learner's own variables, which are meta-learned with the initialization."""
        return self.problem.learner_variables

    @property
    def variables(self) -> list[keras.Variable]:
        """Variables of the model and of the learner, from which adaptation to a task starts."""
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
        """Meta-trains until `meta_steps` meta-updates have been made, earlier calls included.

        With `checkpoint_dir`, training continues from the checkpoint there. A run that was killed
        and restarted ends bit-identical to one that was not, on the same machine's CPU. A meta-step
        that is interrupted or fails has no effect.

        Args:
            task_distribution: the source of the tasks of each meta-batch. A list of tasks is
                wrapped in `FiniteTasks`.
            meta_steps: the total number of meta-updates, those before a restart included.
            validation_tasks: tasks to evaluate during training, as `evaluate` does.
            callbacks: Keras callbacks, see "Callbacks" in docs/design.md. To them, a meta-step is
                an epoch, a task is a batch, the initialization is the model's weights, and the
                meta-optimizer is the optimizer. Metrics: `loss` and `error` (means over steps and
                tasks), `final_loss`, `meta_gradient_norm`, `gradient_steps`, `tasks_skipped`,
                `tasks_failed` and the learner's own. Validation adds those of `Evaluation.metrics`
                as `val_<name>`. Games log `reward`, `final_reward` and `entropy`, but no `error`.
            validation_freq: the number of meta-steps from one validation to the next.
            validation_steps: gradient steps on a validation task; `steps_per_task` by default.
            checkpoint_dir: where checkpoints are kept.
            checkpoint_seconds: the least number of seconds between two checkpoints. `fit` also
                writes one when it returns or raises. A restart repeats at most this much work,
                and the interrupted meta-step.
            tolerated_failures: the fraction of a meta-batch, in [0, 1), whose tasks may raise an
                error. The meta-step continues without them and counts them as `tasks_failed`. By
                default the first failure ends `fit`.
            verbose: whether to show progress.

        Returns:
            The `History` of all meta-steps, those before a restart included.

        Raises:
            MetaTrainingDivergedError: all tasks of a meta-batch diverged, or the meta-update would
                overflow.
            TypeError, ValueError: an argument or a callback cannot be used, a task has no batches
                or does not fit the model, or the tasks are not those of a remote pool's `Study`.
            TaskFailedError: more tasks failed than `tolerated_failures` allows. If it is 0, the
                task's own exception is raised instead.
            TaskPoolError: the pool cannot continue.
            CheckpointMismatchError: the checkpoints are of another run, or of other tasks.
            CheckpointUnreadableError: no checkpoint in the folder can be read.
            OSError: a checkpoint cannot be written.
        """
        meta_steps = whole_number("meta_steps", meta_steps, 0)
        whole_number("validation_freq", validation_freq, 1)
        if validation_steps is None:
            validation_steps = self.problem.setup.steps_per_task
        whole_number("validation_steps", validation_steps, 1)
        if not 0.0 <= tolerated_failures < 1.0:
            raise ValueError(f"tolerated_failures must be in [0, 1), not {tolerated_failures}.")
        callbacks = checked_callbacks(callbacks, bool(self.learner_variables))
        tasks = self.problem.sampler.train_on(task_distribution, must_be_own=self.pool.remote)
        validation_tasks = as_tasks(validation_tasks)
        folder = CheckpointFolder(checkpoint_dir)
        restored = folder.resume(self._state, tasks, self._known_folders)
        self._state.tasks = tasks
        self.was_stopped = False
        if not restored:  # a callback that stopped an earlier fit() does not stop this one
            self._state.progress.stopped = False
        steps = self.problem.setup.meta_batch_size
        if not self._state.progress.warn_if_finished(meta_steps):
            steps = len(self.problem.sampler.training_specs(self.meta_step))
        self.model.stop_training = False
        history, progress = keras.callbacks.History(), self._state.progress
        logs: dict[str, Any] = {}
        with shown_as_optimizer(self.model, self.meta_optimizer):
            shown = {"epochs": meta_steps, "steps": steps, "verbose": verbose}
            hooks = callback_list([HealthWarnings(), *callbacks, history], self.model, **shown)
            hooks.on_train_begin()
            progress.restore_history(history)
            if restored or self._continues:
                restore_callback_state(self._state, callbacks)
            self._continues = True
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
                    folder.save_if_due(self._state, checkpoint_seconds)
            except StopRequestedError:
                self.was_stopped = True
            finally:  # save before on_train_end, in which EarlyStopping may replace the weights
                if progress.meta_step or not meta_steps:
                    folder.save(self._state)
            self._stop_requested, self._continues = False, self.was_stopped
            end_training(hooks, logs, self.was_stopped or progress.meta_step > meta_steps)
        return history

    def request_stop(self) -> None:
        """Asks `fit` to return soon, with a checkpoint if it has a `checkpoint_dir`.

        The current meta-step is discarded and repeated when training continues. If no `fit` is
        running, the next one returns at once. Signal handlers may call this method.
        """
        self._stop_requested = True

    def evaluate(
        self,
        tasks: TaskDistribution | Iterable[Task],
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        *,
        count: int | None = None,
    ) -> Any:
        """Adapts to each task from the initialization and evaluates its held-out examples.

        Adaptation uses batch statistics and new values of task layers, exactly as in meta-training.
        Held-out examples are evaluated with the running statistics of the task's own training
        (inductive) unless the `EvaluationConfig` is transductive. No variable changes. A remote
        pool can evaluate only the validation and test tasks of its `Study`; all others are
        evaluated on threads of this process.

        Args:
            tasks: a list of tasks, one task, a `FiniteTasks`, or with `count` any distribution.
            steps: gradient steps; `steps_per_task` by default.
            callbacks: Keras callbacks. Only their test hooks are called, with a task as a batch.
            count: number of tasks to sample from a distribution. The trainer's seed fixes them.

        Returns:
            An `Evaluation` with the errors and curves of every task.

        Raises:
            ValueError: there are no tasks, or a task has no batches or does not fit the model.
            Exception: the task's own; a `TaskFailedError` if the task ran in another process.
        """
        steps = self.problem.setup.steps_per_task if steps is None else steps
        if count is not None:
            tasks = self.problem.sampler.evaluation_tasks(tasks, whole_number("count", count, 1))
        steps, tasks = whole_number("steps", steps, 1), as_tasks(tasks)
        callbacks = checked_callbacks(callbacks, learner_has_variables=False)
        shown = shown_as_optimizer(self.model, self.meta_optimizer) if callbacks else nullcontext()
        with shown:
            hooks = callback_list(callbacks, self.model, epochs=1, steps=len(tasks))
            return self._evaluate(tasks, steps, EVALUATION, hooks)

    def adapt(self, task: Task, steps: int | None = None) -> keras.Model:
        """Adapts to a task from the initialization and returns the adapted Keras model.

        The model is a copy, compiled with the loss, a copy of the evaluation optimizer, and
        `EvaluationConfig.metrics` with `error_fn` or else accuracy. It has the weights and the
        running statistics with which `evaluate([task])` computes the held-out error. Its `evaluate`
        is inductive. An output layer in `task_layers` has one unit for each of the `classes`.

        Args:
            task: the task. Only `train_batches`, and what a stop rule evaluates, are used.
            steps: gradient steps; `steps_per_task` by default.

        Raises:
            ValueError: the task does not fit the model, or evaluation does not adapt the user's
                own Keras model (games, HAT, Progressive Nets).
            UnsupportedModelError: the model cannot be copied.

        Example:

            >>> import leap_tf
            >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", "sgd")
            >>> task = leap_tf.sinusoid_splits().test[0]
            >>> model = trainer.adapt(task, steps=3)
            >>> loss = model.evaluate(task.test_batches(), verbose=0)
            >>> round(loss, 4) == round(trainer.evaluate([task], steps=3).loss, 4)
            True
        """
        steps = self.problem.setup.steps_per_task if steps is None else steps
        if not isinstance(self.problem, SupervisedProblem):
            raise ValueError("adapt() is for supervised tasks. For games, use problem.adapt().")
        [task] = as_tasks(task)
        return self.problem.adapt(task, self.evaluation_seed(0), whole_number("steps", steps, 1))

    def evaluation_seed(self, index: int) -> int:
        """Returns the seed that `evaluate` gives the task at this index of its tasks."""
        return self.problem.sampler.evaluation_seed(index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes initialization, meta-optimizer, history and random state to a checkpoint."""
        self._state.save(pathlib.Path(path).expanduser())

    def load(self, path: str | os.PathLike) -> None:
        """Restores a checkpoint of `save`, from any tasks. `fit` may then continue in its folder.

        Raises CheckpointMismatchError or CheckpointUnreadableError, as `fit` does.
        """
        path = pathlib.Path(path).expanduser()
        self._state.load(path)
        self._continues = not self._state.progress.stopped
        self._known_folders[path.resolve().parent] = self._state.tasks

    def _make_meta_step(self, epoch, tolerated_failures, hooks) -> dict[str, Any]:
        """Trains a meta-batch of tasks and moves the initialization; returns metrics."""
        problem = self.problem
        specs = problem.sampler.training_specs(epoch)
        batch = MetaBatch(epoch + 1, len(specs), tolerated_failures)
        with closing(self.pool.map(training_job(problem), specs)) as results:
            begin, end = hooks.on_train_batch_begin, hooks.on_train_batch_end
            for result in with_batch_hooks(results, len(specs), begin, end):
                if self._stop_requested:
                    raise StopRequestedError
                if batch.add(result) and problem.on_result:
                    problem.on_result(result)
        return batch.apply(problem)

    def _evaluate(self, tasks, steps, stream, hooks):
        sampler, pool = self.problem.sampler, self.pool
        split = sampler.own_split(tasks) if pool.remote else None
        if pool.remote and split is None:
            pool = self._local_pool = self._local_pool or ThreadPool(available_cores())
        with sampler.temporary_list(tasks) as name:
            specs = sampler.evaluation_specs(split or name, len(tasks), steps, stream)
            return evaluate_specs(self.problem, pool, specs, hooks, stream == VALIDATION)


def _optimizer(optimizer):
    return keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer
