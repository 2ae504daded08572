"""Draws gradient paths on a loss surface of two parameters, before and after meta-training.

    python benchmarks/gradient_paths.py --output=docs/figures/gradient_paths.png

A task's loss is a curved valley in the plane, with a minimum of its own:

    f(x, y) = (x − a)² / 2 + 3 (y − x² / 2 − b)²

where a and b differ from task to task. The figure has the paths of plain gradient descent on four
tasks from a random initialization, those from the one that Leap learned, and the mean length of the
paths over the meta-steps. Contours are of the mean loss of the tasks.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from leap_tf.geometry import (
    PathGeometry,
    PathPoint,
    extend_path,
    path_meta_gradient,
    start_path,
)

START = (-2.3, 3.8)
TASKS = {"task A": (0.3, 0.5), "task B": (0.9, -0.45), "task C": (1.3, 0.35), "task D": (1.8, -0.2)}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#aa4499")
GEOMETRY = PathGeometry(scaled=True)  # that of the default meta-optimizer
RATE, STEPS = 0.02, 150
META_RATE, META_STEPS = 0.3, 20


def loss(position, task):
    x, y, a, b = position[0], position[1], task[0], task[1]
    return (x - a) ** 2 / 2 + 3 * (y - x**2 / 2 - b) ** 2


@tf.function
def descend(initialization, task):
    """Returns the points of a path, [steps, 2], and the path for its length and meta-gradient."""
    position = initialization
    path, points = start_path([position]), []
    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            tape.watch(position)
            value = loss(position, task)
        gradient = tape.gradient(value, position)
        path = extend_path(path, PathPoint([position], value, [gradient]), GEOMETRY)
        points.append(position)
        position = position - RATE * gradient
    return tf.stack(points), path


def meta_train():
    """Returns the initializations, [meta-steps + 1, 2], and the mean length of paths from each."""
    initialization, initializations, lengths = tf.constant(START), [], []
    for _ in range(META_STEPS + 1):
        initializations.append(initialization.numpy())
        found = [descend(initialization, tf.constant(task)) for task in TASKS.values()]
        lengths.append(np.mean([path.length for _, path in found]))
        gradients = [
            path_meta_gradient(path, GEOMETRY, [points[-1] - initialization])[0]
            for points, path in found
        ]
        initialization = initialization - META_RATE * tf.reduce_mean(gradients, axis=0)
    return np.array(initializations), lengths


def draw_surface(axes, initialization, title):
    x, y = np.meshgrid(np.linspace(-2.9, 2.7, 300), np.linspace(-1.0, 4.6, 300))
    surface = np.mean([loss((x, y), task) for task in TASKS.values()], axis=0)
    levels = np.geomspace(surface.min() * 1.05, surface.max(), 14)
    axes.contourf(x, y, surface, levels, norm="log", cmap="Greys", alpha=0.45, extend="both")
    for (name, task), color in zip(TASKS.items(), COLORS):
        points = descend(tf.constant(initialization), tf.constant(task))[0].numpy()
        axes.plot(*points.T, color=color, linewidth=2, label=name)
        a, b = task
        axes.plot(a, a**2 / 2 + b, marker="*", markersize=13, color=color, markeredgecolor="white")
    axes.plot(*initialization, "o", markersize=8, color="black", markeredgecolor="white", zorder=5)
    axes.set(title=title, xticks=[], yticks=[], xlabel="parameter 1", ylabel="parameter 2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    output = parser.parse_args().output

    initializations, lengths = meta_train()
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12})
    figure, (before, after, curve) = plt.subplots(
        1, 3, figsize=(12, 3.9), width_ratios=(1.1, 1.1, 0.9), layout="constrained"
    )
    draw_surface(before, initializations[0], f"From random weights, {STEPS} steps")
    before.annotate("random weights", initializations[0], (10, 4), textcoords="offset points")
    before.legend(loc="lower left", frameon=False, fontsize=10)
    draw_surface(after, initializations[-1], f"From the learned initialization, {STEPS} steps")
    after.plot(*initializations.T, "k:.", linewidth=1, markersize=4)
    after.annotate(
        "the initialization\nmoves by meta-steps", initializations[2], (4, 48),
        textcoords="offset points", arrowprops={"arrowstyle": "-"},
    )  # fmt: skip
    curve.plot(lengths, "k.-")
    curve.set(
        title="Paths get shorter", xlabel="meta-step", ylabel="mean path length", ylim=(0, None)
    )
    curve.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=130, metadata={"Software": None})
    print(f"mean path length: {lengths[0]:.1f} before, {lengths[-1]:.1f} after")


if __name__ == "__main__":
    main()
