"""Supervised tasks: a Keras model, a loss, and batches of inputs and targets."""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import whole_number
from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    TaskLayers,
    WrongSecondDerivativesError,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners.base import Learner, MeasuredAdaptation, TrainingSetup
from leap_tf.tasks import Task
from leap_tf.training.checkpoint import describe
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import Evaluation, TaskEvaluation
from leap_tf.training.inner_loop import InnerLoop
from leap_tf.training.problem import TaskGradient
from leap_tf.training.sampling import TaskSampler, TaskSpec

# Lines of an error that say where it was raised: TensorFlow's nodes and frames, Keras's calls.
_PLACE = re.compile(
    'Graph execution error|Detected at node|<stack traces|File "|\\[\\[|[0-9]+ root error'
    "|Traceback|•|Arguments received by|Exception encountered when calling"
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How evaluation adapts to tasks, where that differs from meta-training.

    Args:
        optimizer: the Keras optimizer of the adaptation, for example with a schedule over another
            number of steps. By default it is the inner optimizer.
        stopping: the rule that ends an adaptation early. It may look at validation or training
            examples, never at those that the task is evaluated on.
        transductive: whether batch norm uses the statistics of the held-out batch itself. By
            default it uses the running statistics of the task's own training.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    stopping: StopRule | None = None
    transductive: bool = False


class SupervisedProblem:
    """Trains and evaluates a Keras model on supervised tasks.

    It implements `leap_tf.training.problem.Problem`.

    Args:
        setup: the model, the optimizers and the numbers of meta-training.
        loss: the Keras loss of every task, or its name.
        learner: the meta-learner; a copy of it is built for this model.
        error_fn: the figure on curves and tables, see `FunctionalModel`.
        evaluation: how evaluation adapts to tasks.
        seed: of the run.

    Attributes:
        model: the model that evaluation adapts: the user's, or the one the learner made of it.
        evaluation_task_layers: names of its layers that are reinitialized for evaluation tasks.
        evaluation_optimizer: the optimizer of adaptations in evaluation.

    Raises:
        ValueError: nothing is left to meta-learn, or the model, learner or optimizer cannot be
            used.
    """

    gradient_type = TaskGradient
    evaluation_type = TaskEvaluation
    on_result = None

    def __init__(
        self,
        setup: TrainingSetup,
        loss: keras.losses.Loss | str,
        learner: Learner,
        *,
        error_fn: ErrorFunction | None = None,
        evaluation: EvaluationConfig | None = None,
        seed: int = 0,
    ):
        self.setup = setup
        self.loss = _loss_named(loss) if isinstance(loss, str) else loss
        self.learner = learner = copy.copy(learner)  # it will hold this model's variables
        self.error_fn = error_fn
        self.evaluation = evaluation or EvaluationConfig()
        self.evaluation_optimizer = self.evaluation.optimizer or setup.inner_optimizer
        self.plan = learner.plan(setup)
        self.sampler = TaskSampler(self.plan, setup.meta_batch_size, whole_number("seed", seed, 0))
        self.model = self.plan.evaluation_model
        is_users = self.model is setup.model
        self.evaluation_task_layers = tuple(setup.task_layers) if is_users else ()
        models = {id(model): model for model in [*self.plan.models, self.model]}
        trainers = {key: _ModelTrainer(self, model) for key, model in models.items()}
        self._trainers = [trainers[id(model)] for model in self.plan.models]
        self._evaluator = trainers[id(self.model)]
        self.learner_variables = self._trainers[0].learner_variables
        self.meta_variables = _unique(each.meta_variables for each in self._trainers)
        self.variables = _unique(
            [*(model.variables for model in self.plan.models), self.learner_variables]
        )

    def get_config(self) -> dict[str, Any]:
        return {"loss": describe(self.loss), "task_layers": list(self.setup.task_layers)}

    def train(self, spec: TaskSpec) -> TaskGradient:
        """Trains on a task and returns its meta-gradient.

        Variables that the task's model does not have get a meta-gradient of zero.
        """
        task = self.sampler.resolve(spec)
        trainer = self._trainers[self.plan.model_index(task) if len(self._trainers) > 1 else 0]
        inputs = trainer.loop_inputs(task, spec, self.setup.stopping, training=True)
        with _error_context(task):
            result = trainer.training_loop.train(**inputs)
        steps = int(result.losses.shape[0])
        _check_steps(task, steps)
        if steps < self.plan.minimum_steps and not self.setup.stopping:
            raise ValueError(
                f"Task {task.name!r} gave {steps} training batches, and "
                f"{type(self.learner).__name__} needs at least {self.plan.minimum_steps}. Repeat "
                "its data set, or make smaller batches."
            )
        losses, errors = result.losses.numpy(), result.errors.numpy()
        gradients = {
            id(variable): gradient
            for variable, gradient in zip(
                trainer.meta_variables, result.update.meta_gradient, strict=True
            )
        }
        state = dict(zip(map(id, trainer.model.model.non_trainable_variables), result.state))
        return TaskGradient(
            meta_gradient=[
                gradients[id(variable)] if id(variable) in gradients else tf.zeros(variable.shape)
                for variable in self.meta_variables
            ],
            metrics={
                "loss": float(losses.mean()),
                "error": float(errors.mean()),
                "final_loss": float(losses[-1]),
                "gradient_steps": steps,
                **{name: float(value) for name, value in result.update.metrics.items()},
            },
            finite=bool(result.finite),
            state=[
                tf.convert_to_tensor(state.get(id(variable), variable.value))
                for variable in self.plan.persistent_state
            ],
        )

    def evaluate(self, spec: TaskSpec) -> TaskEvaluation:
        """Adapts to a task without a meta-learner and evaluates its held-out examples."""
        task = self.sampler.resolve(spec)
        stopping = self.evaluation.stopping
        if stopping and stopping.on == "validation" and not hasattr(task, "validation_batches"):
            raise ValueError(
                f"The stop rule of the evaluation needs validation examples, and task "
                f"{task.name!r} has no validation_batches(). It must not look at the examples that "
                "the task is evaluated on."
            )
        held_out_batches = task.test_batches()
        if held_out_batches.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"test_batches() of task {task.name!r} never end. Every held-out example is "
                "evaluated once, so leave out .repeat()."
            )
        loop = self._evaluator.evaluation_loop
        inputs = self._evaluator.loop_inputs(task, spec, stopping, training=False)
        with _error_context(task):
            adapted = loop.train(**inputs)
        _check_steps(task, int(adapted.losses.shape[0]))
        with _error_context(task):
            held_out = loop.evaluate(iter(held_out_batches), adapted.parameters, adapted.state)
        if not int(held_out.examples):
            raise ValueError(f"Task {task.name!r} has no held-out examples to evaluate.")
        return TaskEvaluation(
            name=task.name,
            error=float(held_out.error),
            loss=float(held_out.loss),
            examples=int(held_out.examples),
            training_errors=adapted.errors.numpy(),
            training_losses=adapted.losses.numpy(),
            path_length=float(adapted.update.metrics["path_length"]),
            path_energy=float(adapted.update.metrics["path_energy"]),
            parameters=sum(int(tf.size(parameter)) for parameter in adapted.parameters),
            seed=spec.seed,
        )

    def summarize(self, results: Sequence[TaskEvaluation]) -> Evaluation:
        return Evaluation(tuple(results))


