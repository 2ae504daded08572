"""Keras models and optimizers as pure functions of their variables."""

from leap_tf.functional.curvature import WrongSecondDerivativesError
from leap_tf.functional.finite_update import apply_if_finite
from leap_tf.functional.fresh_layers import (
    FreshLayers,
    fresh_values,
    layer_variables,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.model import Batch, FunctionalModel, unpack_batch
from leap_tf.functional.optimizer import (
    FunctionalOptimizer,
    OptimizerReset,
    refuse_hidden_state,
    refuse_loss_scaling,
)
from leap_tf.functional.saved_arrays import SavedArrays, pack_arrays, unpack_arrays

__all__ = [
    "Batch",
    "FreshLayers",
    "FunctionalModel",
    "FunctionalOptimizer",
    "OptimizerReset",
    "SavedArrays",
    "WrongSecondDerivativesError",
    "apply_if_finite",
    "fresh_values",
    "layer_variables",
    "meta_learned_indices",
    "output_layer",
    "pack_arrays",
    "refuse_hidden_state",
    "refuse_loss_scaling",
    "unpack_arrays",
    "unpack_batch",
]
