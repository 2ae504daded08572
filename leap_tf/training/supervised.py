"""One task from its seed to its result: what a pool runs, and what it needs to know for it.

A task goes in with a seed, numbers come out. The runner reads the initialization from the
Keras model and changes nothing, so any number of threads can use one runner.

Several runners as one: a numbered task is trained on the model of its number.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.functional import (
    FreshLayers,
    FunctionalModel,
    FunctionalOptimizer,
    WrongSecondDerivativesError,
    meta_learned_indices,
    output_layer,
)
from leap_tf.learners import Adaptation, Learner
from leap_tf.tasks import Task
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import TaskEvaluation
from leap_tf.training.inner_loop import TaskLoop, TaskResult
from leap_tf.training.problem import SeededTask, TrainedTask


class TaskRunner:
    """Trains and evaluates on single tasks, from the model's present weights.

    Args:
        model: the model and its loss.
        inner_optimizer: the optimizer that trains on tasks.
        learner: the meta-learner that watches.
        task_layers: names of layers that start fresh on every task.
        stopping: when training on a task ends early.
        judged_stopping: when adaptation to a task that is judged does; it looks at validation
            examples only.
        judged_optimizer: the optimizer of such an adaptation; the inner one by default.
        transductive: see `TaskLoop`.
        lasting_state: non-trainable variables that keep what a task leaves in them.

    Attributes:
        meta_variables: the model's meta-learned variables, then the learner's own.
        own_variables: the learner's own.
        lasting_state: those of the model.

    Raises:
        ValueError: nothing is left to meta-learn, or the optimizer cannot be used.
    """

    def __init__(
        self,
        model: FunctionalModel,
        inner_optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        task_layers: Sequence[str],
        stopping: StopRule | None = None,
        judged_stopping: StopRule | None = None,
        judged_optimizer: keras.optimizers.Optimizer | None = None,
        transductive: bool = False,
        lasting_state: Sequence[keras.Variable] = (),
    ):
        self._model = model
        self._fresh_layers = FreshLayers(model.model, task_layers)
        self._stopping = stopping
        self._judged_stopping = judged_stopping
        meta_indices = meta_learned_indices(model.model, task_layers)
        if not meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        if transductive and model.has_random_layers:
            raise ValueError(
                "transductive evaluation runs the model as in training, and its random layers "
                "(dropout, noise) would be active. Judge this model inductively."
            )
        of_model = [model.variables[index] for index in meta_indices]
        self.own_variables = learner.build(of_model)
        self.meta_variables = [*of_model, *self.own_variables]
        lasting = {id(variable) for variable in lasting_state}
        others = model.model.non_trainable_variables
        self._lasting_indices = [i for i, other in enumerate(others) if id(other) in lasting]
        self.lasting_state = [others[index] for index in self._lasting_indices]
        self._query_batches = learner.query_batches
        self._minimum_steps = learner.minimum_steps
        last = output_layer(model.model)
        self._fresh_head = last if last and last.name in task_layers else None
        head = {id(each) for each in (self._fresh_head.weights if self._fresh_head else ())}
        resizable = [
            index for index, variable in enumerate(model.variables) if id(variable) in head
        ]
        self._training_loop = TaskLoop(
            model,
            FunctionalOptimizer(inner_optimizer, model.variables),
            learner,
            meta_indices,
            stopping,
            resizable=resizable,
        )
        self._evaluation_loop = TaskLoop(
            model,
            FunctionalOptimizer(judged_optimizer or inner_optimizer, model.variables),
            Adaptation(learner, meta_indices),
            range(len(model.variables)),
            judged_stopping,
            transductive=transductive,
            resizable=resizable,
        )

    def train(self, seeded: SeededTask) -> TrainedTask:
        """Trains on a task and returns what the learner makes of it."""
        result = self._adapt(self._training_loop, seeded, self._stopping)
        steps = int(result.losses.shape[0])
        if steps < self._minimum_steps and not self._stopping:
            raise ValueError(
                f"Task {seeded.task.name!r} gave {steps} training batches, and the learner learns "
                f"from no less than {self._minimum_steps}. Repeat its data set, or make smaller "
                "batches."
            )
        losses, errors = result.losses.numpy(), result.errors.numpy()
        return TrainedTask(
            meta_gradient=result.update.meta_gradient,
            metrics={
                "loss": float(losses.mean()),
                "error": float(errors.mean()),
                "final_loss": float(losses[-1]),
                "gradient_steps": len(losses),
                **{name: float(value) for name, value in result.update.metrics.items()},
            },
            finite=bool(result.finite),
            state=[result.state[index] for index in self._lasting_indices],
        )

    def evaluate(self, seeded: SeededTask) -> TaskEvaluation:
        """Trains on a task without a meta-learner and judges on its held-out examples."""
        stopping = self._judged_stopping
        looks_at_held_out = stopping and stopping.on == "validation"
        if looks_at_held_out and not hasattr(seeded.task, "validation_batches"):
            raise ValueError(
                f"judged_stopping needs validation examples, and task {seeded.task.name!r} has no "
                "validation_batches(). It must not stop by those it is judged on."
            )
        held_out_batches = seeded.task.test_batches()
        if held_out_batches.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"test_batches() of task {seeded.task.name!r} never end. Every held-out example "
                "is judged once, so leave out .repeat()."
            )
        adapted = self._adapt(self._evaluation_loop, seeded, stopping)
        batches = iter(held_out_batches)
        with _naming(seeded.task):
            held_out = self._evaluation_loop.evaluate(batches, adapted.parameters, adapted.state)
        if not int(held_out.examples):
            raise ValueError(f"Task {seeded.task.name!r} has no held-out examples to judge by.")
        return TaskEvaluation(
            name=seeded.task.name,
            error=float(held_out.error),
            loss=float(held_out.loss),
            examples=int(held_out.examples),
            training_errors=adapted.errors.numpy(),
            training_losses=adapted.losses.numpy(),
            path_length=float(adapted.update.metrics["path_length"]),
            path_energy=float(adapted.update.metrics["path_energy"]),
            parameters=sum(int(tf.size(parameter)) for parameter in adapted.parameters),
            seed=seeded.seed,
        )

    def _adapt(self, loop: TaskLoop, seeded: SeededTask, stopping: StopRule | None) -> TaskResult:
        keras_model = self._model.model
        # Of NumPy's: for every Python number it is given TensorFlow keeps a tensor, for good.
        seed = tf.constant(np.int64(seeded.seed))
        fresh = self._fresh_layers.draw(seed, self._units_for(seeded.task))
        parameters, state = (
            [fresh.get(id(variable), value) for variable, value in zip(variables, values)]
            for variables, values in (
                (self._model.variables, self._model.parameters()),
                (keras_model.non_trainable_variables, self._model.state(seed)),
            )
        )
        batches = iter(seeded.task.train_batches(seeded.seed))
        own = [tf.convert_to_tensor(variable.value) for variable in self.own_variables]
        with _naming(seeded.task):
            held_out = stopping and _batches_to_stop_by(seeded, stopping)
            make_queries = getattr(seeded.task, "query_batches", None)
            if make_queries is None or loop is self._evaluation_loop or not self._query_batches:
                queries = None
            else:
                queries = iter(make_queries(seeded.seed))
            result = loop.train(batches, seeded.steps, parameters, state, own, held_out, queries)
        if not result.losses.shape[0]:
            raise ValueError(
                f"Task {seeded.task.name!r} gave no training batch. Check that its data set is "
                "not empty, and not smaller than a batch with drop_remainder."
            )
        return result

    def _units_for(self, task: Task) -> dict[str, int]:
        """The task's own number of classes, by the name of the layer that must have it."""
        classes = getattr(task, "classes", None)
        if classes is None:
            return {}
        if self._fresh_head:
            return {self._fresh_head.name: classes}
        units = self._model.model.output_shape[-1]
        if classes != units:
            raise ValueError(
                f"Task {task.name!r} has {classes} classes, and the model {units} outputs. Name "
                "its output layer in task_layers, and every task has one of its own."
            )
        return {}


