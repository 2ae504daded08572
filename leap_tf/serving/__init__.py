"""Use of a learned initialization: adaptation to a new task, and export as a SavedModel."""

from leap_tf.serving.export import adapt, adapted_model, export
from leap_tf.serving.signatures import Limits

__all__ = ["Limits", "adapt", "adapted_model", "export"]
