"""Learners that go to where training ended: the initialization is the network that is trained."""

import keras

from leap_tf.learners.learner import StatelessLearner, TaskEnd, TaskUpdate
from leap_tf.learners.reptile import displacement


class JointTraining(StatelessLearner):
    """Makes no difference between the initialization and what tasks are trained on.

    The meta-gradient is θ⁰ − θᴷ, so the meta-optimizer must be SGD(1.0), which goes to θᴷ.
    """

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(displacement(end), metrics={})

    def check(
        self,
        meta_optimizer: keras.optimizers.Optimizer,
        inner_optimizer: keras.optimizers.Optimizer,
        stopping: object | None,
    ) -> None:
        plain = keras.optimizers.SGD(1.0, name=meta_optimizer.name).get_config()
        if type(meta_optimizer) is not keras.optimizers.SGD or meta_optimizer.get_config() != plain:
            raise ValueError(
                f"{type(self).__name__} goes to where training ended, so its meta_optimizer must "
                "be keras.optimizers.SGD(1.0) and no more: no momentum, clipping or decay. The "
                "learning rate is the inner optimizer's."
            )
