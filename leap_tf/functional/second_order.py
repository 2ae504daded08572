"""Exact second derivatives of a model's loss, and a check that a loss has correct ones."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.functional.model import Batch, FunctionalModel


class WrongSecondDerivativesError(LeapError, ValueError):
    """A loss stops gradients, so its second derivatives are wrong."""

    # AutoGraph raises an error of the same type, with a trace, only if it has this constructor.
    __init__ = Exception.__init__


def check_no_stopped_gradients_in(graph: tf.Graph) -> None:
    """Checks that the second derivatives of a loss, traced as a graph, are correct.

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


# All below is used by the Jacobian study only and moves there.

# Directions in one call. More would share the forward pass, but not fit into the cache.
_CHUNK = 8


def hessian_vector_products(
    loss: Callable[[tf.Tensor], tf.Tensor], point: tf.Tensor, directions: tf.Tensor
) -> tf.Tensor:
    """Returns H v for several directions v, where H is the Hessian of `loss` at `point`.

    Directions and products are [k, *shape of point], with k known at tracing. The products are
    exact, and zero where the loss is linear.
    """
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(point)
        with tf.GradientTape() as inner:
            inner.watch(point)
            value = loss(point)
        gradient = inner.gradient(value, point, unconnected_gradients=zero)
    # An unrolled loop was fastest on a CPU, since the graph optimizer merges what the directions
    # have in common. A while loop repeats that (1.3 times as long), tf.vectorized_map makes
    # tensors too large for the cache (1.6 times), forward over reverse costs the same or more.
    return tf.stack(
        [
            outer.gradient(gradient, point, output_gradients=direction, unconnected_gradients=zero)
            for direction in tf.unstack(directions)
        ]
    )


def hessian_block(
    products: Callable[[tf.Tensor], tf.Tensor],
    shape: Sequence[int],
    dtype: tf.DType,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """Assembles a Hessian from its products with unit vectors.

    Args:
        products: from directions [chunk, *shape] of this dtype to H v of each.
        shape: the shape of the parameter, with n elements.

    Returns:
        [n, n] float64, rows and columns in the order of the flattened parameter.
    """
    size = int(np.prod(shape))
    hessian = np.empty((size, size))
    for first in range(0, size, chunk):
        # The last chunk is padded with zeros, so that all chunks have the shape of one trace.
        directions = np.eye(chunk, size, first).reshape(chunk, *shape)
        rows = products(tf.constant(directions, dtype)).numpy().reshape(chunk, size)
        hessian[first : first + chunk] = rows[: size - first]
    return hessian.T


def check_no_stopped_gradients(
    network: FunctionalModel,
    parameters: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    batch: Batch,
) -> None:
    """Checks the training loss of a model as `check_no_stopped_gradients_in` does."""
    loss = tf.function(
        lambda parameters, state, batch: (
            network.evaluate(parameters, state, batch, training=True).loss
        )
    )
    check_no_stopped_gradients_in(
        loss.get_concrete_function(list(parameters), list(state), batch).graph
    )
