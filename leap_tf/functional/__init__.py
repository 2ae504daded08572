"""Keras models and optimizers as pure functions of their variables."""

from leap_tf.functional.model import Batch, FunctionalModel, unpack_batch
from leap_tf.functional.optimizer import (
    FunctionalOptimizer,
    OptimizerReset,
    all_finite,
    apply_if_finite,
    check_no_loss_scaling,
    check_optimizer,
)
from leap_tf.functional.second_order import WrongSecondDerivativesError
from leap_tf.functional.task_layers import (
    TaskLayers,
    check_policy,
    layer_variables,
    meta_learned_indices,
    output_layer,
    running_statistics,
)

# fmt: off
__all__ = [
    "Batch", "FunctionalModel", "FunctionalOptimizer", "OptimizerReset", "TaskLayers",
    "WrongSecondDerivativesError", "all_finite", "apply_if_finite", "check_no_loss_scaling",
    "check_optimizer", "check_policy", "layer_variables", "meta_learned_indices", "output_layer", "running_statistics",
    "unpack_batch",
]
# fmt: on
