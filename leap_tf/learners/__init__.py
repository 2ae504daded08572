"""What a meta-learner adds to ordinary training: one protocol, one algorithm per file."""

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
from leap_tf.learners.joint import (
    HeadBank,
    JointTraining,
    MixedTask,
    NumberedTask,
    OfKnownClasses,
    head_name,
    multi_headed,
    number_of_each,
)
from leap_tf.learners.leap import Leap
from leap_tf.learners.maml import ANIL, FOMAML, MAML, MetaSGD
from leap_tf.learners.progressive_nets import ProgressiveNets, progressive_columns
from leap_tf.learners.reptile import NoMetaLearning, Reptile

__all__ = [
    "ANIL",
    "FOMAML",
    "HAT",
    "MAML",
    "Adaptation",
    "HardAttentionModel",
    "HeadBank",
    "JointTraining",
    "Leap",
    "Learner",
    "MeasuredAdaptation",
    "MetaSGD",
    "MixedTask",
    "NoMetaLearning",
    "NumberedTask",
    "OfKnownClasses",
    "ProgressiveNets",
    "Reptile",
    "StatelessLearner",
    "TaskEnd",
    "TaskUpdate",
    "TrainingPlan",
    "TrainingSetup",
    "head_name",
    "multi_headed",
    "number_of_each",
    "progressive_columns",
]
