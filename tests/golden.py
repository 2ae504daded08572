"""Meta-gradients of the original PyTorch code on a tiny recorded problem.

`data/golden_public.npz` and its JSON description were computed by the unmodified original
package. Weights are stored in torch layout, (out, in).
"""

import itertools
import pathlib

import keras
import numpy as np
import tensorflow as tf

_FOLDER = pathlib.Path(__file__).parent / "data"
GOLDEN = dict(np.load(_FOLDER / "golden_public.npz"))

OPTIMIZERS = {
    "a_sgd_lr0.1": lambda: keras.optimizers.SGD(0.1),
    "c_adam_lr0.01": lambda: keras.optimizers.Adam(0.01, epsilon=1e-8),
}
SWITCHES = [
    {"distance": distance, "include_loss": include_loss, "stabilizer": stabilizer}
    for distance, include_loss, stabilizer in itertools.product(
        ("length", "energy"), (True, False), (True, False)
    )
]
PARAMETERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
TASKS = 2
STEPS = 8


def parameters(prefix):
    """Arrays of the four parameters under a key, in the original's layout."""
    return [GOLDEN[f"{prefix}/{name}"] for name in PARAMETERS]


def meta_gradient(case, dtype, switches):
    flags = "norm{}_loss{}_stab{}".format(
        int(switches["distance"] == "length"),
        int(switches["include_loss"]),
        int(switches["stabilizer"]),
    )
    return parameters(f"{case}/{dtype}/{flags}/meta")


def to_keras(arrays):
    """Transposes torch kernels into Keras kernels."""
    return [np.transpose(array) for array in arrays]


def build_model(dtype="float32"):
    """The recorded network at its recorded initialization."""
    model = keras.Sequential(
        [
            keras.layers.Input((5,), dtype=dtype),
            keras.layers.Dense(7, activation="tanh", dtype=dtype),
            keras.layers.Dense(3, dtype=dtype),
        ]
    )
    model.set_weights(to_keras(parameters("init")))
    return model


def task_dataset(task, dtype="float32"):
    """The batches of a recorded task, in order."""
    inputs = GOLDEN["x"][task].astype(dtype)
    return tf.data.Dataset.from_tensor_slices((inputs, GOLDEN["y"][task]))


def relative_error(actual, expected):
    """max|a − b| / max|b| over all parameters together."""
    actual = np.concatenate([np.ravel(array) for array in actual])
    expected = np.concatenate([np.ravel(array) for array in expected])
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
