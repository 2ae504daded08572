"""A list of arrays that a checkpoint carries although its length is not known in advance.

`tf.train.Checkpoint` restores variables that exist already. Some state appears only later
(the batch-norm statistics a task starts from, the best weights so far); it is kept here and
saved as the bytes of an .npz archive, which is read with pickle switched off.
"""

import io
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class SavedArrays(tf.train.experimental.PythonState):
    """Arrays that go into checkpoints; `value` is None until something is put there."""

    def __init__(self):
        self.value: list[np.ndarray] | None = None

    def serialize(self) -> bytes:
        return b"" if self.value is None else pack_arrays(self.value)

    def deserialize(self, string_value: bytes) -> None:
        self.value = unpack_arrays(string_value) if string_value else None


def pack_arrays(arrays: Sequence[np.ndarray]) -> bytes:
    """Returns the arrays as the bytes of an .npz archive."""
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def unpack_arrays(content: bytes) -> list[np.ndarray]:
    """Returns the arrays that `pack_arrays` packed, in order."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return [archive[f"arr_{index}"] for index in range(len(archive.files))]
