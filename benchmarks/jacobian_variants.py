"""Searches for the reason why Jacobians are farther from the identity here than in the paper.

    TFDS_DATA_DIR=… python benchmarks/jacobian_variants.py

The paper (Flennerhag et al. 2019, figure 4) has ρ of about 1e-4 at learning rate 0.1. Each variant
changes things of `omniglot/jacobian_cpu.gin`:

    initial weights   Keras's Glorot-uniform, or PyTorch's: uniform within 1 / √(fan-in)
    images            in [0, 1], or divided by 255 once more
    batch norm        with the statistics of the batch; or, in the Hessian, with running statistics;
                      or always with the initial running statistics, mean 0 and variance 1
    filters           32 or 64
    learning rate     0.1, or the paper's other rates

A line has ρ after all steps and "halfway", and by other definitions on the same path: "first order"
has I − α Σ H in place of the product, and "one step" the last factor I − α H alone. "entries",
"Frobenius" and "spectral" have the sum of absolute entries and these norms in place of the Schatten
1-norm. "mean entry" is the mean absolute entry of I − J, which is not relative.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # studies is not installed

import keras
import numpy as np
import tensorflow as tf

import leap_tf
from leap_tf.datasets import alphabet_splits
from leap_tf.functional import FunctionalModel, unpack_batch
from studies.jacobian import (
    advance_jacobian,
    hessian_block,
    hessian_vector_products,
    relative_precision,
)

NORMS = {"entries": lambda matrix: np.abs(matrix).sum(), "Frobenius": np.linalg.norm,
         "spectral": lambda matrix: np.linalg.norm(matrix, 2)}  # fmt: skip


def pytorch_weights(model):
    """Draws all kernels and biases as PyTorch does."""
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            bound = 1.0 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
            for variable in layer.trainable_variables:
                variable.assign(tf.random.uniform(variable.shape, -bound, bound))


def measured(task, filters, initial, scale, statistics, rate, steps):
    """Returns ρ by all definitions after SGD from random weights."""
    keras.utils.set_random_seed(0)
    model = leap_tf.conv_net(filters=filters)
    if initial == "pytorch":
        pytorch_weights(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network = FunctionalModel(model, loss)
    parameters, state = network.parameters(), network.state(0)

    @tf.function
    def products(parameters, state, batch, directions):
        kernel, *others = parameters

        def loss_of(each):
            training = statistics == "batch"
            return network.evaluate([each, *others], state, batch, training=training).loss

        return hessian_vector_products(loss_of, kernel, directions)

    @tf.function
    def step(parameters, state, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            training = statistics != "initial"
            result = network.evaluate(parameters, state, batch, training=training)
        gradients = tape.gradient(result.loss, parameters)
        moved = [p if g is None else p - rate * g for p, g in zip(parameters, gradients)]
        return moved, result.state, result.loss

    kernel = parameters[0]
    assert model.layers[1].kernel.shape == kernel.shape
    identity = np.eye(math.prod(kernel.shape))
    exact, first_order, rho = identity, identity, []
    for inputs, targets in task.train_batches(0).take(steps):
        batch = unpack_batch((scale * inputs, targets))
        hessian = hessian_block(
            functools.partial(products, parameters, state, batch), kernel.shape, kernel.dtype
        )
        exact = advance_jacobian(exact, hessian, rate)
        first_order = first_order - rate * hessian
        parameters, state, value = step(parameters, state, batch)
        rho.append(relative_precision(exact))
    others = {name: norm(identity - exact) / norm(exact) for name, norm in NORMS.items()}
    return {
        "rho": rho[-1],
        "halfway": rho[len(rho) // 2 - 1],
        "first order": relative_precision(first_order),
        "one step": relative_precision(identity - rate * hessian),
        **others,
        "mean entry": np.abs(identity - exact).mean(),
        "loss": float(value),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="gradient steps of a path")
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR"))
    arguments = parser.parse_args()
    splits = alphabet_splits("omniglot", arguments.data_dir, train_alphabets=20)
    [task] = splits.train.sample(1, np.random.default_rng(0))
    for filters, initial, scale, statistics, rate in (
        (32, "keras", 1.0, "batch", 0.1),
        (32, "keras", 1.0 / 255.0, "batch", 0.1),
        (32, "keras", 1.0, "running", 0.1),
        (32, "keras", 1.0, "initial", 0.1),
        (32, "pytorch", 1.0, "batch", 0.1),
        (32, "pytorch", 1.0 / 255.0, "batch", 0.1),
        (32, "pytorch", 1.0, "running", 0.1),
        (32, "pytorch", 1.0, "initial", 0.1),
        (32, "pytorch", 1.0, "batch", 0.01),
        (32, "pytorch", 1.0, "running", 0.01),
        (32, "pytorch", 1.0, "batch", 0.5),
        (32, "pytorch", 1.0, "running", 0.5),
        (64, "pytorch", 1.0, "batch", 0.1),
        (64, "pytorch", 1.0, "running", 0.1),
    ):
        found = measured(task, filters, initial, scale, statistics, rate, arguments.steps)
        variant = {"filters": filters, "weights": initial, "scale": round(scale, 4)}
        variant |= {"statistics": statistics, "rate": rate}
        shown = {name: float(f"{value:.3g}") for name, value in found.items()}
        print(json.dumps(variant | shown), flush=True)


if __name__ == "__main__":
    main()
