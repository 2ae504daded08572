"""The distance of the Jacobians along a gradient path from the identity, which Leap assumes.

    Jⁱ⁺¹ = (I − α H(θⁱ)) Jⁱ,   J⁰ = I,   ρ(i) = ‖I − Jⁱ‖₁ / ‖Jⁱ‖₁

The norm is the Schatten 1-norm. H is the Hessian of the training loss with respect to the n numbers
of one layer's kernel, with all other parameters fixed. Their response to the kernel is left out, so
this is the layer's block of the paper's recursion and not ∂θⁱ/∂θ⁰ itself. H is exact up to rounding
where the loss is smooth. Max-pooling and ReLU have no curvature of their own, and their kinks are
not counted.

J and H are n × n matrices in float64. They take 16 n² bytes, whatever the number of steps: 1.3 MB
for the 32 filters of a first convolution, 5.3 MB for 64.

Source: Flennerhag et al. 2019, appendix D and figure 4.
"""

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from leap_tf.experiments.run_tables import standard_error
from leap_tf.functional import Batch, FunctionalModel, unpack_batch
from leap_tf.functional.checks import check_no_stopped_gradients_in
from leap_tf.serialization import write_atomically
from leap_tf.tasks import Task, TaskSplits

# Directions in one call. More would share the forward pass, but not fit into the cache.
_CHUNK = 8


def hessian_vector_products(
    loss: Callable[[tf.Tensor], tf.Tensor], point: tf.Tensor, directions: tf.Tensor
) -> tf.Tensor:
    """Returns H v for several directions v, where H is the Hessian of `loss` at `point`.

    The products are exact: reverse-mode differentiation of the gradient.

    Args:
        loss: from a tensor like `point` to a scalar.
        point: a tensor of any shape.
        directions: [k, *shape of point], with k known at tracing.

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
        products: from directions [chunk, *shape] to H v of each, of the same shape.
        shape: the shape of the parameter, with n elements.
        dtype: the dtype of the directions.
        chunk: number of directions in one call.

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
    """Checks that the second derivatives of a model's training loss on a batch are correct.

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


def advance_jacobian(jacobian: np.ndarray, hessian: np.ndarray, learning_rate: float) -> np.ndarray:
    """Returns Jⁱ⁺¹ = (I − α H(θⁱ)) Jⁱ after one step of SGD (appendix D).

    Args:
        jacobian: Jⁱ, [n, n].
        hessian: H(θⁱ), [n, n].
        learning_rate: α.
    """
    return jacobian - learning_rate * (hessian @ jacobian)


def relative_precision(jacobian: np.ndarray) -> float:
    """Returns ρ = ‖I − J‖₁ / ‖J‖₁, where norms are sums of singular values (appendix D).

    Args:
        jacobian: J, [n, n].

    Returns:
        ρ, which is 0 for the identity; NaN if J is not finite.
    """
    if not np.isfinite(jacobian).all():
        return float("nan")
    difference = np.linalg.norm(np.eye(len(jacobian)) - jacobian, "nuc")
    return float(difference / np.linalg.norm(jacobian, "nuc"))


