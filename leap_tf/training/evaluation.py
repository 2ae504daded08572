"""Evaluation of adapted models: settings, the traced loop over held-out batches, and results."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from leap_tf.errors import whole_number
from leap_tf.functional import ErrorFunction, FunctionalModel, all_finite, unpack_batch
from leap_tf.training.early_stopping import StopRule


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings of evaluation that differ from those of meta-training.

    Args:
        optimizer: the Keras optimizer of the adaptation, for example with a schedule over another
            number of steps. By default it is the inner optimizer.
        stopping: the rule that ends an adaptation early. It may look at validation or training
            examples, never at those that the task is evaluated on.
        transductive: whether batch norm uses the statistics of the held-out batch itself. By
            default it uses the running statistics of the task's own training. Random layers,
            such as dropout, are inactive in both cases. With "both", `error` is the inductive
            one, and `TaskEvaluation.metrics` has the other as "transductive_error".
        held_out_steps: smaller numbers of gradient steps after which to measure the held-out error
            too. `TaskEvaluation.metrics` has it as "error_after_<n>", and with "both" also as
            "transductive_error_after_<n>". Each number costs one more adaptation.
        error_fn: a function of targets and outputs that returns one error per example, shown in
            curves and tables, in training too. See `leap_tf.functional.FunctionalModel`.
        metrics: Keras metrics of the held-out examples, with sample weights applied. Their values
            are in `TaskEvaluation.metrics`, and their means in the logs of `fit` as `val_<name>`.

    Raises:
        TypeError: a number of steps is not a whole number.
        ValueError: `transductive` is not True, False or "both"; a number of steps is below 1; a
            metric has the name of another one or of a logged value; or a metric has no variables
            before its first batch.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    stopping: StopRule | None = None
    _: dataclasses.KW_ONLY
    transductive: bool | str = False
    held_out_steps: Sequence[int] = ()
    error_fn: ErrorFunction | None = None
    metrics: Sequence[keras.metrics.Metric] = ()

    def __post_init__(self):
        if not isinstance(self.transductive, bool) and self.transductive != "both":
            raise ValueError(
                f'transductive must be True, False or "both". Received: {self.transductive!r}.'
            )
        for steps in self.held_out_steps:
            whole_number("held_out_steps", steps, 1)
        names = [*Evaluation(()).metrics(), *(metric.name for metric in self.metrics)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Metrics of the names {twice} exist already. Give each metric a unique name, for "
                "example keras.metrics.AUC(name='roc_auc')."
            )
        for metric in self.metrics:
            if not metric.variables:
                raise ValueError(
                    f"The metric {metric.name!r} makes its variables at its first batch. Before "
                    "use, call its update_state on an example and then its reset_state."
                )

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if `held_out_steps` are not all below an evaluation's steps."""
        if late := [each for each in self.held_out_steps if each >= steps]:
            raise ValueError(
                f"held_out_steps has {late}, and the evaluation makes {steps} steps. It always "
                f"measures the error after the last one. Use numbers below {steps}."
            )


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """One task, adapted from an initialization and evaluated on its held-out examples.

    Attributes:
        name: the task's name.
        error: mean error on the held-out examples after the last step.
        loss: mean loss on them.
        examples: the number of held-out examples; of outputs if each example has several.
        training_errors: [K] error on training batch i before gradient step i.
        training_losses: [K] loss on training batch i before gradient step i.
        path_length: length of the gradient path on the loss surface (eq. 7 with p = 1).
        path_energy: its energy (p = 2).
        parameters: the number of trainable parameters of the adapted model.
        finite: whether the adapted weights, the path and the held-out outputs are finite.
        seed: the seed of batches, task layers and dropout.
        metrics: further values on the held-out examples, by name: those of
            `EvaluationConfig.metrics`, `transductive` and `held_out_steps`.
    """

    name: str
    _: dataclasses.KW_ONLY
    error: float
    loss: float
    examples: int
    training_errors: np.ndarray = dataclasses.field(repr=False)
    training_losses: np.ndarray = dataclasses.field(repr=False)
    path_length: float
    path_energy: float
    parameters: int
    finite: bool
    seed: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last five training batches."""
        return float(np.mean(self.training_losses[-5:]))

    @property
    def final_training_error(self) -> float:
        """Mean error of the last 50 training batches, each before its gradient step.

        The errors in the paper's table 1 are probably computed in this way, on training images.
        """
        return float(np.mean(self.training_errors[-50:]))

    @property
    def area_under_error(self) -> float:
        """100 times the mean height of the training-error curve, see `area_under_curve`."""
        return area_under_curve(self.training_errors)

    @property
    def diverged(self) -> bool:
        """True if adaptation or the held-out evaluation produced a number that is not finite."""
        numbers = [self.error, self.loss, self.path_length, self.path_energy]
        curves = [*self.training_errors, *self.training_losses]
        return not (self.finite and bool(np.all(np.isfinite([*numbers, *curves]))))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Several tasks, adapted from the same initialization.

    Means leave out diverged tasks. If all diverged, they are infinite; `mean_metric` is then NaN.
    """

    tasks: tuple[TaskEvaluation, ...]

    def __repr__(self) -> str:
        diverged = f", {len(self.diverged)} diverged" if self.diverged else ""
        return f"<Evaluation of {len(self.tasks)} tasks{diverged}: error {self.error:.4g}>"

    @property
    def diverged(self) -> tuple[str, ...]:
        """Names of the tasks that diverged."""
        return tuple(task.name for task in self.tasks if task.diverged)

    @property
    def error(self) -> float:
        """Mean over the tasks of the held-out error."""
        return self.mean("error")

    @property
    def loss(self) -> float:
        """Mean over the tasks of the held-out loss."""
        return self.mean("loss")

    @property
    def area_under_error(self) -> float:
        """Mean over the tasks of the area under the training error, see `area_under_curve`."""
        return self.mean("area_under_error")

    def mean(self, attribute: str) -> float:
        """Returns the mean over the tasks of an attribute of `TaskEvaluation`."""
        values = [getattr(task, attribute) for task in self.tasks if not task.diverged]
        return float(np.mean(values)) if values else float("inf")

    def mean_metric(self, name: str) -> float:
        """Returns the mean over the tasks of one of `TaskEvaluation.metrics`."""
        values = [task.metrics[name] for task in self.tasks if not task.diverged]
        return float(np.mean(values)) if values else float("nan")

    def interval(self, name: str = "error") -> float:
        """Returns half of the 95 % confidence interval of a mean over the tasks.

        That is 1.96 standard errors, √(Σᵢ (eᵢ − ē)² / (n − 1) / n), of the n tasks that did not
        diverge; NaN for fewer than two.

        Args:
            name: an attribute of `TaskEvaluation`, or one of its metrics.
        """
        values = [
            task.metrics[name] if name in task.metrics else getattr(task, name)
            for task in self.tasks
            if not task.diverged
        ]
        if len(values) < 2:
            return float("nan")
        return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))

    def metrics(self) -> dict[str, float]:
        """Returns the metrics that `MetaTrainer.fit` logs for validation tasks."""
        return {
            "loss": self.loss,
            "error": self.error,
            "training_error": self.mean("final_training_error"),
            "auc": self.area_under_error,
            "final_loss": self.mean("final_loss"),
            "path_length": self.mean("path_length"),
            "path_energy": self.mean("path_energy"),
            "diverged": len(self.diverged),
            **{name: self.mean_metric(name) for task in self.tasks[:1] for name in task.metrics},
        }

    def steps_to(self, target: float, window: int = 10) -> list[int | None]:
        """Returns for each task the steps to a training error of `target`.

        A task that never reaches the target, or that diverged, has None.
        """
        return [
            None if task.diverged else steps_to(task.training_errors, target, window)
            for task in self.tasks
        ]


