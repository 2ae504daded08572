"""Records of arrays and plain values as bytes, without pickle, and files that are never incomplete.

A record is a dataclass. Its bytes are an uncompressed .npz archive: one entry of JSON, in which
each array is replaced by the number of its own entry. Reading builds the record from the type
annotations of its class. It runs no code of the sender, and refuses what does not fit.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import types
import typing
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from leap_tf.errors import LeapError

Record = TypeVar("Record")

_CONTENT = "content"
_ARRAY = "__array__"


class SerializationError(LeapError, ValueError):
    """A record cannot be written, or bytes are not the record that was expected."""


class SavedArrays(tf.train.experimental.PythonState):
    """Arrays in a `tf.train.Checkpoint` whose number is not known in advance.

    A checkpoint restores variables that exist already. Some state appears only later, such as the
    statistics that a task starts from or the best weights so far. Until then `value` is None.
    """

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


def is_serializable(dtype: np.dtype) -> bool:
    """Returns whether arrays of a dtype can be written: those of NumPy itself, not bfloat16."""
    return dtype.kind in "biuf"


def encode(record: Any) -> bytes:
    """Returns a dataclass as bytes.

    Its fields are numbers, strings, bytes, None, arrays, tensors, other dataclasses, and sequences
    and mappings of these; a SerializationError refuses others.
    """
    arrays: dict[str, np.ndarray] = {}
    content = json.dumps(_plain(record, arrays))
    arrays[_CONTENT] = np.frombuffer(content.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def decode(data: bytes, cls: type[Record]) -> Record:
    """Returns the `cls` that `encode` wrote; a SerializationError refuses everything else."""
    if not isinstance(data, bytes):
        raise SerializationError(f"Expected bytes, not {type(data).__name__}.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # What is read is then never larger than what was sent.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise SerializationError("The archive is compressed.")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        content = json.loads(arrays.pop(_CONTENT).tobytes().decode())
    except SerializationError:
        raise
    except Exception as error:  # damaged archives raise whatever zipfile and numpy run into
        raise SerializationError(
            f"{len(data)} bytes cannot be read: {type(error).__name__}: {error}"
        ) from error
    return _build(cls, content, arrays, cls.__name__)


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Converts a value to JSON values; arrays go to `arrays`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name), arrays) for field in fields}
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        array = np.asarray(value)
        if not is_serializable(array.dtype):
            raise SerializationError(f"An array of {array.dtype} cannot be written.")
        name = f"array_{len(arrays)}"
        arrays[name] = array
        return {_ARRAY: name}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(each, arrays) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each, arrays) for each in value]
    raise SerializationError(f"A {type(value).__name__} cannot be written.")


def _build(kind: Any, value: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    """Converts a JSON value to the annotated type."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = [each for each in arguments if each is not type(None)]
        return _build(kind, value, arrays, where)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(value, dict) or set(value) != set(fields):
            raise _unfit(where, kind, value)
        built = {name: _build(hints[name], value[name], arrays, name) for name in fields}
        return typing.cast(Any, kind)(**built)
    if kind in (np.ndarray, tf.Tensor, bytes):
        name = value.get(_ARRAY) if isinstance(value, dict) else None
        array = arrays.get(name) if isinstance(name, str) else None
        if array is None or not is_serializable(array.dtype):
            raise _unfit(where, kind, value)
        if kind is bytes:
            return array.tobytes()
        return tf.constant(array) if kind is tf.Tensor else array
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, list) or len(value) != len(kind._fields):
            raise _unfit(where, kind, value)
        return kind(*(_build(hints[n], each, arrays, n) for n, each in zip(kind._fields, value)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _unfit(where, kind, value)
        return {name: _build(arguments[1], each, arrays, name) for name, each in value.items()}
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, list):
            raise _unfit(where, kind, value)
        each_built = [_build(arguments[0], each, arrays, where) for each in value]
        return tuple(each_built) if origin is tuple else each_built
    is_number = kind is float and isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number or (type(value) is kind and kind in (bool, int, str)):
        return value
    raise _unfit(where, kind, value)


def _unfit(where: str, kind: Any, value: Any) -> SerializationError:
    name = getattr(kind, "__name__", str(kind))
    return SerializationError(f"{where} must be {name}. Received: {str(value)[:80]!r}.")


def partial_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file, of the same suffix, that is renamed to `path` when complete."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields `partial_of(path)` to write to, and renames it to `path` after the block.

    If the block raises, the file is removed and `path` is unchanged.
    """
    partial = partial_of(path)
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file so that the path never holds an incomplete one."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
