"""Several runners as one: a numbered task is trained on the model of its number."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.training.seeded_task import SeededTask, TrainedTask
from leap_tf.training.task_runner import TaskRunner


class RunnerBank:
    """Trains tasks on one of several models that may share variables.

    The task's `number` says which, if there are several. Meta-gradients of variables that a model
    does not have are zero, and its lasting state is all that changes.

    Args:
        runners: one for each model.

    Attributes:
        meta_variables, own_variables, lasting_state: of all runners, each variable once.
    """

    def __init__(self, runners: Sequence[TaskRunner]):
        self._runners = list(runners)
        self.own_variables = self._runners[0].own_variables
        self.meta_variables = _each_once(runner.meta_variables for runner in self._runners)
        self.lasting_state = _each_once(runner.lasting_state for runner in self._runners)

    def train(self, seeded: SeededTask) -> TrainedTask:
        """Trains on a task and returns what the learner makes of it.

        Raises:
            ValueError: there are several models, and the task does not say which is its.
        """
        runner = self._runner_of(seeded.task)
        trained = runner.train(seeded)
        gradients = dict(zip(map(id, runner.meta_variables), trained.meta_gradient, strict=True))
        states = dict(zip(map(id, runner.lasting_state), trained.state, strict=True))
        return TrainedTask(
            [
                gradients[id(variable)] if id(variable) in gradients else tf.zeros(variable.shape)
                for variable in self.meta_variables
            ],
            trained.metrics,
            trained.finite,
            [states.get(id(variable), variable.value) for variable in self.lasting_state],
        )

    def _runner_of(self, task):
        if len(self._runners) == 1:
            return self._runners[0]
        number = getattr(task, "number", None)
        if number is None:
            raise ValueError(
                f"Task {task.name!r} has no number, and each of {len(self._runners)} models trains "
                "on a task of its own. The learner's draw_tasks must number them."
            )
        return self._runners[number]


def _each_once(lists) -> list[keras.Variable]:
    return list({id(variable): variable for each in lists for variable in each}.values())