def area_under_curve(errors: ArrayLike) -> float:
    """Returns 100 times the mean height of a curve, 100/(K−1) Σᵢ (eᵢ + eᵢ₊₁)/2.

    The trapezoid rule over the K points of a training-error curve, scaled as in the paper's table
    3: a curve that stays at 1 has area 100, whatever its length. The area of shares of wrong labels
    lies in [0, 100]. That of other errors, such as squared ones, has no upper bound.

    Args:
        errors: [K] errors. Of a single point the area is 100 times that point.
    """
    curve = np.asarray(errors, np.float64)
    if len(curve) == 1:
        return 100.0 * float(curve[0])
    return 100.0 * float(np.mean((curve[1:] + curve[:-1]) / 2.0))


def steps_to(errors: ArrayLike, target: float, window: int = 10) -> int | None:
    """Returns how many gradient steps bring the training error down to `target`.

    Args:
        errors: [K] errors, each before its step.
        target: the error to reach.
        window: batches in the running mean, fewer at the start.

    Returns:
        The number of steps made before the first batch at which the mean is at most the
        target, or None if it never is.
    """
    curve = np.asarray(errors, np.float64)
    for step in range(len(curve)):
        if np.mean(curve[max(0, step + 1 - window) : step + 1]) <= target:
            return step
    return None


