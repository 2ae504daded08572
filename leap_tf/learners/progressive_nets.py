"""Progressive Nets: a new column of the network for every task, fed by the columns before it.

Rusu et al., "Progressive Neural Networks", 2016; revisits as in Flennerhag et al. 2019, appendix G.
The columns are in `leap_tf.models.progressive`. A column trains on visits to its own task only.
"""

from collections.abc import Sequence

import keras
import numpy as np

from leap_tf.learners.sequential import SequentialLearner
from leap_tf.models import head_name, progressive_columns
from leap_tf.tasks import Task, TaskDistribution


class ProgressiveNets(SequentialLearner):
    """A column for every task, in the order of the tasks, and one more for the task that is judged.

    Needs `task_layers=[head]`. Where tasks have different numbers of classes, the head must have
    as many units as the largest. Columns are built beforehand: memory and time grow with the
    square of their number.

    Tasks may be visited in turns, round after round, as in Flennerhag et al. (appendix G). In the
    original a column is trained once, before the next is made, and never moves again. Here a
    revisit moves a column after later ones were fitted to its features, so it does change what
    they compute, until their own next visit. What holds is that a visit trains its own column only.

    Args:
        tasks: how many tasks there are to train on. A column that is not trained would feed noise
            to the one that is judged, so there must be exactly as many.
    """

    def __init__(self, tasks: int = 7):
        super().__init__(tasks)

    def draw_tasks(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        drawn = super().draw_tasks(distribution, count, meta_step, rng)
        present = len(distribution.tasks)  # type: ignore[attr-defined]
        if present != self.tasks:
            raise ValueError(
                f"There are {present} tasks and {self.tasks} columns for them. A column without a "
                f"task would never be trained. Give ProgressiveNets(tasks={present})."
            )
        return drawn

    def training_models(self, model: keras.Model, task_layers: Sequence[str]) -> list[keras.Model]:
        head = head_name(task_layers, type(self).__name__)
        return progressive_columns(model, head, self.tasks + 1)

    def judged_model(
        self, model: keras.Model, training_models: Sequence[keras.Model]
    ) -> keras.Model:
        return training_models[-1]

    def lasting_state(self, training_models: Sequence[keras.Model]) -> list[keras.Variable]:
        """All of it: running statistics belong to a column, and so to a task."""
        return list(training_models[-1].non_trainable_variables)
