"""Forecasts of seasonal series: tasks, a model and a loss that leap_tf does not have.

leap-train --module=forecasting.py --gin_file=forecasting.gin --output_dir=runs/forecasting
"""

import keras
import numpy as np

import leap_tf

WINDOW = 12  # values from which the next one is predicted


def forecasting_task(number: int, seed: int) -> leap_tf.ArrayTask:
    """Returns a series with a period, a phase and a trend of its own, cut into windows."""
    rng = np.random.default_rng([seed, number])
    time = np.arange(200)
    period, phase, trend = rng.uniform(6, 24), rng.uniform(0, 2 * np.pi), rng.uniform(-0.01, 0.01)
    values = np.sin(2 * np.pi * time / period + phase) + trend * time + rng.normal(0, 0.1, 200)
    windows = np.lib.stride_tricks.sliding_window_view(values.astype("float32"), WINDOW + 1)
    inputs, targets = windows[:, :-1, None], windows[:, -1:]
    past, future = slice(0, 120), slice(120 + WINDOW, None)  # they have no value in common
    return leap_tf.ArrayTask(
        f"series {number}",
        train=(inputs[past], targets[past]),
        test=(inputs[future], targets[future]),
        batch_size=20,
    )


@leap_tf.configurable
def forecasting_tasks(seed: int, data_dir=None, train_tasks: int = 12, test_tasks: int = 4):
    """Returns the splits; no two have a series in common. `data_dir` has nothing to say here."""
    tasks = [forecasting_task(number, seed) for number in range(train_tasks + 2 + test_tasks)]
    train, held_out = tasks[:train_tasks], tasks[train_tasks:]
    return leap_tf.TaskSplits(leap_tf.FiniteTasks(train), held_out[:2], held_out[2:])


@leap_tf.configurable
def recurrent_net(units: int = 8) -> keras.Model:
    """Returns a GRU that reads a window, and a dense layer that predicts the next value."""
    inputs = keras.Input((WINDOW, 1))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GRU(units)(inputs)))


@leap_tf.configurable
class QuantileLoss(keras.losses.Loss):
    """The loss of which the minimum is a quantile of the next value; 0.5 is the median."""

    def __init__(self, quantile: float = 0.5, name: str = "quantile_loss"):
        super().__init__(name=name)
        self.quantile = quantile

    def call(self, y_true, y_pred):
        # Targets may be [n] and outputs [n, 1], whose plain difference would be [n, n].
        error = keras.ops.reshape(y_true, keras.ops.shape(y_pred)) - y_pred
        return keras.ops.mean(
            keras.ops.maximum(self.quantile * error, (self.quantile - 1) * error), axis=-1
        )

    def get_config(self):
        return {"quantile": self.quantile, "name": self.name}
