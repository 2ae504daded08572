"""What the outer loop asks of whoever trains and judges on single tasks."""

from collections.abc import Mapping
from typing import Any, Protocol

import keras

from leap_tf.training.seeded_task import SeededTask, TrainedTask


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
