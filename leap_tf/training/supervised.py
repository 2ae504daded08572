"""Supervised tasks: a Keras model, a loss, and batches of inputs and targets."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import whole_number
from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    TaskLayers,
    TotalLoss,
    UnsupportedModelError,
    as_loss,
    check_policy,
    check_task_data,
    check_training_rule,
    copy_optimizer,
    copy_with_values,
    default_metrics,
    error_context,
    meta_learned_indices,
    output_layer,
    running_statistics,
    task_batches,
)
from leap_tf.geometry import accumulator_dtype
from leap_tf.learners.base import Learner, MeasuredAdaptation, TrainingSetup
from leap_tf.tasks import Task, batches_of_few_steps
from leap_tf.training.checkpoint import describe, describe_layers
from leap_tf.training.early_stopping import StopRule, stop_batches
from leap_tf.training.evaluation import Evaluation, EvaluationConfig, TaskEvaluation, metric_value
from leap_tf.training.inner_loop import InnerLoop
from leap_tf.training.problem import TaskGradient
from leap_tf.training.sampling import TaskSampler, TaskSpec

_LOGGER = logging.getLogger("leap_tf")


class SupervisedProblem:
    """Trains and evaluates a Keras model on supervised tasks, as a `Problem`.

    `loss` is as for `MetaTrainer`. The learner is copied, and the copy built for this model.

    Attributes:
        model: the model that evaluation adapts: the user's, or one that the learner builds from it.
        evaluation_task_layers: names of its layers that get new values for evaluation tasks.
        evaluation_optimizer: the optimizer of adaptations in evaluation.

    Raises:
        TypeError: an optimizer or the loss is not one of Keras.
        ValueError: nothing is left to meta-learn, or the model, the learner or an optimizer is
            unsuitable.
        UnsupportedModelError: the model computes in float16, or see `check_training_rule`.
        KerasVersionError: this version of Keras is not supported.
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
        self.loss = as_loss(loss)
        self.learner = learner = copy.copy(learner)  # it will hold this model's variables
        self.evaluation = evaluation or EvaluationConfig()
        self.error_fn = self.evaluation.error_fn
        if self.evaluation.metrics and isinstance(self.loss, TotalLoss):
            raise ValueError("EvaluationConfig.metrics need a model with one output. Use error_fn.")
        self.evaluation_optimizer = self.evaluation.optimizer or setup.inner_optimizer
        check_training_rule(setup.model)  # plan() may replace the user's model by its own
        if any(layer.compute_dtype == "float16" for layer in setup.model._flatten_layers()):
            raise UnsupportedModelError(
                f"{setup.model.name!r} computes in float16, in which small gradients become zero "
                "without loss scaling. Use 'mixed_bfloat16', or train with leap_tf.LeapOptimizer."
            )
        self.plan = learner.plan(setup)
        self.sampler = TaskSampler(self.plan, setup.meta_batch_size, whole_number("seed", seed, 0))
        self.model = self.plan.evaluation_model
        is_user_model = self.model is setup.model
        self.evaluation_task_layers = tuple(setup.task_layers) if is_user_model else ()
        models = {id(model): model for model in [*self.plan.models, self.model]}
        trainers = {key: _ModelTrainer(self, model) for key, model in models.items()}
        self._trainers = [trainers[id(model)] for model in self.plan.models]
        self._evaluator = trainers[id(self.model)]
        # Learners that train several models have no variables of their own.
        self.learner_variables = self._trainers[0].learner_variables
        self.meta_variables = _unique(each.meta_variables for each in self._trainers)
        self.state_variables = self._state_variables()
        self._has_warned = False
        self.variables = _unique(
            [*(model.variables for model in self.plan.models), self.learner_variables]
        )

    def get_config(self) -> dict[str, Any]:
        layers = describe_layers(self.setup.model)
        loss, task_layers = describe(self.loss), list(self.setup.task_layers)
        return {"loss": loss, "task_layers": task_layers, "layers": layers}

    def train(self, spec: TaskSpec) -> TaskGradient:
        """Trains on a task and returns its meta-gradient.

        Variables that the task's model does not have get a meta-gradient of zero.

        Raises:
            ValueError: the task has no or too few batches, or its data do not fit the model.
        """
        task = self.sampler.resolve(spec)
        trainer = self._trainers[self.plan.model_index(task) if len(self._trainers) > 1 else 0]
        inputs = trainer.loop_inputs(task, spec, self.setup.stopping, training=True)
        with error_context(task):
            result = trainer.training_loop.train(**inputs)
        steps = int(result.losses.shape[0])
        _check_steps(task, steps)
        # A stop rule may end a task before that. Leap's meta-gradient of a single step is zero.
        if steps < self.plan.minimum_steps and not self.setup.stopping:
            raise ValueError(
                f"Task {task.name!r} gave {steps} training batches, and "
                f"{type(self.learner).__name__} needs at least {self.plan.minimum_steps}. Repeat "
                "its data set, or make smaller batches."
            )
        losses, errors = result.losses.numpy(), result.errors.numpy()
        metrics = {
            "loss": float(losses.mean()),
            "error": float(errors.mean()),
            "final_loss": float(losses[-1]),
            "gradient_steps": steps,
        }
        if taken := metrics.keys() & result.update.metrics.keys():
            raise ValueError(f"A learner's metrics cannot be named {sorted(taken)}: rename them.")
        wanted = [tuple(each.shape) for each in trainer.meta_variables]
        given = [tuple(each.shape) for each in result.update.meta_gradient]
        if given != wanted:
            raise ValueError(
                f"{type(self.learner).__name__}.end_task() returned meta-gradients of the shapes "
                f"{given}. The meta-learned and learner variables have {wanted}."
            )
        ids = map(id, trainer.meta_variables)
        gradients = dict(zip(ids, result.update.meta_gradient, strict=True))
        state = dict(zip(map(id, trainer.model.model.non_trainable_variables), result.state))
        return TaskGradient(
            meta_gradient=[
                gradients[id(each)]
                if id(each) in gradients
                else tf.zeros(each.shape, accumulator_dtype(tf.as_dtype(each.dtype)))
                for each in self.meta_variables
            ],
            metrics=metrics | {name: float(value) for name, value in result.update.metrics.items()},
            finite=bool(result.finite),
            state=[
                tf.convert_to_tensor(state.get(id(variable), variable.value))
                for variable in self.state_variables
            ],
        )

    def evaluate(self, spec: TaskSpec) -> TaskEvaluation:
        """Adapts to a task with the learner's direction and evaluates its held-out examples.

        Raises:
            ValueError: the task has no batches, no held-out examples or endless ones, or its data
                do not fit the model.
        """
        task = self.sampler.resolve(spec)
        held_out_batches = task_batches(task, "test_batches")
        if held_out_batches.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"test_batches() of task {task.name!r} never ends. Every held-out example is "
                "evaluated once, so leave out .repeat()."
            )
        adapted = self._adapt(task, spec)
        modes = {"": self.evaluation.transductive is True}
        if self.evaluation.transductive == "both":
            modes["transductive_"] = True
        held_out = {
            prefix: self._held_out(task, held_out_batches, adapted, transductive)
            for prefix, transductive in modes.items()
        }
        metrics = {
            metric.name: metric_value(metric, value)
            for metric, value in zip(self.evaluation.metrics, held_out[""].metrics)
        }
        metrics |= {f"{prefix}error": float(held_out[prefix].error) for prefix in modes if prefix}
        self.evaluation.check_steps(spec.steps)
        for steps in self.evaluation.held_out_steps:
            earlier = self._adapt(task, dataclasses.replace(spec, steps=steps))
            if len(earlier.losses) < steps and not self.evaluation.stopping:
                made = len(earlier.losses)
                raise ValueError(f"held_out_steps has {steps}; {task.name!r} gave {made} batches.")
            for prefix, transductive in modes.items():
                result = self._held_out(task, held_out_batches, earlier, transductive)
                metrics[f"{prefix}error_after_{steps}"] = float(result.error)
        finite = all(bool(result.finite) for result in held_out.values())
        last = held_out[""]
        return TaskEvaluation(
            name=task.name,
            error=float(last.error),
            loss=float(last.loss),
            examples=int(last.examples),
            training_errors=adapted.errors.numpy(),
            training_losses=adapted.losses.numpy(),
            path_length=float(adapted.update.metrics["path_length"]),
            path_energy=float(adapted.update.metrics["path_energy"]),
            parameters=sum(int(tf.size(parameter)) for parameter in adapted.parameters),
            finite=bool(adapted.finite) and finite,
            seed=spec.seed,
            metrics=metrics,
        )

    def _held_out(self, task, batches, adapted, transductive):
        with error_context(task, "a held-out batch"):
            result = self._evaluator.evaluation_loop.evaluate(
                iter(batches), adapted.parameters, adapted.state, transductive
            )
        if not int(result.examples):
            raise ValueError(f"Task {task.name!r} has no held-out examples to evaluate.")
        return result

    def adapt(self, task: Task, seed: int, steps: int) -> keras.Model:
        """Adapts to a task as `evaluate` does, see `MetaTrainer.adapt`."""
        if self.model is not self.setup.model:
            raise ValueError(
                f"{type(self.learner).__name__} adapts a model of its own, which needs a task "
                "number with every input, so it cannot return yours. Use MetaTrainer.evaluate()."
            )
        adapted = self._adapt(task, TaskSpec("", 0, 0, seed, steps))
        if not adapted.finite:
            raise FloatingPointError(
                f"Training on {task.name!r} diverged. Lower the learning rate, or check its data."
            )
        variables = [*self.model.trainable_variables, *self.model.non_trainable_variables]
        values = [*adapted.parameters, *adapted.state]
        model = copy_with_values(self.model, dict(zip(map(id, variables), values, strict=True)))
        metrics = [type(each).from_config(each.get_config()) for each in self.evaluation.metrics]
        loss = self.loss
        if isinstance(loss, TotalLoss):
            loss = loss.losses
            metrics = tf.nest.map_structure(default_metrics, loss)
        elif self.error_fn:
            metrics.append(keras.metrics.MeanMetricWrapper(self.error_fn, name="error"))
        else:
            metrics += default_metrics(loss)
        optimizer = copy_optimizer(self.evaluation_optimizer)
        model.compile(optimizer, loss, weighted_metrics=metrics)
        return model

    def _adapt(self, task, spec):
        """Trains on a task from the initialization, with the learner's direction."""
        stopping = self.evaluation.stopping
        if stopping and stopping.on == "validation" and not hasattr(task, "validation_batches"):
            raise ValueError(
                f"The stop rule of the evaluation needs validation_batches(), which {task.name!r} "
                "does not have. It must not use the examples that the task is evaluated on. Add "
                "the method, or set on='training' in the rule."
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
        learned = self.setup.running_statistics == "learned"
        if self._has_warned or learned or self.evaluation.transductive:
            return
        left = {
            layer.name: layer.momentum**steps
            for layer in self.model._flatten_layers()
            if hasattr(layer, "moving_mean") and layer.trainable
        }
        name = max(left, key=left.__getitem__, default=None)
        if name and left[name] > 0.5:
            self._has_warned = True
            _LOGGER.warning(
                "After %d steps, %.0f %% of the running statistics of %r still come from the "
                "initial model, so held-out errors may be high. Use running_statistics='learned', "
                "transductive evaluation, more steps, or a lower momentum.",
                steps,
                100 * left[name],
                name,
            )

    def summarize(self, results: Sequence[TaskEvaluation]) -> Evaluation:
        return Evaluation(tuple(results))


class _ModelTrainer:
    """One model of a problem, with its traced loops and task layers."""

    def __init__(self, problem: SupervisedProblem, model: keras.Model):
        setup, learner = problem.setup, problem.learner
        task_layers = setup.task_layers if model is setup.model else ()
        self.model = FunctionalModel(model, problem.loss, problem.error_fn)
        self._task_layers = TaskLayers(model, task_layers)
        meta_indices = meta_learned_indices(model, task_layers)
        if not meta_indices:
            raise ValueError("All trainable layers are task_layers; nothing is left to meta-learn.")
        variables = self.model.variables
        meta_learned = [variables[index] for index in meta_indices]
        self.learner_variables = learner.build(meta_learned)
        self.meta_variables = [*meta_learned, *self.learner_variables]
        self._learner, self._plan = learner, problem.plan
        last = output_layer(model)
        self._task_head = last if last and last.name in task_layers else None
        head = {id(each) for each in (self._task_head.weights if self._task_head else ())}
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
            FunctionalOptimizer(
                problem.evaluation_optimizer, variables, "EvaluationConfig.optimizer"
            ),
            MeasuredAdaptation(learner, meta_indices),
            range(len(variables)),
            stopping=problem.evaluation.stopping,
            transductive=bool(problem.evaluation.transductive),
            resizable=resizable,
            metrics=problem.evaluation.metrics,
        )

    def loop_inputs(
        self, task: Task, spec: TaskSpec, stopping: StopRule | None, training: bool
    ) -> dict[str, Any]:
        """Returns the arguments with which an inner loop trains on a task."""
        # TensorFlow caches a tensor for every distinct Python number, but not for NumPy numbers.
        seed = tf.constant(np.int64(spec.seed))
        drawn = self._task_layers.draw(seed, self._units_for(task))
        parameters, state = self.model.initial_values(seed, drawn)
        needed = spec.steps + max(1, self._learner.query_batches)
        batches = batches_of_few_steps(task, spec.seed, needed)
        batches = batches or task_batches(task, "train_batches", spec.seed)
        check_task_data(task, batches.element_spec[0], self.model, resized=bool(self._task_head))
        batches = iter(batches) if isinstance(batches, tf.data.Dataset) else batches
        with error_context(task):
            queries = None
            if training and self._learner.query_batches and hasattr(task, "query_batches"):
                queries = iter(task_batches(task, "query_batches", spec.seed))
            stop = iter(stop_batches(task, spec.seed, stopping)) if stopping else None
        # Second-order steps are unrolled during tracing, so their number must be a Python int.
        unrolled = training and self._learner.second_order
        unrolled = unrolled and spec.meta_step >= self._plan.first_order_until
        earlier = spec.meta_step < self._plan.multi_step_until
        share = 1.0 - spec.meta_step / self._plan.multi_step_until if earlier else None
        return {
            "batches": batches,
            "max_steps": spec.steps if unrolled else tf.convert_to_tensor(spec.steps),
            "parameters": parameters,
            "state": state,
            "learner_values": [tf.convert_to_tensor(each.value) for each in self.learner_variables],
            "stop_batches": stop,
            "queries": queries,
            "second_order": unrolled,
            "multi_step": tf.constant(np.float32(share)) if unrolled and earlier else None,
        }

    def _units_for(self, task: Task) -> dict[str, int]:
        """Returns the units of a resizable head, {layer name: classes}; {} if none is resized."""
        classes = getattr(task, "classes", None)
        if classes is None:
            return {}
        if self._task_head:
            return {self._task_head.name: classes}
        if isinstance(self.model.loss, TotalLoss):
            raise ValueError(
                f"Task {task.name!r} has {classes} classes, but the model has several outputs, and "
                "it is unknown which one they belong to. Remove `classes` from the task."
            )
        units = self.model.units
        if units is not None and classes != units:
            raise ValueError(
                f"Task {task.name!r} has {classes} classes, and the model {units} outputs. Name "
                "its output layer in task_layers, and every task gets a head of its own width."
            )
        return {}


def _check_steps(task, steps):
    if not steps:
        raise ValueError(
            f"Task {task.name!r} gave no training batch. Check that its data set is not empty, and "
            "not smaller than a batch with drop_remainder."
        )


def _unique(groups):
    return list({id(variable): variable for group in groups for variable in group}.values())
