"""Metrics as TensorBoard events, without memory that grows with the number of meta-steps.

For every Python number it is given, TensorFlow keeps a tensor (about 0.5 kB) for the next time.
Keras gives it some ten new ones after each meta-step. NumPy's numbers are not kept.
"""

import os

import keras
import numpy as np


class TensorBoardLog(keras.callbacks.TensorBoard):
    """Keras's callback, for runs of any length.

    Args:
        log_dir: the folder of events.
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__(log_dir, write_graph=False)

    def on_epoch_end(self, epoch, logs=None):
        metrics = {name: np.float32(value) for name, value in (logs or {}).items()}
        super().on_epoch_end(np.int64(epoch), metrics)
