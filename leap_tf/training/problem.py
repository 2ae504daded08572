"""What goes into a runner, and what comes out: small records that can travel.

What the outer loop asks of whoever trains and judges on single tasks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from leap_tf.geometry import accumulator_dtype
from leap_tf.serialization import Parts, UnfitPartsError, numbers_by_name, require_array
from leap_tf.tasks import Task


class TaskAddress(NamedTuple):
    """Where whoever has a replica of the study finds a task again.

    Attributes:
        split: "train", "validation" or "test".
        meta_step: meta-steps before the one for which a task to train on is drawn; else 0.
        place: of the task in the meta-batch, or in the list of those that are judged.
    """

    split: str
    meta_step: int
    place: int


@dataclasses.dataclass(frozen=True)
class SeededTask:
    """A task, the seed that decides everything random about this visit to it, and its steps.

    The address is what travels in the place of the task; one that stays here needs none.
    """

    task: Task
    seed: int
    steps: int
    address: TaskAddress | None = None


@dataclasses.dataclass(frozen=True)
class TrainedTask:
    """What a meta-learner needs of a task that was trained on.

    Attributes:
        meta_gradient: one tensor per meta-learned variable.
        metrics: means over the steps, the last loss, and what the learner reports.
        finite: whether every loss and all of the meta-gradient is finite.
        state: one tensor per variable of the runner's lasting state.
    """

    meta_gradient: Sequence[tf.Tensor]
    metrics: Mapping[str, float]
    finite: bool
    state: Sequence[tf.Tensor] = ()

    def parts(self) -> Parts:
        """Returns all of it as plain values and arrays."""
        arrays = {
            f"{name}{index}": np.asarray(tensor)
            for name, tensors in (("gradient", self.meta_gradient), ("state", self.state))
            for index, tensor in enumerate(tensors)
        }
        return Parts({"metrics": dict(self.metrics), "finite": self.finite}, arrays)

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        meta_variables: Sequence[keras.Variable],
        lasting_state: Sequence[keras.Variable],
    ) -> "TrainedTask":
        """Reads what `parts` gave.

        Args:
            parts: plain values and arrays, from a place that may be mistaken.
            meta_variables: what the meta-gradient must have the shapes and dtypes of.
            lasting_state: the same for the state.

        Raises:
            UnfitPartsError: it is not the result of a task of this study.
        """
        expected = {
            f"{name}{index}": variable
            for name, variables in (("gradient", meta_variables), ("state", lasting_state))
            for index, variable in enumerate(variables)
        }
        if set(parts.arrays) != set(expected):
            raise UnfitPartsError(
                f"There are {len(parts.arrays)} arrays in a result, and the study has "
                f"{len(expected)} variables for them."
            )
        tensors = {
            name: tf.constant(
                require_array(parts, name, variable.shape, _dtype_of(parts, name, variable))
            )
            for name, variable in expected.items()
        }
        finite = parts.plain.get("finite")
        if not isinstance(finite, bool):
            raise UnfitPartsError(f"A result says {finite!r} of being finite.")
        return cls(
            meta_gradient=[tensors[f"gradient{i}"] for i in range(len(meta_variables))],
            metrics=numbers_by_name(parts, "metrics"),
            finite=finite,
            state=[tensors[f"state{i}"] for i in range(len(lasting_state))],
        )


def _dtype_of(parts, name, variable):
    """The variable's, but Leap sums the gradients of half-precision variables in float32."""
    summed = accumulator_dtype(tf.as_dtype(variable.dtype)).name
    array = parts.arrays[name]
    is_sum = name.startswith("gradient") and array.dtype.name == summed
    return summed if is_sum else variable.dtype


class Runner(Protocol):
    """Trains on single tasks, from the present initialization.

    Attributes:
        meta_variables: the variables that are meta-learned, those of the learner among them.
        lasting_state: other variables that keep what a task left in them; usually none.
    """

    meta_variables: list[keras.Variable]
    lasting_state: list[keras.Variable]

    def train(self, seeded: SeededTask) -> TrainedTask:
        """Trains on a task and returns what the learner makes of it."""


class Judge(Protocol):
    """Adapts to single tasks, from the present initialization, and judges how well it went."""

    def evaluate(self, seeded: SeededTask) -> Any:
        """Trains on a task without a meta-learner and returns how well that went."""


class Summary(Protocol):
    """What was found on several tasks."""

    def metrics(self) -> Mapping[str, float]:
        """Returns their means, by name."""
