"""Tests of hostile files: they run no code, and the message says what is wrong.

Each file carries a payload that would create a mark. No mark may exist after the test.
"""

import base64
import json
import marshal
import pathlib
import pickle
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.datasets import open_dataset
from leap_tf.experiments.config import ConfigurationError, read_configuration
from leap_tf.experiments.report.page import write_report
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError
from leap_tf.experiments.run_tables import ResultsError, collect
from leap_tf.serialization import SavedArrays, unpack_arrays
from leap_tf.training import CheckpointMismatchError, CheckpointUnreadableError
from tests.result_folders import outcome, task, write_sweep


@pytest.fixture
def mark(tmp_path):
    """The path of a file that only a payload creates. It must not exist after the test."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "the payload ran"


class Payload:
    """An object that creates the mark when it is unpickled."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self._mark,)


def test_the_payloads_work(tmp_path):
    """If they did not, the tests below could not fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "pickle")))
    assert (tmp_path / "pickle").exists()
    code = marshal.dumps(compile(leaving(tmp_path / "code"), "payload", "eval"))
    eval(marshal.loads(code))
    assert (tmp_path / "code").exists()


def leaving(mark):
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


# Configurations.


def evil_module(folder, mark, monkeypatch):
    (folder / "evil_module.py").write_text(leaving(mark))
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    "text",
    [
        "import evil_module",
        "import evil_module as harmless",
        "from os import system",
        "from __gin__ import dynamic_registration\nimport evil_module",
        "mlp.hidden = (3,)\n\n  import evil_module",
        "include 'evil.gin'",
    ],
)
@pytest.mark.parametrize("place", ["file", "binding"])
def test_a_configuration_runs_no_module(tmp_path, mark, monkeypatch, text, place):
    evil_module(tmp_path, mark, monkeypatch)
    (tmp_path / "evil.gin").write_text("import evil_module")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.gin").write_text(text if place == "file" else "mlp.hidden = (2,)")
    with pytest.raises(ConfigurationError, match=r"not allowed|cannot be read"):
        read_configuration([tmp_path / "given.gin"], [text] if place == "binding" else [])
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "binding",
    [
        "study.model = @os.system",
        "os.system.command = 'touch mark'",
        "study.model = @subprocess.Popen()",
        "study.seed = __import__('os').system('touch mark')",
        "study.seed = [].__class__",
        "study.data_dir = '/'",
        "evaluate.run = 3",
        "export.path = '/'",
    ],
)
def test_a_configuration_binds_what_is_registered_and_no_more(tmp_path, mark, monkeypatch, binding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.gin").write_text("mlp.hidden = (2,)\n")
    with pytest.raises(ConfigurationError):
        read_configuration([tmp_path / "some.gin"], [binding])


# Learned initializations.


def altered(model, path, change):
    """Saves a model and changes the description in its file."""
    model.save(path.with_name("original.keras"))
    with (
        zipfile.ZipFile(path.with_name("original.keras")) as original,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for name in original.namelist():
            content = original.read(name)
            if name == "config.json":
                content = json.dumps(change(json.loads(content))).encode()
            archive.writestr(name, content)


def with_lambda(mark):
    function = eval(f"lambda x: ({leaving(mark)}, x)[1]")
    code = base64.b64encode(marshal.dumps(function.__code__)).decode()
    layer = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "registered_name": None,
        "config": {
            "name": "lambda",
            "function": {
                "class_name": "__lambda__",
                "config": {"code": code, "defaults": None, "closure": None},
            },
            "arguments": {},
        },
        "name": "lambda",
    }

    def change(description):
        description["config"]["layers"].append(layer)
        return description

    return change


def calling(module, name, **arguments):
    return lambda _: {
        "module": module,
        "class_name": name,
        "config": arguments,
        "registered_name": None,
    }


@pytest.mark.parametrize(
    "change",
    [
        with_lambda,
        lambda mark: calling("os", "system", command=f"touch {mark}"),
        lambda mark: calling("subprocess", "Popen", args=["touch", str(mark)]),
        lambda mark: calling("builtins", "eval", source=leaving(mark)),
        lambda mark: calling("evil_module", "Layer"),
        lambda mark: calling(
            "keras.utils", "get_file", fname="mark", origin="file:///etc/hostname"
        ),
    ],
)
def test_a_learned_initialization_is_arrays_and_its_description_is_not_read(
    tmp_path, mark, monkeypatch, change
):
    evil_module(tmp_path, mark, monkeypatch)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    learned = leap_tf.mlp()
    altered(learned, run.initialization, change(mark))
    model = leap_tf.mlp()
    run.load_learned(model, [])
    for a, b in zip(model.get_weights(), learned.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises((ValueError, TypeError)):  # Keras does not run it either
        keras.saving.load_model(run.initialization)


@pytest.mark.parametrize("how", ["empty", "cut short", "no zip", "no weights", "of another model"])
def test_a_damaged_initialization_says_what_to_do(tmp_path, how):
    run = RunDirectory(tmp_path)
    leap_tf.mlp(hidden=(3,) if how == "of another model" else (40, 40)).save(run.initialization)
    content = run.initialization.read_bytes()
    if how == "no weights":
        with zipfile.ZipFile(run.initialization, "w") as archive:
            archive.writestr("config.json", "{}")
    elif how != "of another model":
        damaged = {"empty": b"", "cut short": content[: len(content) // 2], "no zip": b"hello"}
        run.initialization.write_bytes(damaged[how])
    with pytest.raises(RunDirectoryError, match="run the training command again"):
        run.load_learned(leap_tf.mlp(), [])


def test_learner_variables_are_read_without_pickle(tmp_path, mark):
    run = RunDirectory(tmp_path)
    model = leap_tf.mlp()
    model.save(run.initialization)
    with pytest.raises(RunDirectoryError, match=r"learner\.npz is missing"):
        run.load_learned(model, [keras.Variable(0.0)])
    np.savez(run.learner, np.array([Payload(mark)], dtype=object))
    with pytest.raises(RunDirectoryError, match="is missing, damaged"):
        run.load_learned(model, [keras.Variable(0.0)])
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpack_arrays(run.learner.read_bytes())


# Checkpoints.


def small_trainer():
    return leap_tf.MetaTrainer(
        leap_tf.mlp(hidden=(3,)),
        keras.losses.MeanSquaredError(),
        keras.optimizers.SGD(0.02),
        keras.optimizers.SGD(0.02),
        steps_per_task=2,
        meta_batch_size=1,
    )


class Bytes(tf.train.experimental.PythonState):
    """State in a checkpoint with any bytes."""

    def __init__(self, content):
        self._content = content

    def serialize(self):
        return self._content

    def deserialize(self, string_value):
        pass


def forge(trainer, path, progress=None, best_weights=None):
    """Writes a checkpoint of the right form, with valid checksums and other content."""
    variables = trainer.model.variables
    tf.train.Checkpoint(
        model=[variable.value for variable in variables],
        meta_optimizer=[variable.value for variable in trainer.meta_optimizer.variables],
        progress=Bytes(progress) if progress is not None else trainer._state.progress,
        best_weights=Bytes(best_weights) if best_weights is not None else SavedArrays(),
    ).write(str(path))


def nested(depth):
    return {"more": nested(depth - 1)} if depth else {}


def progress_with(**changes):
    fields = {
        "seed": 0,
        "settings": small_trainer()._state.progress.settings,
        "meta_step": 1,
        "stopped": False,
        "epochs": [0],
        "history": {"loss": [1.0]},
        "callbacks": [],
    }
    return json.dumps(fields | changes).encode()


def test_a_forged_checkpoint_is_read_if_it_is_right(tmp_path):
    trainer = small_trainer()
    forge(trainer, tmp_path / "step-00000001", progress_with(meta_step=7))
    trainer.load(tmp_path / "step-00000001")
    assert trainer.meta_step == 7


@pytest.mark.parametrize(
    "progress",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        progress_with(meta_step="1"),
        progress_with(meta_step=-1),
        progress_with(meta_step=1.5),
        progress_with(meta_step=True),
        progress_with(stopped="no"),
        progress_with(epochs=7),
        progress_with(history=[]),
        progress_with(history={"loss": "high"}),
        progress_with(callbacks={"wait": 1}),
        progress_with(callbacks=[3]),
        progress_with(settings=[]),
        progress_with(settings={}),
        progress_with(settings=nested(480)),
    ],
)
def test_a_forged_progress_is_refused_and_nothing_changes(tmp_path, progress):
    trainer = small_trainer()
    before = [variable.numpy() for variable in trainer.variables]
    forge(trainer, tmp_path / "forged", progress)
    with pytest.raises((CheckpointMismatchError, CheckpointUnreadableError)):
        trainer.load(tmp_path / "forged")
    assert trainer.meta_step == 0
    for variable, value in zip(trainer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_best_weights_in_a_checkpoint_are_read_without_pickle(tmp_path, mark):
    np.savez(tmp_path / "evil.npz", arr_0=np.array([Payload(mark)], dtype=object))
    trainer = small_trainer()
    for number, content in enumerate([(tmp_path / "evil.npz").read_bytes(), b"PK\x03\x04", b"abc"]):
        forge(trainer, tmp_path / f"forged-{number}", progress_with(), content)
        with pytest.raises((CheckpointMismatchError, CheckpointUnreadableError)):
            trainer.load(tmp_path / f"forged-{number}")


# Data sets.


def data_set_folder(folder, class_name):
    version = folder / "stolen" / "1.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text(
        json.dumps({"name": "stolen", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []})
    )
    (version / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                "featuresDict": {"features": {"x": {"pythonClassName": class_name}}},
            }
        )
    )


@pytest.mark.parametrize("name", ["evil_module.Feature", "os.system", ""])
def test_a_data_set_runs_no_module(tmp_path, mark, monkeypatch, name):
    evil_module(tmp_path, mark, monkeypatch)
    data_set_folder(tmp_path / "data", name)
    with pytest.raises(ValueError, match="code from outside TFDS"):
        open_dataset("stolen", tmp_path / "data")
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_a_damaged_description_of_a_data_set_is_named(tmp_path, text):
    data_set_folder(tmp_path, "tensorflow_datasets.core.features.tensor_feature.Tensor")
    (tmp_path / "stolen" / "1.0.0" / "features.json").write_text(text)
    with pytest.raises(ValueError, match=r"features.json is damaged"):
        open_dataset("stolen", tmp_path)


@pytest.mark.parametrize("description", [None, 3, {"featuresDict": None}])
def test_a_description_of_other_types_is_a_damaged_one(tmp_path, description):
    data_set_folder(tmp_path, "tensorflow_datasets.core.features.tensor_feature.Tensor")
    file = tmp_path / "stolen" / "1.0.0" / "features.json"
    if isinstance(description, dict):
        description = json.loads(file.read_text()) | description
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="is damaged"):
        open_dataset("stolen", tmp_path)


@pytest.mark.parametrize("name", ["kaggle:titanic", "huggingface:x/y", "../etc", "/etc", "a b", ""])
def test_a_data_set_is_a_plain_name(tmp_path, name):
    with pytest.raises(ValueError, match="no name of a data set"):
        open_dataset(name, tmp_path)


# Results, read for a report.

SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", "a/b", "", "a\0b"])
def test_a_sweep_cannot_lead_out_of_its_folder(tmp_path, name):
    write_sweep(tmp_path / "table1", [({"method": "leap", "seed": "0"}, outcome(task(0.5)))])
    index = tmp_path / "table1" / "sweep.json"
    index.write_text(json.dumps([json.loads(index.read_text())[0] | {"name": name}]))
    with pytest.raises(ResultsError, match="is not the name of a folder"):
        collect([tmp_path])


def test_what_is_in_results_is_text_in_a_report(tmp_path):
    """Neither HTML, nor a template, nor a formula; in a figure, a table or a list."""
    method = f"{SCRIPT}{{{{ 7 * 7 }}}}$x_{{$|\n"
    cells = [({"method": name, "seed": "0"}, outcome(task(0.5))) for name in ("leap", "strange")]
    write_sweep(tmp_path / "runs", cells)
    index = tmp_path / "runs" / "sweep.json"
    entries = json.loads(index.read_text())
    entries[1]["values"]["method"] = method
    index.write_text(json.dumps(entries))
    (page,) = write_report(tmp_path / "report", runs=[tmp_path / "runs"])
    written = page.read_text()
    assert "{{ 7 * 7 }}$x_{$\\|  | 50.0 (one seed) |" in written
    assert "<script" not in written


@pytest.mark.parametrize("number", ['"a"', "[]", "null", "{}"])
def test_numbers_in_results_are_numbers(tmp_path, number):
    write_sweep(tmp_path / "table1", [({"method": "leap", "seed": "0"}, outcome(task(0.5)))])
    file = next(tmp_path.rglob("evaluation.json"))
    file.write_text(file.read_text().replace('"target_error": 0.1', f'"target_error": {number}'))
    with pytest.raises(ResultsError, match="evaluation.json does not have the form"):
        collect([tmp_path])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1e300"])
def test_a_task_with_a_number_that_overflows_has_diverged(tmp_path, number):
    write_sweep(tmp_path / "table1", [({"method": "leap", "seed": "0"}, outcome(task(0.5)))])
    file = next(tmp_path.rglob("evaluation.json"))
    file.write_text(file.read_text().replace('"loss": 1.0', f'"loss": {number}'))
    (page,) = write_report(tmp_path / "report", runs=[tmp_path])
    assert "| 1 of 1 |" in page.read_text()
