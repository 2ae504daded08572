"""Export of a learned initialization as a SavedModel that predicts and adapts."""

from leap_tf.serving.export import adapted_model, export
from leap_tf.serving.signatures import Limits

__all__ = ["Limits", "adapted_model", "export"]
