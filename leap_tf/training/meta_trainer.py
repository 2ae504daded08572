"""The trainer of supervised tasks: a Keras model and a loss in, a learned initialization out."""

import copy
from collections.abc import Iterable, Sequence

import keras

from leap_tf.functional import FunctionalModel
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners import Leap, Learner
from leap_tf.serialization import Parts
from leap_tf.tasks import Task
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import Evaluation, TaskEvaluation
from leap_tf.training.meta_loop import MetaLoop
from leap_tf.training.pools import TaskPool, ThreadPool, available_cores
from leap_tf.training.supervised import RunnerBank, TaskRunner


class MetaTrainer(MetaLoop):
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
        task_layers: names of layers that start fresh on every task and are not meta-learned. If
            the model's output layer is among them, it has as many units as a task has `classes`.
        error: the figure on curves and tables, see `leap_tf.functional.FunctionalModel`.
        stopping: when training on a task ends before its steps are used up; never by default.
        judged_stopping: the same for tasks that are adapted to in evaluation.
        judged_optimizer: the Keras optimizer on those tasks, by default the inner optimizer; for
            example with a schedule over another number of steps.
        transductive: whether held-out examples are judged with the statistics of their own
            batch in batch norm. By default the running ones of the task's training are used.
        seed: decides everything random but initial weights, those that the learner adds included:
            Keras draws them. `keras.utils.set_random_seed` decides those.
        tolerated_failures: the share of a meta-batch that may raise; a meta-step goes on without
            such tasks and counts them as `tasks_failed`. By default the first one ends `fit`.
        pool: where tasks run; by default `parallel_tasks` threads of this process.

    Attributes:
        model: the model that was given, or what the learner made of it (HAT, Progressive Nets).
        judged_task_layers: names of its layers that start fresh on tasks that are judged.

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
        stopping: StopRule | None = None,
        judged_stopping: StopRule | None = None,
        judged_optimizer: keras.optimizers.Optimizer | None = None,
        transductive: bool = False,
        seed: int = 0,
        tolerated_failures: float = 0.0,
        pool: TaskPool | None = None,
    ):
        learner = copy.copy(learner) if learner else Leap()  # it will know this model's variables
        models = learner.training_models(model, task_layers)
        judged_model = learner.judged_model(model, models)
        lasting_state = learner.lasting_state(models)
        self.loss = loss
        self.error = error
        self.inner_optimizer = inner_optimizer
        self.judged_optimizer = judged_optimizer or inner_optimizer
        self.judged_stopping = judged_stopping
        self.task_layers = tuple(task_layers)
        self.judged_task_layers = self.task_layers if judged_model is model else ()
        self.transductive = transductive
        runners = {
            id(each): TaskRunner(
                FunctionalModel(each, loss, error),
                inner_optimizer,
                learner,
                self.task_layers if each is model else (),
                stopping,
                judged_stopping,
                self.judged_optimizer,
                transductive,
                lasting_state,
            )
            for each in {id(each): each for each in [*models, judged_model]}.values()
        }
        runner = RunnerBank([runners[id(each)] for each in models])
        self._learner_variables = runner.own_variables
        saved = {id(variable): variable for each in models for variable in each.variables}
        super().__init__(
            judged_model,
            meta_optimizer,
            inner_optimizer,
            learner,
            runner,
            runners[id(judged_model)],
            [*saved.values(), *self._learner_variables],
            steps_per_task,
            meta_batch_size,
            pool or ThreadPool(available_cores() if parallel_tasks is None else parallel_tasks),
            stopping,
            {"loss": loss, "task_layers": self.task_layers},
            seed,
            tolerated_failures,
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The model's variables and the learner's own: what adaptation to a task starts from."""
        return [*self.model.variables, *self.learner_variables]

    @property
    def learner_variables(self) -> list[keras.Variable]:
        return self._learner_variables

    def evaluate(
        self, tasks: Iterable[Task], steps: int | None = None, split: str = "test"
    ) -> Evaluation:
        """Adapts to each task from the initialization and judges on its held-out examples.

        Adaptation uses batch statistics and fresh task layers, exactly as in meta-training.
        Held-out examples are judged with the running statistics of the task's own training
        (inductive) unless the trainer is `transductive`. Nothing of the model changes.

        Args:
            tasks: tasks to adapt to.
            steps: gradient steps; `steps_per_task` by default.
            split: "test" or "validation", whichever tasks of the study these are: workers
                elsewhere find them by it. Results do not depend on it.

        Returns:
            Errors and curves of every task.

        Raises:
            ValueError: there are no tasks, a task has no batches, or not what the model takes.
        """
        return super().evaluate(tasks, steps, split)

    def summary(self, results: Sequence[TaskEvaluation]) -> Evaluation:
        return Evaluation(tuple(results))

    def read_judged(self, parts: Parts) -> TaskEvaluation:
        return TaskEvaluation.from_parts(parts)
