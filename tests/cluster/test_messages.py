"""What travels, and the worker's side of it, without Ray."""

import io
import pickle
import sys
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from leap_tf.cluster.worker import TaskWorker
from leap_tf.serialization import Message, Parts, SerializationError, decode, encode
from leap_tf.training import TaskAddress
from tests.cluster.studies import assert_same, leap, meta_sgd, unbuildable, weights

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
ARRAYS = arrays_of.arrays(
    st.sampled_from(["float32", "float64", "float16", "int32", "int64", "uint8", "bool"]),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(value, other):
    """Equality under which what is not a number is equal to itself."""
    return repr(value) == repr(other)


@hypothesis.given(
    st.text(),
    st.dictionaries(st.text(), PLAIN, max_size=4),
    st.dictionaries(NAMES, ARRAYS, max_size=4),
    st.none() | st.text(),
)
def test_what_is_encoded_is_decoded(task, plain, arrays, failure):
    message = decode(encode(Message(task, Parts(plain, arrays), failure)))
    assert (message.task, message.failure) == (task, failure)
    assert same(message.parts.plain, plain)
    assert set(message.parts.arrays) == set(arrays)
    for name, array in arrays.items():
        read = message.parts.arrays[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


MESSAGE = encode(Message("letters", Parts({"finite": True}, {"gradient0": np.ones(5, "f")})))


@hypothesis.given(st.binary(max_size=200))
def test_other_bytes_are_refused(data):
    with pytest.raises(SerializationError):
        decode(data)


@hypothesis.given(st.integers(0, len(MESSAGE) - 1))
def test_a_message_that_is_cut_short_is_refused(length):
    with pytest.raises(SerializationError):
        decode(MESSAGE[:length])


@hypothesis.given(st.integers(0, 8 * len(MESSAGE) - 1))
def test_a_flipped_bit_is_refused_or_changes_no_number(bit):
    damaged = bytearray(MESSAGE)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        message = decode(bytes(damaged))
    except SerializationError:
        return
    for array in message.parts.arrays.values():
        np.testing.assert_array_equal(array, np.ones(5, "f"))


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
        decode(archive(content=objects))
    with pytest.raises(SerializationError):
        decode(pickle.dumps(Bomb()))
    with pytest.raises(SerializationError, match="bytes"):
        decode(Bomb())
    with pytest.raises(SerializationError, match="compressed"):
        decode(archive(zipfile.ZIP_DEFLATED, content=npy(np.zeros(10**6, "uint8"))))
    with pytest.raises(SerializationError, match="no array of numbers"):
        decode(archive(content=npy(np.array(["text"]))))
    for text in (b"[]", b'{"task": 1, "plain": {}, "failure": null}', b"{}"):
        with pytest.raises(SerializationError, match="says nothing of a task"):
            decode(archive(content=npy(np.frombuffer(text, np.uint8))))


def test_what_cannot_travel_is_not_sent():
    for arrays in ({"a": np.array([None])}, {"a b": np.zeros(1)}):
        with pytest.raises(SerializationError, match="cannot travel"):
            encode(Message("x", Parts({}, arrays)))
    with pytest.raises(SerializationError, match="cannot travel"):
        encode(Message("x", Parts({"set": {1}}, {})))


def started(recipe=leap):
    worker = TaskWorker(recipe, own_process=False)
    assert decode(worker.start()).failure is None
    return worker


def test_a_worker_does_what_the_driver_would_have_done():
    driver, worker = leap(), started()
    for variable in driver.trainer.task_variables:  # the driver has gone on since it was built
        variable.assign(1.1 * variable)
    worker.load(weights(driver), version=5)
    seeded = driver.trainer._draws.meta_batch(driver.tasks.train, 2)[3]
    message = decode(worker.run("train", 5, seeded.address, seeded.seed, seeded.steps))
    assert message.task == seeded.task.name
    expected = driver.trainer._runner.train(seeded)
    assert_same(driver.trainer.read_trained(message.parts).meta_gradient, expected.meta_gradient)


def test_a_worker_tells_what_is_wrong():
    assert (
        "FileNotFoundError: no data set" in decode(TaskWorker(unbuildable, False).start()).failure
    )
    worker, address = started(), TaskAddress("train", 0, 0)
    assert "got no weights" in decode(worker.run("train", 1, address, 0, 4)).failure
    worker.load(weights(meta_sgd()), version=1)
    assert "other variables" in decode(worker.run("train", 1, address, 0, 4)).failure
    worker.load(weights(leap()), version=2)
    assert "must be that of the driver" in decode(worker.run("train", 2, address, 0, 4)).failure
    assert "KeyError" in decode(worker.run("dance", 2, TaskAddress("test", 0, 0), 0, 4)).failure
