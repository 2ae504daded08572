"""Exact second derivatives of a model's loss with respect to one of its parameters."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError
from leap_tf.functional.model import Batch, FunctionalModel


class WrongSecondDerivativesError(LeapError, ValueError):
    """A loss has a stopped gradient, and so Hessians that are not its own."""

    # So that AutoGraph can raise it anew, with a trace, and not as an error of another kind.
    __init__ = Exception.__init__


# Directions that one call differentiates along. More share the forward pass but leave the cache.
_CHUNK = 8


def hessian_vector_products(
    loss: Callable[[tf.Tensor], tf.Tensor], point: tf.Tensor, directions: tf.Tensor
) -> tf.Tensor:
    """Returns H v for several directions v, H the Hessian of `loss` at `point`.

    Exact: the gradient is differentiated again, reverse over reverse.

    Args:
        loss: from a tensor like `point` to a scalar.
        point: any shape.
        directions: [k, *shape of point], k known when the function is traced.

    Returns:
        [k, *shape of point]; zeros where the loss is linear.
    """
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(point)
        with tf.GradientTape() as inner:
            inner.watch(point)
            value = loss(point)
        gradient = inner.gradient(value, point, unconnected_gradients=zero)
    # Unrolled, because it was the fastest on a CPU: the graph optimizer merges what directions
    # have in common. A while loop repeats it (1.3 times as long), tf.vectorized_map gives
    # tensors that no cache holds (1.6 times), forward over reverse costs the same or more.
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
    """Assembles a Hessian from its products with unit vectors, `chunk` of them at a time.

    Args:
        products: from directions [chunk, *shape] to H v for each, of the same shape.
        shape: of the parameter, with n elements.
        dtype: of the directions.
        chunk: directions in one call.

    Returns:
        [n, n] float64, rows and columns in the parameter's own order.
    """
    size = int(np.prod(shape))
    hessian = np.empty((size, size))
    for first in range(0, size, chunk):
        # The last chunk runs over the end, with zeros, so that all have the shape of one trace.
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
    """Finds whether second derivatives of a model's training loss can be trusted.

    `tf.nn.moments` stops the gradient of the mean inside the variance. That mean has no first
    derivative there, but it has a second one, so Hessians through Keras's own normalization
    are symmetric and wrong, in a tenth of their size. TensorFlow's fused batch norm, which
    `leap_tf.models.BatchNormalization` uses, is right.

    Raises:
        WrongSecondDerivativesError: the loss stops a gradient.
    """
    loss = tf.function(
        lambda parameters, state, batch: (
            network.evaluate(parameters, state, batch, training=True).loss
        )
    )
    check_no_stopped_gradients_in(
        loss.get_concrete_function(list(parameters), list(state), batch).graph
    )


def check_no_stopped_gradients_in(graph: tf.Graph) -> None:
    """As `check_no_stopped_gradients`, for the graph that a loss has been traced into.

    Raises:
        WrongSecondDerivativesError: the graph, or a function it calls, stops a gradient.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    stopped = [node.name for node in nodes if node.op == "StopGradient"]
    if stopped:
        raise WrongSecondDerivativesError(
            f"The loss stops gradients in {', '.join(stopped)}, and so has wrong second "
            "derivatives. Keras's normalization layers do so; for images in float32 use "
            "leap_tf.models.BatchNormalization."
        )