def _batches_to_stop_by(seeded, stopping):
    """Endless batches for a stop rule, in an order that the seed decides."""
    task = seeded.task
    if stopping.on == "training":
        another_order = int(np.random.default_rng([seeded.seed, 1]).integers(2**31))
        return iter(task.train_batches(another_order).rebatch(stopping.batch_size).repeat())
    make_batches = getattr(task, "validation_batches", task.test_batches)
    batches = make_batches().rebatch(stopping.batch_size)
    return iter(batches.shuffle(1024, seed=seeded.seed).repeat())


@contextlib.contextmanager
def _naming(task: Task) -> Iterator[None]:
    """Says of which task an error in the graph is, and what usually causes it."""
    try:
        yield
    except tf.errors.OutOfRangeError as error:
        raise ValueError(
            f"Task {task.name!r} has fewer training batches than the learner's steps and query "
            "batches together, or no held-out ones to stop by. Repeat its data set, or make fewer "
            "steps."
        ) from error
    except WrongSecondDerivativesError as error:
        raise ValueError(f"{_gist(error)} Or take a first-order learner.") from error
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"Task {task.name!r} has data the model or loss cannot take. Labels must lie in "
            "[0, outputs of the model), and inputs must have the model's shape and dtype. The "
            f"error was: {_gist(error)}"
        ) from error
    except (ValueError, TypeError) as error:  # in tracing: the data's shapes, or somebody's code
        raise ValueError(
            f"Task {task.name!r} cannot be trained on. Either its inputs have not the shape and "
            "dtype of the model's, or the loss, the error function or the learner fails on them: "
            f"{_gist(error)}"
        ) from error


