"""Forecasts of employment in sectors of the US economy, a task for each sector.

us_employment.csv: monthly, seasonally adjusted employment in thousands, 2006 to 2015, by the U.S.
Bureau of Labor Statistics (Current Employment Statistics, https://www.bls.gov/ces/, public domain;
taken from the package vega_datasets 0.9.0, without the sectors that are sums of others).
"""

import csv
import pathlib

import keras
import numpy as np

import leap_tf

WINDOW = 12  # months from which the next one is predicted
TRAINING_MONTHS = 84  # the rest is held out
_FILE = pathlib.Path(__file__).with_name("us_employment.csv")


def sector_task(name: str, employment: np.ndarray) -> leap_tf.ArrayTask:
    """Returns the task of a sector: its growth of the next month, from that of the last twelve.

    Growth is in units of its standard deviation over the training months.
    """
    growth = np.diff(np.log(employment))
    growth = (growth / growth[:TRAINING_MONTHS].std()).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(growth, WINDOW + 1)
    inputs, targets = windows[:, :-1, None], windows[:, -1:]
    last = TRAINING_MONTHS - WINDOW  # every target after it is held out
    return leap_tf.ArrayTask(
        name, (inputs[:last], targets[:last]), (inputs[last:], targets[last:]), batch_size=12
    )


@leap_tf.configurable
def employment_splits(seed: int = 0, data_dir: str | None = None) -> leap_tf.TaskSplits:
    """Returns 8 sectors to meta-train on, 3 for validation and 4 for test, drawn by the seed."""
    with _FILE.open() as file:
        rows = list(csv.DictReader(file))
    sectors = [name for name in rows[0] if name != "month"]
    tasks = [sector_task(name, np.array([float(row[name]) for row in rows])) for name in sectors]
    order = np.random.default_rng(seed).permutation(len(tasks))
    train, validation, test = (
        [tasks[index] for index in part] for part in np.split(order, [8, 11])
    )
    return leap_tf.TaskSplits(leap_tf.FiniteTasks(train), validation, test)


@leap_tf.configurable
def recurrent_net(units: int = 16) -> keras.Model:
    """Returns a GRU that reads the window, and a dense layer that predicts the next value."""
    inputs = keras.Input((WINDOW, 1))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GRU(units)(inputs)))
