"""What a meta-learner adds to ordinary training: one protocol, one algorithm per file."""

from leap_tf.learners.adaptation import Adaptation, AlongDirection
from leap_tf.learners.anil import ANIL
from leap_tf.learners.finetuning import MultiHeadedFinetuning
from leap_tf.learners.hat import HAT
from leap_tf.learners.leap import Leap
from leap_tf.learners.leap_optimizer import LeapOptimizer
from leap_tf.learners.learner import Learner, StatelessLearner, TaskEnd, TaskUpdate
from leap_tf.learners.maml import FOMAML, MAML
from leap_tf.learners.meta_sgd import MetaSGD
from leap_tf.learners.plain_training import PlainTraining
from leap_tf.learners.progressive_nets import ProgressiveNets
from leap_tf.learners.reptile import Reptile

__all__ = [
    "ANIL",
    "FOMAML",
    "HAT",
    "MAML",
    "Adaptation",
    "AlongDirection",
    "Leap",
    "LeapOptimizer",
    "Learner",
    "MetaSGD",
    "MultiHeadedFinetuning",
    "PlainTraining",
    "ProgressiveNets",
    "Reptile",
    "StatelessLearner",
    "TaskEnd",
    "TaskUpdate",
]