def _loss_named(name: str) -> keras.losses.Loss:
    """Returns the Keras loss of a name such as "mse" or "MeanSquaredError".

    Raises:
        ValueError: Keras knows no loss of this name.
    """
    loss = keras.losses.get(name)
    if isinstance(loss, keras.losses.Loss):
        return loss
    for cls in vars(keras.losses).values():
        if isinstance(cls, type) and cls is not keras.losses.Loss:
            instance = cls()
            if getattr(instance, "fn", None) is loss:
                return instance
    raise ValueError(f"Keras has no loss class for {name!r}. Pass a keras.losses.Loss.")


class _ModelTrainer:
    """One model of a problem, with its traced loops and reinitialized layers."""

    def __init__(self, problem: SupervisedProblem, model: keras.Model):
        setup, learner = problem.setup, problem.learner
        task_layers = setup.task_layers if model is setup.model else ()
        self.model = FunctionalModel(model, problem.loss, problem.error_fn)
        if problem.evaluation.transductive and self.model.has_random_layers:
            raise ValueError(
                "Transductive evaluation runs the model as in training, so its random layers "
                "(dropout, noise) would be active. Evaluate this model inductively."
            )
        self._fresh_layers = TaskLayers(model, task_layers)
        meta_indices = meta_learned_indices(model, task_layers)
        if not meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        variables = self.model.variables
        of_model = [variables[index] for index in meta_indices]
        self.learner_variables = learner.build(of_model)
        self.meta_variables = [*of_model, *self.learner_variables]
        self._learner = learner
        last = output_layer(model)
        self._fresh_head = last if last and last.name in task_layers else None
        head = {id(each) for each in (self._fresh_head.weights if self._fresh_head else ())}
        resizable = [index for index, variable in enumerate(variables) if id(variable) in head]
        self.training_loop = InnerLoop(
            self.model,
            FunctionalOptimizer(setup.inner_optimizer, variables),
            learner,
            meta_indices,
            stopping=setup.stopping,
            resizable=resizable,
            trains_parts=problem.plan.trains_parts,
        )
        self.evaluation_loop = InnerLoop(
            self.model,
            FunctionalOptimizer(problem.evaluation_optimizer, variables),
            MeasuredAdaptation(learner, meta_indices),
            range(len(variables)),
            stopping=problem.evaluation.stopping,
            transductive=problem.evaluation.transductive,
            resizable=resizable,
        )

    def loop_inputs(
        self, task: Task, spec: TaskSpec, stopping: StopRule | None, training: bool
    ) -> dict[str, Any]:
        """Returns the arguments with which an inner loop trains on a task."""
        # A NumPy number, since TensorFlow keeps a tensor for every Python number it is given.
        seed = tf.constant(np.int64(spec.seed))
        fresh = self._fresh_layers.draw(seed, self._units_for(task))
        parameters, state = self.model.initial_values(seed, fresh)
        batches = iter(task.train_batches(spec.seed))
        with _error_context(task):
            queries = None
            if training and self._learner.query_batches and hasattr(task, "query_batches"):
                queries = iter(task.query_batches(spec.seed))
            stop_batches = iter(_stop_batches(task, spec.seed, stopping)) if stopping else None
        # Steps of second order are counted while the graph is built.
        unrolled = training and self._learner.second_order
        return {
            "batches": batches,
            "max_steps": spec.steps if unrolled else tf.convert_to_tensor(spec.steps),
            "parameters": parameters,
            "state": state,
            "learner_values": [
                tf.convert_to_tensor(variable.value) for variable in self.learner_variables
            ],
            "stop_batches": stop_batches,
            "queries": queries,
        }

    def _units_for(self, task: Task) -> dict[str, int]:
        """The task's number of classes, by the name of the layer that must have it."""
        classes = getattr(task, "classes", None)
        if classes is None:
            return {}
        if self._fresh_head:
            return {self._fresh_head.name: classes}
        units = self.model.model.output_shape[-1]
        if classes != units:
            raise ValueError(
                f"Task {task.name!r} has {classes} classes, and the model {units} outputs. Name "
                "its output layer in task_layers, and every task gets a head of its own width."
            )
        return {}


