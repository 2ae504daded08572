"""What was learned, as SavedModels that predict and that adapt."""

from leap_tf.serving.adapted_model import adapted_model
from leap_tf.serving.export import export
from leap_tf.serving.request_checks import Limits

__all__ = ["Limits", "adapted_model", "export"]
