"""What a meta-learner adds to ordinary training: one protocol, one algorithm per file."""

from leap_tf.learners.base import (
    Adaptation,
    AlongDirection,
    Learner,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
)
from leap_tf.learners.hat import HAT, HardAttentionModel
from leap_tf.learners.joint import (
    HeadBank,
    MixedTask,
    MultiHeadedFinetuning,
    NumberedTask,
    OfKnownClasses,
    head_name,
    multi_headed,
    number_of_each,
)
from leap_tf.learners.leap import Leap
from leap_tf.learners.maml import ANIL, FOMAML, MAML, MetaSGD
from leap_tf.learners.progressive_nets import ProgressiveNets, progressive_columns
from leap_tf.learners.reptile import PlainTraining, Reptile

__all__ = [
    "ANIL",
    "FOMAML",
    "HAT",
    "MAML",
    "Adaptation",
    "AlongDirection",
    "HardAttentionModel",
    "HeadBank",
    "Leap",
    "Learner",
    "MetaSGD",
    "MixedTask",
    "MultiHeadedFinetuning",
    "NumberedTask",
    "OfKnownClasses",
    "PlainTraining",
    "ProgressiveNets",
    "Reptile",
    "StatelessLearner",
    "TaskEnd",
    "TaskUpdate",
    "head_name",
    "multi_headed",
    "number_of_each",
    "progressive_columns",
]
