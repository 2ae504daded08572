"""The mean meta-gradient of a meta-batch, summed in the order of its tasks.

Floating-point sums depend on their order. It is the order of the tasks here, whichever result
arrives first, so the mean has the same bits wherever tasks run.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.training.pools import TaskFailedError, TaskFailure
from leap_tf.training.problem import TaskGradient


class MetaTrainingDivergedError(LeapError, FloatingPointError):
    """No task of a meta-step has a finite result. The initialization before it is kept."""


_LOGGER = logging.getLogger("leap_tf")


class MetaBatch:
    """Takes in the results of a meta-step, in order.

    Args:
        meta_step: its number, from 1.
        tasks: how many there will be.
        tolerated_failures: the share of them that may fail.
    """

    def __init__(self, meta_step: int, tasks: int, tolerated_failures: float = 0.0):
        self._meta_step = meta_step
        self._tasks = tasks
        self._tolerated = int(tolerated_failures * tasks + 1e-9)  # 0.29 of 100 is 29
        self._total: Sequence[tf.Tensor] | None = None
        self._state: Sequence[tf.Tensor] = ()
        self._metrics: list[Mapping[str, float]] = []
        self._skipped = 0
        self._failures: list[TaskFailure] = []

    def add(self, result: TaskGradient | TaskFailure) -> None:
        """Takes in the next result. One that is not finite is skipped.

        Raises:
            TaskFailedError: more tasks failed than are tolerated. If none are, what the task
                raised.
        """
        if isinstance(result, TaskFailure):
            self._note(result)
        elif not result.finite:
            self._skipped += 1
        else:
            gradient = result.meta_gradient
            self._total = (
                gradient
                if self._total is None
                else [total + each for total, each in zip(self._total, gradient)]
            )
            self._state = result.state
            self._metrics.append(result.metrics)

    @property
    def state(self) -> Sequence[tf.Tensor]:
        """What the last task left in the lasting state."""
        return self._state

    def mean(self, variables: Sequence[keras.Variable]) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """Returns the mean meta-gradient in the dtypes of the variables, and metrics.

        Raises:
            MetaTrainingDivergedError: there is none.
        """
        if self._total is None:
            failed = f" {len(self._failures)} failed." if self._failures else ""
            raise MetaTrainingDivergedError(
                f"All {self._skipped} tasks of meta-step {self._meta_step} diverged (loss or "
                f"meta-gradient not finite).{failed} The initialization before it is kept. Lower "
                "the inner learning rate, clip its gradients, or lower the meta learning rate."
            )
        metrics = self._metrics
        mean = [gradient / tf.cast(len(metrics), gradient.dtype) for gradient in self._total]
        logs: dict[str, Any] = {
            name: float(np.mean([task[name] for task in metrics])) for name in metrics[0]
        }
        logs["gradient_steps"] = sum(task["gradient_steps"] for task in metrics)
        logs["meta_gradient_norm"] = float(tf.linalg.global_norm(mean))
        logs["tasks_skipped"] = self._skipped
        logs["tasks_failed"] = len(self._failures)
        return [tf.cast(each, variable.dtype) for each, variable in zip(mean, variables)], logs

    def _note(self, failure):
        self._failures.append(failure)
        if not self._tolerated:
            raise failure.as_error()
        if len(self._failures) > self._tolerated:
            raise TaskFailedError(
                f"{len(self._failures)} of the {self._tasks} tasks of meta-step {self._meta_step} "
                f"failed, and tolerated_failures allows {self._tolerated}. {failure}"
            ) from failure.error
        _LOGGER.warning("%s Meta-step %d goes on without it.", failure, self._meta_step)
