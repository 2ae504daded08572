"""What a worker sends back, as bytes: an .npz archive of arrays, and JSON among them.

    content   {"task": name, "plain": {…}, "failure": null or what went wrong}, JSON as uint8
    array_…   the arrays, by their names

Nothing in it is pickled, and reading it runs no code. Archives that are compressed are refused,
so what is read is never larger than what was sent.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from leap_tf.training import Parts

_CONTENT, _PREFIX = "content", "array_"
_NUMBERS = "biuf"  # kinds of dtypes


def can_travel(dtype: np.dtype) -> bool:
    """Returns whether arrays of this dtype can be sent. NumPy's own can, bfloat16 cannot."""
    return dtype.kind in _NUMBERS


class MessageError(ValueError):
    """Bytes that no worker would send."""


@dataclasses.dataclass(frozen=True)
class Message:
    """What became of a task.

    Attributes:
        task: its name, as the worker knows it.
        parts: of the result; empty if there is none.
        failure: what went wrong, or None.
    """

    task: str
    parts: Parts
    failure: str | None = None


def encode(message: Message) -> bytes:
    """Returns a message as bytes.

    Raises:
        MessageError: it has an array of something else than numbers, or what JSON cannot say.
    """
    for name, array in message.parts.arrays.items():
        if not name.isidentifier() or not can_travel(array.dtype):
            raise MessageError(f"{name!r}, an array of {array.dtype}, cannot travel.")
    content = {"task": message.task, "plain": message.parts.plain, "failure": message.failure}
    try:
        text = json.dumps(content)
    except TypeError as error:
        raise MessageError(f"A result cannot travel: {error}") from error
    buffer = io.BytesIO()
    arrays = {f"{_PREFIX}{name}": array for name, array in message.parts.arrays.items()}
    arrays[_CONTENT] = np.frombuffer(text.encode(), np.uint8)
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def decode(data: bytes) -> Message:
    """Reads what `encode` wrote.

    Raises:
        MessageError: it is something else.
    """
    if not isinstance(data, bytes):
        raise MessageError(f"A worker sent {type(data).__name__} in the place of bytes.")
    try:
        arrays = _arrays(data)
        content = json.loads(arrays.pop(_CONTENT).tobytes().decode())
    except MessageError:
        raise
    except Exception as error:  # damaged archives raise whatever zipfile and numpy trip over
        raise MessageError(
            f"{len(data)} bytes from a worker cannot be read: {type(error).__name__}: {error}"
        ) from error
    return _message(content, arrays)


def _arrays(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise MessageError("A worker sent a compressed archive, which none of ours does.")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in _NUMBERS:
            raise MessageError(f"A worker sent {name}, which is no array of numbers.")
    return {name.removeprefix(_PREFIX): array for name, array in arrays.items()}


def _message(content: Any, arrays: Mapping[str, np.ndarray]) -> Message:
    match content:
        case {"task": str(task), "plain": dict(plain), "failure": None | str() as failure}:
            return Message(task, Parts(plain, arrays), failure)
    raise MessageError(f"A worker sent {str(content)[:200]!r}, which says nothing of a task.")
