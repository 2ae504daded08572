"""What a meta-learner adds to ordinary training: one protocol, one algorithm per file."""

from leap_tf.learners.leap import Leap
from leap_tf.learners.leap_optimizer import LeapOptimizer
from leap_tf.learners.learner import Learner, TaskUpdate
from leap_tf.learners.plain_training import PlainTraining

__all__ = ["Leap", "LeapOptimizer", "Learner", "PlainTraining", "TaskUpdate"]
