"""Supervised tasks: a Keras model, a loss, and batches of inputs and targets."""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import ArrayTask, check_labels, check_no_text
from leap_tf.errors import whole_number
from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    TaskLayers,
    TotalLoss,
    check_policy,
    check_training_rule,
    copy_with_values,
    default_metrics,
    error_context,
    meta_learned_indices,
    output_layer,
    running_statistics,
    unpack_batch,
)
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners.base import Learner, MeasuredAdaptation, TrainingSetup
from leap_tf.tasks import Task, batches_of
from leap_tf.training.checkpoint import describe
from leap_tf.training.early_stopping import StopRule
from leap_tf.training.evaluation import Evaluation, TaskEvaluation
from leap_tf.training.inner_loop import InnerLoop
from leap_tf.training.problem import TaskGradient
from leap_tf.training.sampling import TaskSampler, TaskSpec

_LOGGER = logging.getLogger("leap_tf")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How evaluation adapts to tasks, where that differs from meta-training.

    Args:
        optimizer: the Keras optimizer of the adaptation, for example with a schedule over another
            number of steps. By default it is the inner optimizer.
        stopping: the rule that ends an adaptation early. It may look at validation or training
            examples, never at those that the task is evaluated on.
        transductive: whether batch norm uses the statistics of the held-out batch itself. By
            default it uses the running statistics of the task's own training. Random layers,
            such as dropout, are in inference in both cases.
        error_fn: the figure on curves and tables, in training too, see
            `leap_tf.functional.FunctionalModel`.
        metrics: Keras metrics of the held-out examples, with sample weights. `TaskEvaluation` has
            their values, and the logs of `fit` their means as `val_<name>`.

    Raises:
        ValueError: two metrics have the same name, or one that the logs use, or a metric makes its
            variables at its first batch.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    stopping: StopRule | None = None
    transductive: bool = False
    error_fn: ErrorFunction | None = None
    metrics: Sequence[keras.metrics.Metric] = ()

    def __post_init__(self):
        names = [*Evaluation(()).metrics(), *(metric.name for metric in self.metrics)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"The names {twice} of metrics are taken. Give each metric another name, for "
                "example keras.metrics.AUC(name='roc_auc')."
            )
        for metric in self.metrics:
            if not metric.variables:
                raise ValueError(
                    f"The metric {metric.name!r} makes its variables at its first batch. Call its "
                    "update_state on an example and then its reset_state."
                )


