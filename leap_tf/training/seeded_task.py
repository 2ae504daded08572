"""What goes into a runner, and what comes out: small records that can travel."""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf

from leap_tf.tasks import Task


@dataclasses.dataclass(frozen=True)
class SeededTask:
    """A task, the seed that decides everything random about this visit to it, and its steps."""

    task: Task
    seed: int
    steps: int


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
