"""Tests of records as bytes: they survive the journey, and damaged or foreign bytes are refused."""

import dataclasses
import io
import pickle
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

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
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    content: bytes
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    failure: str | None
    plain: Any
    arrays: Mapping[str, np.ndarray]
    inner: Inner


@hypothesis.given(
    st.text(),
    st.none() | st.text(),
    st.dictionaries(st.text(), PLAIN, max_size=4),
    st.dictionaries(st.text(), ARRAYS, max_size=4),
    st.builds(Inner, st.binary(), st.lists(st.integers(), max_size=4).map(tuple)),
)
def test_what_is_encoded_is_decoded(name, failure, plain, arrays, inner):
    record = decode(encode(Record(name, failure, plain, arrays, inner)), Record)
    assert (record.name, record.failure, record.inner) == (name, failure, inner)
    assert repr(record.plain) == repr(plain)  # NaN is equal to itself in this way
    assert set(record.arrays) == set(arrays)
    for key, array in arrays.items():
        read = record.arrays[key]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


RECORD = Record("letters", None, {"finite": True}, {"gradient": np.ones(5, "f")}, Inner(b"x", (1,)))
DATA = encode(RECORD)


@hypothesis.given(st.binary(max_size=200))
def test_other_bytes_are_refused(data):
    with pytest.raises(SerializationError):
        decode(data, Record)


@hypothesis.given(st.integers(0, len(DATA) - 1))
def test_a_record_that_is_cut_short_is_refused(length):
    with pytest.raises(SerializationError):
        decode(DATA[:length], Record)


@hypothesis.given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_is_refused_or_changes_no_number(bit):
    damaged = bytearray(DATA)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        record = decode(bytes(damaged), Record)
    except SerializationError:
        return
    np.testing.assert_array_equal(record.arrays["gradient"], np.ones(5, "f"))
    assert record.inner == RECORD.inner


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


class Bomb:
    def __reduce__(self):
        return sys.exit, ("unpickled",)


def test_pickles_are_not_opened_and_archives_not_inflated():
    objects = npy(np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(SerializationError):
        decode(archive(content=objects), Record)
    with pytest.raises(SerializationError):
        decode(pickle.dumps(Bomb()), Record)
    with pytest.raises(SerializationError, match="bytes"):
        decode(Bomb(), Record)
    with pytest.raises(SerializationError, match="compressed"):
        decode(archive(zipfile.ZIP_DEFLATED, content=npy(np.zeros(10**6, "uint8"))), Record)


@dataclasses.dataclass(frozen=True)
class Point:
    position: np.ndarray


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"position": 1}', '{"position": {"__array__": "elsewhere"}}']
)
def test_content_that_is_not_the_record_is_refused(content):
    data = archive(content=npy(np.frombuffer(content.encode(), np.uint8)))
    with pytest.raises(SerializationError, match="must be"):
        decode(data, Point)


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1j])])
def test_arrays_that_are_not_of_numbers_are_refused(array):
    content = np.frombuffer(b'{"position": {"__array__": "array_0"}}', np.uint8)
    with pytest.raises(SerializationError, match="position must be ndarray"):
        decode(archive(content=npy(content), array_0=npy(array)), Point)


@dataclasses.dataclass(frozen=True)
class Typed:
    value: Any


@pytest.mark.parametrize("kind", [str, int, bool, float, bytes, tf.Tensor, tuple[int, ...]])
@pytest.mark.parametrize("value", ["low", None, [1.5], {"a": 1}])
def test_a_value_of_another_type_is_refused(kind, value):
    if (kind, value) == (str, "low"):
        return
    typed = dataclasses.make_dataclass("Typed", [("value", kind)])
    with pytest.raises(SerializationError, match="value must be"):
        decode(encode(Typed(value)), typed)


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array(["text"]), {1}, {1: "one"}, tf.ones(2, tf.bfloat16)]
)
def test_what_cannot_be_read_again_is_not_written(value):
    with pytest.raises(SerializationError, match="cannot be written"):
        encode(Typed(value))