def _gist(error):
    """The line that matters: the first of TensorFlow's, the last of a traced function's."""
    text = re.sub(r"\x1b\[\d*m", "", str(getattr(error, "message", error)))
    lines = [line.strip() for line in text.splitlines()]
    # Keras frames what went wrong by the call and its arguments.
    frame = ("•", "Arguments received by", "Exception encountered when calling")
    lines = [line for line in lines if line and not line.startswith(frame)]
    lines = lines or [type(error).__name__]
    return lines[-1] if lines[0].endswith("in user code:") else lines[0]


class RunnerBank:
    """Trains tasks on one of several models that may share variables.

    The task's `number` says which, if there are several. Meta-gradients of variables that a model
    does not have are zero, and its lasting state is all that changes.

    Args:
        runners: one for each model.

    Attributes:
        meta_variables, own_variables, lasting_state: of all runners, each variable once.
    """

    def __init__(self, runners: Sequence[TaskRunner]):
        self._runners = list(runners)
        self.own_variables = self._runners[0].own_variables
        self.meta_variables = _each_once(runner.meta_variables for runner in self._runners)
        self.lasting_state = _each_once(runner.lasting_state for runner in self._runners)

    def train(self, seeded: SeededTask) -> TrainedTask:
        """Trains on a task and returns what the learner makes of it.

        Raises:
            ValueError: there are several models, and the task does not say which is its.
        """
        runner = self._runner_of(seeded.task)
        trained = runner.train(seeded)
        gradients = dict(zip(map(id, runner.meta_variables), trained.meta_gradient, strict=True))
        states = dict(zip(map(id, runner.lasting_state), trained.state, strict=True))
        return TrainedTask(
            [
                gradients[id(variable)] if id(variable) in gradients else tf.zeros(variable.shape)
                for variable in self.meta_variables
            ],
            trained.metrics,
            trained.finite,
            [states.get(id(variable), variable.value) for variable in self.lasting_state],
        )

    def _runner_of(self, task):
        if len(self._runners) == 1:
            return self._runners[0]
        number = getattr(task, "number", None)
        if number is None:
            raise ValueError(
                f"Task {task.name!r} has no number, and each of {len(self._runners)} models trains "
                "on a task of its own. The learner's draw_tasks must number them."
            )
        return self._runners[number]


def _each_once(lists) -> list[keras.Variable]:
    return list({id(variable): variable for each in lists for variable in each}.values())
