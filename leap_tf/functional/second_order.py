"""A check that a loss has correct second derivatives."""

import tensorflow as tf

from leap_tf.errors import LeapError


class WrongSecondDerivativesError(LeapError, ValueError):
    """A loss stops gradients, so its second derivatives are wrong."""

    # AutoGraph raises an error of the same type, with a trace, only if it has this constructor.
    __init__ = Exception.__init__


def check_no_stopped_gradients_in(graph: tf.Graph) -> None:
    """Checks that the second derivatives of a traced loss are correct.

    `tf.nn.moments` stops the gradient of the mean inside the variance. The first derivative there
    is zero, but the second is not, so Hessians through Keras's normalization layers are symmetric
    and wrong by about a tenth. TensorFlow's fused batch normalization, which
    `leap_tf.models.BatchNormalization` uses, has correct second derivatives.

    Raises:
        WrongSecondDerivativesError: the graph, or a function it calls, stops a gradient.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    stopped = [node.name for node in nodes if node.op == "StopGradient"]
    if stopped:
        raise WrongSecondDerivativesError(
            f"The loss stops gradients in {', '.join(stopped)}, so it has wrong second "
            "derivatives. Keras's normalization layers cause this; for float32 images use "
            "leap_tf.models.BatchNormalization."
        )