class SupervisedProblem:
    """Trains and evaluates a Keras model on supervised tasks.

    It implements `leap_tf.training.problem.Problem`.

    Args:
        setup: the model, the optimizers and the numbers of meta-training.
        loss: as for `MetaTrainer`.
        learner: the meta-learner; a copy of it is built for this model.
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
        loss: Any,
        learner: Learner,
        *,
        evaluation: EvaluationConfig | None = None,
        seed: int = 0,
    ):
        self.setup = setup
        self.loss = _as_loss(loss)
        self.learner = learner = copy.copy(learner)  # it will hold this model's variables
        self.evaluation = evaluation or EvaluationConfig()
        self.error_fn = self.evaluation.error_fn
        if self.evaluation.metrics and isinstance(self.loss, TotalLoss):
            raise ValueError("EvaluationConfig.metrics need a model with one output. Use error_fn.")
        self.evaluation_optimizer = self.evaluation.optimizer or setup.inner_optimizer
        check_training_rule(setup.model)  # learners may train other models, made of this one
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
        self.state_variables = self._state_variables()
        self._has_warned = False
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
        with error_context(task):
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
                for variable in self.state_variables
            ],
        )

    def evaluate(self, spec: TaskSpec) -> TaskEvaluation:
        """Adapts to a task without a meta-learner and evaluates its held-out examples."""
        task = self.sampler.resolve(spec)
        held_out_batches = _batches(task, "test_batches")
        if held_out_batches.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"test_batches() of task {task.name!r} never end. Every held-out example is "
                "evaluated once, so leave out .repeat()."
            )
        adapted = self._adapt(task, spec)
        with error_context(task, "a held-out batch"):
            held_out = self._evaluator.evaluation_loop.evaluate(
                iter(held_out_batches), adapted.parameters, adapted.state
            )
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
            finite=bool(adapted.finite) and bool(held_out.finite),
            seed=spec.seed,
            metrics={
                metric.name: _one_number(metric, value)
                for metric, value in zip(self.evaluation.metrics, held_out.metrics)
            },
        )

    def adapt(self, task: Task, seed: int, steps: int) -> keras.Model:
        """Adapts to a task as `evaluate` does, see `MetaTrainer.adapt`."""
        if self.model is not self.setup.model:
            raise ValueError(
                f"{type(self.learner).__name__} adapts a model of its own, which takes the number "
                "of a task with every input. Use evaluate()."
            )
        adapted = self._adapt(task, TaskSpec("", 0, 0, seed, steps))
        variables = [*self.model.trainable_variables, *self.model.non_trainable_variables]
        values = [*adapted.parameters, *adapted.state]
        model = copy_with_values(self.model, dict(zip(map(id, variables), values, strict=True)))
        loss, metrics = self.loss, [_copy(metric) for metric in self.evaluation.metrics]
        if isinstance(loss, TotalLoss):
            loss = loss.losses
            metrics = tf.nest.map_structure(default_metrics, loss)
        elif self.error_fn:
            metrics.append(keras.metrics.MeanMetricWrapper(self.error_fn, name="error"))
        else:
            metrics += default_metrics(loss)
        model.compile(_copy(self.evaluation_optimizer), loss, weighted_metrics=metrics)
        return model

    def _adapt(self, task, spec):
        """Trains on a task from the initialization, along the learner's direction."""
        stopping = self.evaluation.stopping
        if stopping and stopping.on == "validation" and not hasattr(task, "validation_batches"):
            raise ValueError(
                f"The stop rule of the evaluation needs validation examples, and task "
                f"{task.name!r} has no validation_batches(). It must not look at the examples that "
                "the task is evaluated on."
            )
        self._warn_of_early_statistics(spec.steps)
        inputs = self._evaluator.loop_inputs(task, spec, stopping, training=False)
        with error_context(task):
            adapted = self._evaluator.evaluation_loop.train(**inputs)
        _check_steps(task, int(adapted.losses.shape[0]))
        return adapted

    def _state_variables(self):
        check_policy(self.setup.running_statistics)
        if self.plan.persistent_state is not None:
            return list(self.plan.persistent_state)
        if self.setup.running_statistics == "fresh":
            return []
        return _unique(
            running_statistics(model, self.setup.task_layers if model is self.setup.model else ())
            for model in self.plan.models
        )

    def _warn_of_early_statistics(self, steps):
        """Warns once if too few steps are made to replace the initial running statistics."""
        if self._has_warned or self.state_variables or self.evaluation.transductive:
            return
        left = {
            layer.name: layer.momentum**steps
            for layer in self.model._flatten_layers()
            if hasattr(layer, "moving_mean") and layer.trainable and layer.momentum**steps > 0.5
        }
        if left:
            self._has_warned = True
            name, share = max(left.items(), key=lambda item: item[1])
            _LOGGER.warning(
                "After %d steps, %.0f %% of the running statistics of %r still come from the "
                "initial model, so held-out errors may be high. Use running_statistics='learned', "
                "transductive evaluation, more steps, or a lower momentum.",
                steps,
                100 * share,
                name,
            )

    def summarize(self, results: Sequence[TaskEvaluation]) -> Evaluation:
        return Evaluation(tuple(results))


def _as_loss(loss):
    if isinstance(loss, (Mapping, list, tuple)):
        return TotalLoss(tf.nest.map_structure(_as_loss, loss))
    return _loss_named(loss) if isinstance(loss, str) else loss


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


def _one_number(metric, value):
    if not tf.is_tensor(value) or value.shape.rank:
        raise ValueError(
            f"The metric {metric.name!r} has several values, and must have one for each task. "
            "Average them, for example by average='macro'."
        )
    return float(value)


