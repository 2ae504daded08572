"""Meta-learners behind one protocol, `leap_tf.learners.base.Learner`."""

from leap_tf.learners.base import (
    Adaptation,
    Learner,
    MeasuredAdaptation,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
    TrainingPlan,
    TrainingSetup,
)
from leap_tf.learners.hat import HAT, HardAttentionModel
from leap_tf.learners.joint import JointTraining
from leap_tf.learners.leap import Leap, NoMetaLearning, Reptile, with_meta_optimizer
from leap_tf.learners.maml import ANIL, FOMAML, MAML, MetaSGD
from leap_tf.learners.progressive_nets import ProgressiveNets, progressive_columns

# fmt: off
__all__ = [
    "ANIL", "FOMAML", "HAT", "MAML", "Adaptation", "HardAttentionModel", "JointTraining", "Leap",
    "Learner", "MeasuredAdaptation", "MetaSGD", "NoMetaLearning", "ProgressiveNets", "Reptile",
    "StatelessLearner", "TaskEnd", "TaskUpdate", "TrainingPlan", "TrainingSetup",
    "progressive_columns", "with_meta_optimizer",
]
# fmt: on
