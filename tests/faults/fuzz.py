"""Random inputs for the readers of files and requests.

Each reader must return a right result or raise an error that the binaries show as one line. Other
errors, crashes and inputs that take longer than `LONGEST` seconds are failures. Most inputs are
good ones with a few changes, since readers reject noise early.
"""

import contextlib
import copy
import json
import logging
import pathlib
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import leap_tf
from leap_tf.datasets import open_dataset
from leap_tf.experiments.config import configured_study, read_configuration
from leap_tf.experiments.report.page import write_report
from leap_tf.training import read_metrics
from tests.faults.record import ROOT, Fault
from tests.result_folders import outcome, task, write_sweep

# Errors that `commands.one_line_errors` shows as one line.
REFUSALS = (leap_tf.LeapError, ValueError, OSError, FloatingPointError, tf.errors.OpError)
LONGEST = 30.0

_TEXTS = st.sampled_from(
    [
        "",
        "x",
        "../../x",
        "<script>alert(1)</script>",
        "${x}",
        "{{7*7}}",
        "%s",
        "\0",
        "é" * 9,
        "$a_{$",
    ]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    _TEXTS,
    st.text(max_size=8),
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def attack(
    name: str, inputs: st.SearchStrategy, read: Callable[[Any], None], trials: int, seed: int = 0
) -> Fault:
    """Calls a reader with random inputs.

    Args:
        name: name of the reader, for the table.
        inputs: strategy of the inputs.
        read: reads an input and checks the result.
        trials: number of inputs.
        seed: seed of the inputs.
    """
    fault = Fault(name, expected="an error in one line, or a right result")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=trials,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def every_input(given):
        fault.trials += 1
        fault.injected += 1
        try:
            with _at_most(LONGEST):
                read(given)
            fault.count("read")
        except REFUSALS:
            fault.count("refused")
        except Exception as error:
            fault.failures.append(f"{type(error).__name__}: {error} for {given!r}"[:600])

    logging.disable(logging.CRITICAL)
    try:
        every_input()
    finally:
        logging.disable(logging.NOTSET)
    return fault


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def too_long(*_):
        raise AssertionError(f"It took longer than {seconds} s.")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# Configurations and bindings, such as flags give.

_WORDS = """
study.seed = @mlp %x ( ) [ ] { } , ' " \\ 0 1e999 - None / @inner/SGD() : . b'x' 1j ... mlp.hidden
@gin.singleton() a/b/c.d {} {[]:1} @study() @meta_train() {1,2} # @ import include Leap.distance
'length' -1 (40,) 99999999999999999999
"""
_PIECES = st.sampled_from(
    [
        *_WORDS.split(),
        *("\n", "\r", "\0", "\t", "  ", "é", "\u2028", "'''", "[" * 300),
        "import os\n",
        "include 'x.gin'\n",
    ]
)


@st.composite
def configurations(draw) -> str:
    """Draws a shipped configuration with pieces inserted and replaced, or pieces alone."""
    text = (ROOT / "gin_configs" / "sinusoid.gin").read_text()
    if draw(st.booleans()):
        return " ".join(draw(st.lists(_PIECES, max_size=12)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + draw(_PIECES) + text[end:]
    return text


def attack_configurations(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    file = folder / "fuzzed.gin"
    shipped = ROOT / "gin_configs" / "sinusoid.gin"

    def read(text):
        file.write_text(text)
        read_configuration([file])
        read_configuration([shipped], [text])

    return attack("hostile configurations and bindings", configurations(), read, trials, seed)


@st.composite
def bindings(draw) -> str:
    """Draws a binding of a study's parameter to a value of any kind."""
    name = draw(
        st.sampled_from(
            [
                "mlp.hidden",
                "mlp.outputs",
                "mlp.inputs",
                "study.seed",
                "study.model",
                "study.tasks",
                "study.trainer",
                "MetaTrainer.loss",
                "MetaTrainer.learner",
                "MetaTrainer.steps_per_task",
                "MetaTrainer.meta_batch_size",
                "MetaTrainer.task_layers",
                "MetaTrainer.pool",
                "MetaTrainer.stopping",
                "inner/SGD.learning_rate",
                "inner/SGD.momentum",
                "inner/SGD.clipnorm",
                "meta/Adam.beta_1",
                "Leap.distance",
                "sinusoid_splits.test_tasks",
            ]
        )
    )
    values = st.one_of(
        st.integers(-3, 300),
        st.floats(-10, 10) | st.just(float("1e300")),
        st.sampled_from(["x", "length", ""]),
        st.none(),
        st.booleans(),
        st.lists(st.integers(-2, 40), max_size=3),
        st.dictionaries(st.sampled_from(["a", "b"]), st.integers(), max_size=2),
    )
    references = st.sampled_from(["@mlp", "@mlp()", "@Leap()", "@inner/SGD()", "@sinusoid_splits"])
    return f"{name} = {draw(references) if draw(st.booleans()) else repr(draw(values))}"


def attack_studies(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    shipped = ROOT / "gin_configs" / "sinusoid.gin"

    def read(binding):
        read_configuration([shipped], [binding])
        configured_study(data_dir=folder)

    return attack("studies of hostile bindings", bindings(), read, trials, seed)


# Results.


def _places(value, path=()):
    """Yields the path to every part of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in children:
            yield from _places(each, (*path, key))


def altered(content, place, instead, remove):
    """Returns a JSON value with one part replaced or removed."""
    if not place:
        return instead
    content = copy.deepcopy(content)
    owner = content
    for key in place[:-1]:
        owner = owner[key]
    if remove:
        del owner[place[-1]]
    else:
        owner[place[-1]] = instead
    return content


@st.composite
def changes(draw) -> tuple[str, int, Any, bool, bytes | None]:
    """Draws a file of a results folder, a place in it, and new content."""
    file = draw(
        st.sampled_from(["sweep.json", "evaluation.json", "environment.json", "metrics.jsonl"])
    )
    raw = (
        draw(st.none() | st.binary(max_size=30) | st.just(b"[" * 5000))
        if draw(st.integers(0, 4)) == 0
        else None
    )
    return file, draw(st.integers(0, 10**6)), draw(JSON), draw(st.booleans()), raw


def attack_results(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    rates = folder / "good" / "rates"
    cells = [
        ({"method": method, "seed": "0"}, outcome(task(0.5), task(0.2, 3)))
        for method in ("leap", "none")
    ]
    write_sweep(folder / "good" / "table1", cells)
    write_sweep(rates, cells)
    files = {
        name: next((folder / "good" / "table1").rglob(name))
        for name in ("sweep.json", "evaluation.json", "environment.json", "metrics.jsonl")
    }
    good = {name: path.read_bytes() for name, path in files.items()}

    def read(change):
        name, number, instead, remove, raw = change
        try:
            if raw is not None:
                files[name].write_bytes(raw)
            else:
                lines = good[name].splitlines() if name == "metrics.jsonl" else [good[name]]
                content = json.loads(lines[0])
                places = list(_places(content))
                place = places[number % len(places)]
                first = json.dumps(altered(content, place, instead, remove and place))
                files[name].write_bytes(b"\n".join([first.encode(), *lines[1:]]))
            (page,) = write_report(folder / "report", runs=[folder / "good"], study="omniglot")
            assert "<script" not in page.read_text()
            outside = [path for path in folder.iterdir() if path.name not in ("good", "report")]
            assert not outside
        finally:
            files[name].write_bytes(good[name])

    return attack("hostile result files, read for a report", changes(), read, trials, seed)


def attack_metrics(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    file = folder / "metrics.jsonl"
    lines = st.one_of(st.binary(max_size=40), JSON.map(lambda v: json.dumps(v).encode()))

    def read(content):
        file.write_bytes(b'{"meta_step": 1, "loss": 2.0}\n' + b"\n".join(content))
        entries = read_metrics(file)
        assert entries[0] == {"meta_step": 1, "loss": 2.0}
        assert all(isinstance(entry["meta_step"], int) for entry in entries)

    return attack("hostile metrics.jsonl", st.lists(lines, max_size=4), read, trials, seed)


# Checkpoints.


def small_trainer():
    keras.utils.set_random_seed(0)
    return leap_tf.MetaTrainer(
        leap_tf.mlp(hidden=(3,)),
        keras.losses.MeanSquaredError(),
        keras.optimizers.SGD(0.02),
        keras.optimizers.SGD(0.02),
        steps_per_task=2,
        meta_batch_size=1,
        pool=1,
    )


@st.composite
def damages(draw) -> tuple[str, int]:
    """Draws a kind of damage and a seed for its place."""
    how = draw(st.sampled_from(["flip", "flips", "cut", "zero", "empty", "longer", "swap"]))
    return how, draw(st.integers(0, 2**32 - 1))


def damaged(content: bytes, how: str, seed: int) -> bytes:
    """Returns the damaged content of a file."""
    rng = random.Random(seed)
    changed = bytearray(content)
    at = rng.randrange(len(content))
    if how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else 20):
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del changed[at:]
    elif how == "zero":
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    elif how == "empty":
        changed.clear()
    elif how == "longer":
        changed += rng.randbytes(50)
    else:
        changed[at:] = rng.randbytes(len(content) - at)
    return bytes(changed)


def attack_checkpoints(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    """A damaged checkpoint is refused, or it still holds the right values."""
    trainer = small_trainer()
    options: dict = {"checkpoint_seconds": 0, "verbose": False}
    trainer.fit(leap_tf.Sinusoids(), 2, checkpoint_dir=folder, **options)
    expected = trainer.model.get_weights()
    newest = sorted(folder.glob("step-00000002.*"))
    good = {path: path.read_bytes() for path in folder.glob("step-*")}
    reader = small_trainer()

    def read(damage):
        path = newest[damage[1] % len(newest)]
        try:
            path.write_bytes(damaged(good[path], *damage))
            reader.load(folder / "step-00000001")
            try:
                reader.load(folder / "step-00000002")
            except REFUSALS:
                assert reader.meta_step == 1, "the state before is lost"
                raise
            assert reader.meta_step == 2
            for a, b in zip(reader.model.get_weights(), expected, strict=True):
                assert np.array_equal(a, b), "other weights were read"
        finally:
            path.write_bytes(good[path])

    name = "checkpoints cut, flipped, emptied, overwritten"
    return attack(name, damages(), read, trials, seed)


# Data sets.


def attack_data_sets(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "x": {
                    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
                    "tensor": {"shape": {"dimensions": ["2"]}, "dtype": "float32"},
                }
            }
        },
    }
    info = {
        "name": "fuzzed",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "numBytes": "8", "shardLengths": ["1"]}],
    }
    good = {"features.json": features, "dataset_info.json": info}
    version = folder / "fuzzed" / "1.0.0"
    version.mkdir(parents=True)

    def read(change):
        name, number, instead, remove = change
        for each, content in good.items():
            places = list(_places(content))
            place = places[number % len(places)]
            if each == name:
                content = altered(content, place, instead, remove and place)
            (version / each).write_text(json.dumps(content))
        builder = open_dataset("fuzzed", folder)
        for _ in builder.as_dataset(split="train").take(1):
            pass

    given = st.tuples(st.sampled_from(list(good)), st.integers(0, 10**6), JSON, st.booleans())
    return attack("hostile descriptions of data sets", given, read, trials, seed)


# Requests to a served model.

_ARRAYS = st.sampled_from(
    [
        np.zeros((0, 4), np.float32),
        np.ones((3, 4), np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), 1e38, np.float32),
        np.ones((3, 5), np.float32),
        np.ones((4,), np.float32),
        np.float32(1),
        np.ones((3, 4), np.float64),
        np.ones((3, 4), np.int32),
        np.array(["a", "b"]),
        np.array([0, 1, 2], np.int32),
        np.array([-1, 5, 2**31 - 1], np.int32),
        np.array([0, 1, 2], np.int64),
        np.int32(-1),
        np.int32(2**31 - 1),
        np.int32(7),
        np.int64(2**62),
        np.float32(-1),
        np.float32(np.inf),
        np.float32(1e-30),
    ]
)


def attack_requests(folder: pathlib.Path, trials: int, seed: int = 0) -> Fault:
    """Requests to `adapt` with some inputs replaced give an error or finite answers."""
    from tests.serving.exports import clouds, fresh_head_dropout_adam, request

    trainer, _ = fresh_head_dropout_adam()
    leap_tf.export(trainer, folder / "export")
    adapt = tf.saved_model.load(folder / "export" / "saved_model").signatures["adapt"]
    good = request(trainer, clouds(), steps=2)
    given = st.just({}) | st.dictionaries(st.sampled_from(sorted(good)), _ARRAYS, max_size=2)

    def read(instead):
        inputs = {name: tf.constant(value) for name, value in (good | instead).items()}
        answers = adapt(**inputs)
        assert all(np.isfinite(value.numpy()).all() for value in answers.values())

    return attack("hostile requests to `adapt`", given, read, trials, seed)


ATTACKS = {
    "configurations": attack_configurations,
    "studies": attack_studies,
    "results": attack_results,
    "metrics": attack_metrics,
    "checkpoints": attack_checkpoints,
    "data sets": attack_data_sets,
    "requests": attack_requests,
}
# Factors by which inputs of some readers cost more than those of the others.
COSTS = {"results": 20, "studies": 4, "checkpoints": 2, "data sets": 2}


def attack_readers(folder: pathlib.Path, trials: int, seed: int) -> list[Fault]:
    """Attacks all readers, with fewer inputs for those that are slow."""
    faults = []
    for name, attacked in ATTACKS.items():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            faults.append(attacked(pathlib.Path(own), max(1, trials // COSTS.get(name, 1)), seed))
    return faults
