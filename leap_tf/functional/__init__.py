"""Keras models and optimizers as pure functions of their variables."""

from leap_tf.functional.checks import (
    UnsupportedModelError,
    WrongSecondDerivativesError,
    check_meta_optimizer,
    check_no_stopped_gradients_in,
    check_optimizer,
    check_training_rule,
    check_unused,
    check_variables,
    error_context,
)
from leap_tf.functional.losses import ErrorFunction, TotalLoss, as_loss, default_metrics
from leap_tf.functional.model import (
    Batch,
    FunctionalModel,
    check_task_data,
    task_batches,
    unpack_batch,
)
from leap_tf.functional.optimizer import (
    FunctionalOptimizer,
    OptimizerReset,
    OptimizerWrapper,
    all_finite,
    apply_if_finite,
    copy_optimizer,
)
from leap_tf.functional.task_layers import (
    TaskLayers,
    check_policy,
    copy_with_values,
    layer_variables,
    meta_learned_indices,
    output_layer,
    running_statistics,
)

# fmt: off
__all__ = [
    "Batch", "ErrorFunction", "FunctionalModel", "FunctionalOptimizer", "OptimizerReset",
    "OptimizerWrapper", "TaskLayers", "TotalLoss", "UnsupportedModelError",
    "WrongSecondDerivativesError", "all_finite", "apply_if_finite", "as_loss",
    "check_meta_optimizer", "check_no_stopped_gradients_in", "check_optimizer", "check_policy",
    "check_task_data", "check_training_rule", "check_unused", "check_variables",
    "copy_optimizer", "copy_with_values", "default_metrics", "error_context", "layer_variables",
    "meta_learned_indices", "output_layer", "running_statistics", "task_batches", "unpack_batch",
]
# fmt: on