def _stop_batches(task, seed, stopping):
    """Endless batches for a stop rule, in an order that the seed decides."""
    if stopping.on == "training":
        another_order = int(np.random.default_rng([seed, 1]).integers(2**31))
        return task.train_batches(another_order).rebatch(stopping.batch_size).repeat()
    make_batches = getattr(task, "validation_batches", task.test_batches)
    batches = make_batches().rebatch(stopping.batch_size)
    return batches.shuffle(1024, seed=seed).repeat()


def _check_steps(task, steps):
    if not steps:
        raise ValueError(
            f"Task {task.name!r} gave no training batch. Check that its data set is not empty, and "
            "not smaller than a batch with drop_remainder."
        )


def _unique(groups):
    return list({id(variable): variable for group in groups for variable in group}.values())


@contextlib.contextmanager
def _error_context(task: Task) -> Iterator[None]:
    """Adds the task and the usual cause to errors of the graph."""
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
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        gist, hint = _gist(error), ""
        if gist.startswith("label") and getattr(task, "classes", None) is None:
            hint = " If the head is one of the task_layers, the task needs an attribute `classes`."
        elif "string" in gist:
            hint = " Number the labels: np.unique(labels, return_inverse=True)[1]."
        raise ValueError(
            f"Task {task.name!r} has data the model or loss cannot take: {gist}.{hint}"
        ) from error
    except tf.errors.UnknownError as error:  # of Python code in an input pipeline
        raise ValueError(f"The data set of task {task.name!r} fails: {_gist(error)}") from error
    except (ValueError, TypeError) as error:  # in tracing: the data's shapes, or a user's code
        raise ValueError(
            f"Task {task.name!r} cannot be trained on: {_gist(error)}. Its inputs need the shape "
            "and dtype of the model's; the loss, the error function and the learner must take them."
        ) from error


def _gist(error):
    """The line that matters: the first that names no place, the last of a traced function's."""
    text = re.sub(r"\x1b\[\d*m", "", str(getattr(error, "message", error)))
    label = re.search(r"label value of (-?\d+) which is outside the valid range of (\[.*?\))", text)
    if label:
        return f"label {label[1]} is outside {label[2]}"
    lines = [re.sub(r"^\(\d+\) +[A-Z_]+: ", "", line.strip()) for line in text.splitlines()]
    lines = [line for line in lines if line and not _PLACE.match(line)] or [type(error).__name__]
    return lines[-1 if lines[0].endswith("in user code:") else 0].removesuffix(".")
