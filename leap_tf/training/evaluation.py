"""Figures of an adaptation: held-out error, area under the curve, steps to a target."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """One task, adapted from an initialization and evaluated on its held-out examples.

    Attributes:
        name: the task's name.
        error: mean error on the held-out examples after the last step.
        loss: mean loss on them.
        examples: the number of held-out examples.
        training_errors: [K] error on each training batch, before the step it caused.
        training_losses: [K] loss on each training batch, before the step it caused.
        path_length: length of the gradient path on the loss surface (eq. 7 with p = 1).
        path_energy: its energy (p = 2).
        parameters: the number of trainable parameters of the adapted model.
        finite: whether the adapted weights, the path and the held-out outputs are finite.
        seed: of batches, reinitialized layers and dropout.
    """

    name: str
    _: dataclasses.KW_ONLY
    error: float
    loss: float
    examples: int
    training_errors: np.ndarray
    training_losses: np.ndarray
    path_length: float
    path_energy: float
    parameters: int
    finite: bool
    seed: int | None = None

    @property
    def final_loss(self) -> float:
        """Mean loss of the last five training batches."""
        return float(np.mean(self.training_losses[-5:]))

    @property
    def final_training_error(self) -> float:
        """Mean error of the last 50 training batches, each before the step it caused.

        The errors in the paper's table 1 are very probably of this kind, on training images.
        """
        return float(np.mean(self.training_errors[-50:]))

    @property
    def area_under_error(self) -> float:
        """100 times the mean training error along the curve. See `area_under_curve`."""
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

    Means are over the tasks that did not diverge, and infinite if all did.
    """

    tasks: tuple[TaskEvaluation, ...]

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
