"""A list of arrays that a checkpoint carries although its length is not known in advance.

`tf.train.Checkpoint` restores variables that exist already. Some state appears only later
(the batch-norm statistics a task starts from, the best weights so far); it is kept here and
saved as the bytes of an .npz archive, which is read with pickle switched off.

Results in parts that any format can carry: plain values as in JSON, and arrays by name.

Reading them back trusts nothing: what is not there, or of another kind, is refused by name.

What a worker sends back, as bytes: an .npz archive of arrays, and JSON among them.

    content   {"task": name, "plain": {…}, "failure": null or what went wrong}, JSON as uint8
    array_…   the arrays, by their names

Nothing in it is pickled, and reading it runs no code. Archives that are compressed are refused,
so what is read is never larger than what was sent.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

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


Record = TypeVar("Record")


class UnfitPartsError(ValueError):
    """Parts that are not what they should be."""


class Parts(NamedTuple):
    """A record taken apart.

    Attributes:
        plain: what JSON can say, by name.
        arrays: arrays of numbers, by name.
    """

    plain: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Divisible(Protocol):
    """What has parts."""

    def parts(self) -> Parts:
        """Returns all of it as plain values and arrays."""


def parts_of_record(record: Any) -> Parts:
    """Returns the parts of a dataclass whose fields are arrays and plain values."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    return Parts(plain, arrays)


def record_of_parts(cls: type[Record], parts: Parts, kinds: Mapping[str, Any]) -> Record:
    """Reads what `parts_of_record` gave.

    Args:
        cls: the dataclass.
        parts: plain values and arrays, from a place that may be mistaken.
        kinds: of every field its class, or `np.ndarray` for a vector of floats.

    Raises:
        UnfitPartsError: a field is missing, superfluous, or of another kind.
    """
    values = {**parts.plain, **parts.arrays}
    if set(values) != set(kinds):
        raise UnfitPartsError(
            f"{cls.__name__} has the fields {sorted(kinds)}, and a result has {sorted(values)}."
        )
    for name, kind in kinds.items():
        value = values[name]
        fits = isinstance(value, kind)
        if kind is np.ndarray:
            fits = fits and value.ndim == 1 and value.dtype.kind == "f"
        if not fits:
            raise UnfitPartsError(f"{name} of a result is {type(value).__name__}, and not {kind}.")
    return cls(**values)


def require_array(parts: Parts, name: str, shape: Sequence[int | None], dtype: str) -> np.ndarray:
    """Returns an array by its name.

    Raises:
        UnfitPartsError: it is not there, or has another shape or dtype.
    """
    array = parts.arrays.get(name)
    if array is None or array.shape != tuple(shape) or array.dtype.name != dtype:
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise UnfitPartsError(f"{name} of a result is {found}, and not {dtype} {tuple(shape)}.")
    return array


def numbers_by_name(parts: Parts, name: str) -> dict[str, float]:
    """Returns a mapping from names to numbers.

    Raises:
        UnfitPartsError: it is something else.
    """
    found = parts.plain.get(name)
    if not isinstance(found, dict) or not all(
        isinstance(value, (int, float)) for value in found.values()
    ):
        raise UnfitPartsError(f"{name} of a result is no mapping from names to numbers: {found!r}.")
    return found


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