def jacobian_precision(
    model: Callable[[], keras.Model],
    tasks: Callable[..., TaskSplits],
    loss: keras.losses.Loss,
    output_dir: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    learning_rates: Sequence[float] = (0.01, 0.1, 0.5),
    task_count: int = 5,
    steps: int = 20,
    every: int = 5,
    layer: str = "conv1",
    seed: int = 0,
) -> list[dict]:
    """Measures ρ along SGD paths from random initializations (appendix D, figure 4).

    A cell is a learning rate and a task. It writes a file. Cells whose file exists are read and not
    computed, so a run that was killed can be continued. Initial weights and batches depend on seed
    and task only, so all learning rates start from the same point.

    Args:
        model: builds the model. It is called after the seed is set.
        tasks: builds the splits, called as tasks(seed=…, data_dir=…). Training tasks are used.
        loss: the loss of a batch. The model uses batch statistics.
        output_dir: folder for the JSON files of the cells; created if it does not exist.
        data_dir: folder of prepared data sets.
        learning_rates: α of SGD, constant along a path.
        task_count: number of tasks, each with initial weights of its own.
        steps: gradient steps of a path.
        every: steps from one measurement to the next.
        layer: name of the layer whose kernel's Jacobian is measured.
        seed: seed of tasks, initial weights and batches.

    Returns:
        A record per cell, learning rates within tasks: its settings; "rho", one number for each
        of "steps"; "losses" before each step; "parameters" n; "matrix_bytes" of J and H; "seconds"
        by the clock and "processor_seconds" of all cores. Numbers that are not finite are None.

    Raises:
        ValueError: `steps` or `every` is below 1, the layer has no trainable kernel, the loss stops
            gradients, there are too few tasks or batches, or the folder holds cells of other
            settings.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be positive, and are {steps} and {every}.")
    folder = pathlib.Path(output_dir)
    network = FunctionalModel(model(), loss)
    index = _kernel_index(network, layer)
    chosen = tasks(seed=seed, data_dir=data_dir).train.sample(
        task_count, np.random.default_rng([seed, 1])
    )
    if len({task.name for task in chosen}) < task_count:
        raise ValueError(f"There are no {task_count} different training tasks; ask for fewer.")
    path = _Path(network, index)
    records = []
    for number, task in enumerate(chosen):
        for learning_rate in learning_rates:
            settings = {
                "learning_rate": learning_rate,
                "task": number,
                "task_name": task.name,
                "seed": seed,
                "layer": layer,
                "parameters": int(np.prod(network.variables[index].shape)),
                "steps": list(range(0, steps + 1, every)),
            }
            file = folder / f"learning_rate_{learning_rate:g}_task_{number}.json"
            record = _finished(file, settings)
            if record is None:
                keras.utils.set_random_seed(_cell_seed(seed, number))
                network.model.set_weights(model().get_weights())
                measured = path.measure(task, learning_rate, steps, every, _cell_seed(seed, number))
                record = settings | measured
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(record, indent=1, allow_nan=False) + "\n")
                print(f"{file.name}: {record['seconds']:.0f} s", file=sys.stderr, flush=True)
            records.append(record)
    return records


configured_jacobian_precision = gin.external_configurable(
    jacobian_precision, "jacobian_precision", denylist=["output_dir", "data_dir"]
)


class _Path:
    """SGD from the model's present weights, with J along its path. All cells share one trace."""

    def __init__(self, network: FunctionalModel, index: int):
        self._network = network
        self._index = index
        self._step = tf.function(self._take_step)
        self._products = tf.function(self._differentiate_twice)

    def measure(self, task: Task, learning_rate: float, steps: int, every: int, seed: int) -> dict:
        start, start_processor = time.perf_counter(), time.process_time()
        parameters, state = self._network.parameters(), self._network.state(seed)
        kernel = parameters[self._index]
        jacobian = np.eye(int(np.prod(kernel.shape)))
        rho: list[float] = [relative_precision(jacobian)]
        losses: list[float] = []
        for element in task.train_batches(seed).take(steps):
            batch = unpack_batch(element)
            if not losses:
                check_no_stopped_gradients(self._network, parameters, state, batch)
            hessian = hessian_block(
                functools.partial(self._products, parameters, state, batch),
                kernel.shape,
                kernel.dtype,
            )
            jacobian = advance_jacobian(jacobian, hessian, learning_rate)
            parameters, state, value = self._step(
                parameters, state, batch, tf.constant(learning_rate, kernel.dtype)
            )
            losses.append(float(value))
            if len(losses) % every == 0:
                rho.append(relative_precision(jacobian))
        if len(losses) < steps:
            raise ValueError(f"Task {task.name!r} has {len(losses)} batches for {steps} steps.")
        return {
            "rho": [_finite(number) for number in rho],
            "losses": [_finite(number) for number in losses],
            "matrix_bytes": jacobian.nbytes + hessian.nbytes,
            "seconds": round(time.perf_counter() - start, 1),
            "processor_seconds": round(time.process_time() - start_processor, 1),
        }

    def _take_step(self, parameters, state, batch, learning_rate):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            result = self._network.evaluate(parameters, state, batch, training=True)
        gradients = tape.gradient(
            result.loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        moved = [old - learning_rate * slope for old, slope in zip(parameters, gradients)]
        return moved, result.state, result.loss

    def _differentiate_twice(self, parameters, state, batch, directions):
        def loss(kernel):
            replaced = [*parameters]
            replaced[self._index] = kernel
            return self._network.evaluate(replaced, state, batch, training=True).loss

        return hessian_vector_products(loss, parameters[self._index], directions)


def table(records: Sequence[dict]) -> str:
    """Returns mean ρ ± standard error over tasks as a table, with a row per learning rate."""
    steps = records[0]["steps"]
    lines = [f"{'learning rate':<14}" + "".join(f"{f'step {step}':>22}" for step in steps)]
    for learning_rate in dict.fromkeys(record["learning_rate"] for record in records):
        rows = [record["rho"] for record in records if record["learning_rate"] == learning_rate]
        columns = [[rho for rho in column if rho is not None] for column in zip(*rows)]
        lines.append(f"{learning_rate:<14g}" + "".join(f"{_spread(each):>22}" for each in columns))
    return "\n".join(lines)


def _spread(values):
    if not values:
        return "–"
    return f"{np.mean(values):.2e} ± {standard_error(values) or 0.0:.0e}"


def _kernel_index(network, layer):
    names = [each.name for each in network.model.layers]
    kernel = getattr(network.model.get_layer(layer), "kernel", None) if layer in names else None
    for index, variable in enumerate(network.variables):
        if variable is kernel:
            return index
    raise ValueError(f"No layer {layer!r} with a trainable kernel; the model's are {names}.")


def _finished(file, settings):
    """Returns the record of a finished cell, or None."""
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    if settings != {name: record.get(name) for name in settings}:
        raise ValueError(f"{file} was written with other settings. Give another output folder.")
    return record


def _cell_seed(seed, number):
    return int(np.random.default_rng([seed, 2, number]).integers(2**31))


def _finite(number):
    return number if np.isfinite(number) else None
