"""Records as bytes: what is encoded is decoded, and anything else is refused."""

import dataclasses
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from leap_tf.serialization import SerializationError, decode, encode

ARRAYS = arrays_of.arrays(
    st.sampled_from(["float32", "float64", "float16", "int32", "int64", "uint8", "bool"]),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@dataclasses.dataclass(frozen=True)
class Inner:
    weights: np.ndarray
    note: str | None = None


class Pair(NamedTuple):
    first: int
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    number: float
    count: int
    flag: bool
    data: bytes
    array: np.ndarray
    tensors: Sequence[tf.Tensor]
    metrics: Mapping[str, float]
    inner: Inner
    maybe: Inner | None
    several: tuple[Inner, ...]
    pair: Pair


def record(**changes):
    values: dict[str, Any] = {
        "name": "letters",
        "number": 1.5,
        "count": 3,
        "flag": True,
        "data": b"\0\1",
        "array": np.ones(5, "float32"),
        "tensors": [tf.constant([1.0, 2.0]), tf.constant(3, tf.int64)],
        "metrics": {"loss": 0.5},
        "inner": Inner(np.arange(3), "a note"),
        "maybe": None,
        "several": (Inner(np.zeros((2, 0))), Inner(np.array(7))),
        "pair": Pair(1, np.eye(2)),
    }
    return Record(**(values | changes))


def same(value, other):
    """Whether two values are equal in type, dtype and every bit; NaN equals itself."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return all(same(getattr(value, name), getattr(other, name)) for name in fields)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        assert tf.is_tensor(value) == tf.is_tensor(other)
        value, other = np.asarray(value), np.asarray(other)
        shaped = (value.dtype, value.shape) == (other.dtype, other.shape)
        return shaped and value.tobytes() == other.tobytes()
    return type(value) is type(other) and repr(value) == repr(other)


@hypothesis.given(
    name=st.text(),
    number=st.floats(),
    count=st.integers(),
    flag=st.booleans(),
    data=st.binary(max_size=20),
    array=ARRAYS,
    metrics=st.dictionaries(st.text(), st.floats(), max_size=3),
    tensors=st.lists(ARRAYS.map(tf.constant), max_size=3),
    maybe=st.none() | st.builds(Inner, ARRAYS, st.none() | st.text()),
    several=st.lists(st.builds(Inner, ARRAYS), max_size=2).map(tuple),
)
def test_a_record_survives_encoding(**values):
    made = record(**values)
    assert same(decode(encode(made), Record), made)


def test_numpy_numbers_are_read_as_python_numbers():
    read = decode(encode(record(number=np.float64(0.1), count=np.int32(2))), Record)
    assert (read.number, read.count) == (0.1, 2)
    assert type(read.count) is int


MESSAGE = encode(record())


@hypothesis.given(st.binary(max_size=200))
def test_other_bytes_are_refused(data):
    with pytest.raises(SerializationError):
        decode(data, Record)


@hypothesis.given(st.integers(0, len(MESSAGE) - 1))
def test_bytes_that_are_cut_short_are_refused(length):
    with pytest.raises(SerializationError):
        decode(MESSAGE[:length], Record)


@hypothesis.given(st.integers(0, 8 * len(MESSAGE) - 1))
def test_a_flipped_bit_is_refused_or_changes_nothing(bit):
    damaged = bytearray(MESSAGE)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        read = decode(bytes(damaged), Record)
    except SerializationError:
        return
    assert same(read, record())


def archive(compression=zipfile.ZIP_STORED, **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def message(content, **arrays):
    """Returns what a sender might write: any JSON, and arrays."""
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    return archive(content=npy(text), **{name: npy(array) for name, array in arrays.items()})


class Bomb:
    def __reduce__(self):
        return sys.exit, ("unpickled",)


def test_pickles_are_not_opened_and_archives_not_inflated():
    objects = npy(np.array([Bomb()], object), allow_pickle=True)
    text = npy(np.frombuffer(b'{"weights": {"__array__": "a"}, "note": null}', np.uint8))
    for data in (archive(content=objects), archive(content=text, a=objects), pickle.dumps(Bomb())):
        with pytest.raises(SerializationError):
            decode(data, Inner)
    with pytest.raises(SerializationError, match="Expected bytes, not Bomb"):
        decode(Bomb(), Inner)
    with pytest.raises(SerializationError, match="compressed"):
        decode(archive(zipfile.ZIP_DEFLATED, content=npy(np.zeros(10**6, "uint8"))), Inner)


ONE = {"__array__": "one"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "Inner must be Inner"),
        ({}, "Inner must be Inner"),
        ({"weights": ONE}, "Inner must be Inner"),
        ({"weights": ONE, "note": None, "more": 1}, "Inner must be Inner"),
        ({"weights": ONE, "note": 1}, "note must be str. Received: '1'"),
        ({"weights": [1.0], "note": None}, "weights must be ndarray"),
        ({"weights": None, "note": None}, "weights must be ndarray"),
        ({"weights": {"__array__": "two"}, "note": None}, "weights must be ndarray"),
        ({"weights": {"__array__": [1]}, "note": None}, "weights must be ndarray"),
        ({"weights": {"__array__": "text"}, "note": None}, "weights must be ndarray"),
    ],
)
def test_records_with_other_fields_are_refused(content, said):
    good = message({"weights": ONE, "note": None}, one=np.ones(2))
    assert same(decode(good, Inner), Inner(np.ones(2)))
    with pytest.raises(SerializationError, match=said):
        decode(message(content, one=np.ones(2), text=np.array(["text"])), Inner)


@dataclasses.dataclass(frozen=True)
class Plain:
    number: float
    count: int
    flag: bool
    names: Sequence[str]
    sizes: Mapping[str, int]
    pair: Pair | None


@pytest.mark.parametrize(
    "change",
    [
        {"number": "low"},
        {"number": True},
        {"count": 1.5},
        {"count": True},
        {"flag": 1},
        {"names": "letters"},
        {"names": [1]},
        {"names": {"a": "b"}},
        {"sizes": []},
        {"sizes": {"a": 1.5}},
        {"pair": [1]},
        {"pair": [1, 2]},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(change):
    plain = {"number": 1.5, "count": 2, "flag": False, "names": ["a"], "sizes": {"a": 1}}
    plain["pair"] = None
    assert decode(message(plain), Plain) == Plain(**plain)
    with pytest.raises(SerializationError, match="must be"):
        decode(message(plain | change), Plain)


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.array(["text"]), tf.ones(2, tf.bfloat16), {1}, {1: 2}, object(), print],
    ids=lambda value: type(value).__name__,
)
def test_values_of_other_kinds_cannot_be_encoded(value):
    with pytest.raises(SerializationError, match="cannot be written"):
        encode(Inner(value))


def test_deeply_nested_bytes_are_refused():
    deep = np.frombuffer(b"[" * 10**5, np.uint8)
    with pytest.raises(SerializationError):
        decode(archive(content=npy(deep)), Inner)