class HeldOutResult(NamedTuple):
    """The evaluation of held-out examples, as scalar tensors.

    Examples of weight 0 do not count in `error` and `examples`. They do count in the divisor of
    `loss`, as in Keras, unless its reduction is "mean_with_sample_weight".

    `loss` and `error` are means over the `examples`. `finite` is whether every output is.
    """

    loss: tf.Tensor
    error: tf.Tensor
    examples: tf.Tensor
    finite: tf.Tensor
    metrics: list[Any]


def evaluate_held_out(
    model: FunctionalModel,
    batches: Any,
    parameters: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    *,
    training: bool,
    metrics: Sequence[keras.metrics.Metric] = (),
) -> HeldOutResult:
    """Evaluates a model on an iterator over batches, as tensors. No variable changes.

    `parameters` and `state` are the model's after training on the task. With `training`, batch norm
    uses the statistics of each batch instead of the running ones.
    """

    def add_batch(element, loss_sum, loss_weight, error_sum, weight, examples, finite, held):
        batch = unpack_batch(element.get_value())
        result = model.evaluate(parameters, state, batch, training=training, penalties=False)
        return (
            batches.get_next_as_optional(),
            loss_sum + tf.cast(result.loss, tf.float32) * result.loss_weight,
            loss_weight + result.loss_weight,
            error_sum + tf.reduce_sum(result.errors * result.weights),
            weight + tf.reduce_sum(result.weights),
            examples + tf.math.count_nonzero(result.weights, dtype=tf.int32),
            finite & all_finite(tf.nest.flatten(result.outputs)),
            [
                metric.stateless_update_state(
                    values, batch.targets, result.outputs, sample_weight=batch.sample_weight
                )
                for metric, values in zip(metrics, held)
            ],
        )

    zero = tf.constant(0.0)
    first = batches.get_next_as_optional()
    begun = [
        [tf.convert_to_tensor(value) for value in metric.stateless_reset_state()]
        for metric in metrics
    ]
    _, loss_sum, loss_weight, error_sum, weight, examples, finite, ended = tf.while_loop(
        lambda element, *_: element.has_value(),
        add_batch,
        (first, zero, zero, zero, zero, tf.constant(0), tf.constant(True), begun),
        parallel_iterations=1,
    )
    loss = tf.math.divide_no_nan(loss_sum, loss_weight)
    error = tf.math.divide_no_nan(error_sum, weight)
    results = [metric.stateless_result(values) for metric, values in zip(metrics, ended)]
    return HeldOutResult(loss, error, examples, finite, results)


def metric_value(metric: keras.metrics.Metric, value: Any) -> float:
    """Returns the result of a Keras metric as a number.

    Raises:
        ValueError: it has several values.
    """
    if not tf.is_tensor(value) or value.shape.rank:
        raise ValueError(
            f"The metric {metric.name!r} has several values for a task, and must have one. "
            "Average them, for example by average='macro'."
        )
    return float(value)