def _copy(configured):
    """Returns an unused copy of an optimizer or a metric."""
    return type(configured).from_config(configured.get_config())


class _ModelTrainer:
    """One model of a problem, with its traced loops and reinitialized layers."""

    def __init__(self, problem: SupervisedProblem, model: keras.Model):
        setup, learner = problem.setup, problem.learner
        task_layers = setup.task_layers if model is setup.model else ()
        if len(getattr(model, "outputs", None) or [None]) > 1 and not isinstance(
            problem.loss, TotalLoss
        ):
            raise ValueError(
                f"The model has {len(model.outputs)} outputs {model.output_names}. Pass a loss for "
                "each: a list, or a dictionary if the model returns one."
            )
        self.model = FunctionalModel(model, problem.loss, problem.error_fn)
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
            metrics=problem.evaluation.metrics,
        )

    def loop_inputs(
        self, task: Task, spec: TaskSpec, stopping: StopRule | None, training: bool
    ) -> dict[str, Any]:
        """Returns the arguments with which an inner loop trains on a task."""
        # A NumPy number, since TensorFlow keeps a tensor for every Python number it is given.
        seed = tf.constant(np.int64(spec.seed))
        fresh = self._fresh_layers.draw(seed, self._units_for(task))
        parameters, state = self.model.initial_values(seed, fresh)
        batches = _batches(task, "train_batches", spec.seed)
        self._check_data(task, batches.element_spec[0])
        batches = iter(batches)
        with error_context(task):
            queries = None
            if training and self._learner.query_batches and hasattr(task, "query_batches"):
                queries = iter(_batches(task, "query_batches", spec.seed))
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

    def _check_data(self, task, inputs):
        """Checks what can be checked before anything is traced."""
        wanted = getattr(self.model.model, "input_shape", None)
        if isinstance(inputs, tf.TensorSpec) and isinstance(wanted, tuple):
            shape = inputs.shape
            if shape.rank == len(wanted) and not shape.is_compatible_with(wanted):
                raise ValueError(
                    f"Task {task.name!r}: a batch of its inputs has the shape {tuple(shape)}, and "
                    f"the model takes {wanted}."
                )
        loss = self.model.loss
        if isinstance(task, ArrayTask) and isinstance(
            loss, keras.losses.SparseCategoricalCrossentropy
        ):
            units = self.model.model.output_shape[-1]
            if self._fresh_head and task.classes is not None:
                units = task.classes
            check_labels(task, units, loss.get_config().get("ignore_class"))

    def _units_for(self, task: Task) -> dict[str, int]:
        """The task's number of classes, by the name of the layer that must have it."""
        classes = getattr(task, "classes", None)
        if classes is None:
            return {}
        if self._fresh_head:
            return {self._fresh_head.name: classes}
        if output_layer(self.model.model) is None:
            raise ValueError(
                f"Task {task.name!r} has {classes} classes, and the model not exactly one output, "
                "so its width cannot follow. Leave `classes` out."
            )
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
        batches = _batches(task, "train_batches", another_order)
        return batches.rebatch(stopping.batch_size).repeat()
    held_out = "validation_batches" if hasattr(task, "validation_batches") else "test_batches"
    batches = _batches(task, held_out).rebatch(stopping.batch_size)
    return batches.shuffle(1024, seed=seed).repeat()


def _check_steps(task, steps):
    if not steps:
        raise ValueError(
            f"Task {task.name!r} gave no training batch. Check that its data set is not empty, and "
            "not smaller than a batch with drop_remainder."
        )


def _unique(groups):
    return list({id(variable): variable for group in groups for variable in group}.values())


def _batches(task, method, *arguments):
    """Returns the batches of a task after a check of their structure, before anything is traced."""
    batches = batches_of(task, method, *arguments)
    what = f"Task {task.name!r}, {method}()"
    try:
        targets = unpack_batch(batches.element_spec).targets
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    check_no_text(what, [spec.dtype for spec in tf.nest.flatten(targets)])
    return batches
