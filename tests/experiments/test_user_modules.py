"""Tests of modules of the user: registration, import, and their record in a run's folder."""

import dataclasses
import hashlib
import json
import pickle
import sys

import gin
import pytest

import leap_tf
from leap_tf.experiments import commands, config
from leap_tf.experiments.config import ConfigurationError, read_configuration
from leap_tf.experiments.sweep import Cell, Sweep
from leap_tf.experiments.user_modules import (
    RECORD,
    UserModuleError,
    check_modules,
    load_modules,
    record_of,
)
from tests.runs import ROOT

EXAMPLE = ROOT / "examples" / "own_study"
SMALL = [
    "forecasting_tasks.train_tasks = 2",
    "forecasting_tasks.test_tasks = 1",
    "recurrent_net.units = 2",
    "MetaTrainer.meta_batch_size = 1",
    "MetaTrainer.steps_per_task = 2",
    "meta_train.meta_steps = 1",
    "meta_train.validation_freq = 5",
]
ARGUMENTS = ([EXAMPLE / "forecasting.gin"], SMALL)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    gin.clear_config()


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a module, and forgets its import after the test."""
    names = []

    def write(name, text="", folder=tmp_path):
        names.append(name)
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.py"
        path.write_text(text)
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the example."""
    folder = tmp_path_factory.mktemp("runs") / "forecasting"
    commands.train(*ARGUMENTS, folder, modules=[EXAMPLE / "forecasting.py"])
    return folder


def test_configurable_returns_what_it_is_given():
    def build(width=1):
        return width

    class Thing:
        pass

    assert leap_tf.configurable(build) is build
    assert leap_tf.configurable(name="thing_of_a_test", module="tests")(Thing) is Thing
    assert leap_tf.configurable()(build) is build
    with pytest.raises(TypeError, match="takes a function or a class, and not 'name'"):
        leap_tf.configurable("name")


def test_functions_and_classes_are_configured(write):
    path = write(
        "study_of_a_test",
        "import leap_tf\n"
        "@leap_tf.configurable\n"
        "class Slow(leap_tf.Reptile):\n"
        "    def __init__(self, factor=1.0):\n"
        "        super().__init__()\n"
        "        self.factor = factor\n"
        "@leap_tf.configurable(name='wide', module='mine')\n"
        "def wide_model(width):\n"
        "    return width\n",
    )
    load_modules([path])
    binding = ["MetaTrainer.learner = @Slow()", "Slow.factor = 0.5", "mine.wide.width = 3"]
    read_configuration(["sinusoid.gin"], binding)
    learner = gin.query_parameter("MetaTrainer.learner").scoped_configurable_fn()
    assert type(learner) is sys.modules["study_of_a_test"].Slow
    assert learner.factor == 0.5
    assert gin.get_configurable("wide")() == 3
    with pytest.raises(TypeError, match="width"):  # a call from Python is a plain call
        sys.modules["study_of_a_test"].wide_model()


def test_names_that_cannot_be_registered_are_named(write):
    load_modules(
        [write("twice_of_a_test", "import leap_tf\nleap_tf.configurable(len, name='a b')")]
    )
    with pytest.raises(ConfigurationError, match="a b cannot be registered"):
        config.register_recorded()


def test_the_seed_of_tasks_belongs_to_the_study(trained):
    with pytest.raises(ConfigurationError, match="seed"):
        read_configuration([EXAMPLE / "forecasting.gin"], ["forecasting_tasks.seed = 1"])


def test_an_unknown_name_may_be_of_a_module():
    with pytest.raises(
        ConfigurationError, match=r"(?s)no_such_net.* name its module with --module"
    ):
        read_configuration(["sinusoid.gin"], ["study.model = @no_such_net"])


def test_modules_are_given_by_path_or_name(write, tmp_path):
    path = write("module_of_a_test", "import neighbour_of_a_test\n")
    write("neighbour_of_a_test")
    (module,) = load_modules([path])
    assert module.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert module.path == str(path)
    assert module.flag == f"--module={path}"
    (named,) = load_modules(["module_of_a_test"])
    assert named == dataclasses.replace(module, flag="--module=module_of_a_test")


def test_all_files_of_a_package_count(write, tmp_path):
    package = tmp_path / "package_of_a_test"
    write("__init__", folder=package)
    sys.path.append(str(tmp_path))
    (before,) = load_modules([package.name])
    write("part", "width = 3", folder=package)
    (after,) = load_modules([package.name])
    assert before.path == after.path == str(package)
    assert before.sha256 != after.sha256


def test_modules_that_cannot_be_imported_are_named(write, tmp_path):
    broken = write("broken_of_a_test", "\nwidth = unknown\n")
    lacking = write("lacking_of_a_test", "import no_such_package\n")
    for given, message in (
        ("no_such_module", "There is no module 'no_such_module' to import. Install it, or"),
        ("no_such.module", "There is no module 'no_such.module' to import"),
        (tmp_path / "no_such.py", "no_such.py is not the file of a module"),
        (write("my-study"), "my-study.py is not the file of a module"),
        (write("json"), "has the name of another module, .*json"),
        (broken, r"NameError: name 'unknown' is not defined \(.*broken_of_a_test.py, line 2\)"),
        (lacking, "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("sys", "has no source file"),
    ):
        with pytest.raises(UserModuleError, match=message):
            load_modules([given])
    import json

    sys.modules["json"] = json  # the fixture forgets a module of this name


def test_a_run_asks_for_its_modules_again(write, tmp_path, capsys):
    path = write("asked_of_a_test", "width = 1\n")
    modules = load_modules([path])
    check_modules(tmp_path, modules, same_run=True)  # the run has not started
    (tmp_path / RECORD).write_text(record_of(modules))
    check_modules(tmp_path, modules, same_run=True)
    for same_run in (True, False):
        with pytest.raises(UserModuleError, match=f"Pass --module={path} again"):
            check_modules(tmp_path, [], same_run)
    more = [*modules, *load_modules([write("more_of_a_test")])]
    check_modules(tmp_path, more, same_run=False)
    with pytest.raises(UserModuleError, match=r"without the modules \['more_of_a_test'\]"):
        check_modules(tmp_path, more, same_run=True)
    path.write_text("width = 2\n")
    modules = load_modules([path])
    with pytest.raises(UserModuleError, match="asked_of_a_test.py changed since the run in"):
        check_modules(tmp_path, modules, same_run=True)
    assert capsys.readouterr().err == ""
    check_modules(tmp_path, modules, same_run=False)
    assert "asked_of_a_test.py changed since" in capsys.readouterr().err
    (tmp_path / RECORD).write_text("[{}]")
    with pytest.raises(UserModuleError, match="modules.json cannot be read"):
        check_modules(tmp_path, modules, same_run=False)


def test_every_command_asks_for_the_modules_of_a_run(trained):
    (record,) = json.loads((trained / RECORD).read_text())
    source = (EXAMPLE / "forecasting.py").read_bytes()
    assert record["sha256"] == hashlib.sha256(source).hexdigest()
    for command in (
        lambda: commands.train(*ARGUMENTS, trained),
        lambda: commands.evaluate([], [], trained),
        lambda: commands.export([], [], trained),
    ):
        with pytest.raises(UserModuleError, match=r"Pass --module=.*/forecasting\.py again"):
            command()


def test_a_run_of_own_modules_is_evaluated_and_exported(trained, tmp_path, capsys):
    modules = [EXAMPLE / "forecasting.py"]
    commands.evaluate([], ["evaluate.steps = 1"], trained, modules=modules)
    assert "1 held-out tasks" in capsys.readouterr().out
    commands.export([], [], trained, export_dir=tmp_path / "export", modules=modules)
    card = json.loads((tmp_path / "export" / "model_card.json").read_text())
    assert "forecasting_tasks.train_tasks = 2" in card["configuration"]
    assert card["method"]["loss"]["class_name"] == "QuantileLoss"


def test_another_source_cannot_continue_or_export_a_run(trained, write, tmp_path):
    record = trained / RECORD
    before = record.read_text()
    record.write_text(before.replace(json.loads(before)[0]["sha256"], "0" * 64))
    try:
        for command in (
            lambda modules: commands.train(*ARGUMENTS, trained, modules=modules),
            lambda modules: commands.export([], [], trained, modules=modules),
        ):
            with pytest.raises(UserModuleError, match=r"forecasting\.py changed since the run"):
                command([EXAMPLE / "forecasting.py"])
    finally:
        record.write_text(before)


def test_a_comparison_asks_for_its_modules_again(write, tmp_path):
    path = write("compared_of_a_test", "width = 1\n")
    numbers = "compare.budget", "MetaTrainer.steps_per_task", "MetaTrainer.meta_batch_size"
    numbers += "sinusoid_splits.validation_tasks", "sinusoid_splits.test_tasks"
    bindings = ["compare.seeds = [0]", *(f"{name} = 2" for name in numbers)]
    bindings += ["compare.inner_factors = [1.0]", "compare.meta_rates = [0.01]"]
    arguments = ["compare/sinusoids.gin"], bindings, tmp_path / "comparison"
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / RECORD).write_text("[]")  # of a start that failed at once
    commands.compare(*arguments, modules=[path])
    with pytest.raises(UserModuleError, match=f"Pass --module={path} again"):
        commands.compare(*arguments)
    path.write_text("width = 2\n")
    sys.modules.pop("compared_of_a_test")
    with pytest.raises(UserModuleError, match="compared_of_a_test.py changed since"):
        commands.compare(*arguments, modules=[path])


def test_files_alone_import_nothing(trained, write, tmp_path):
    """The record of a run from a stranger names a module. Only the command line imports it."""
    path = write("payload_of_a_test", f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.gin").write_text((trained / "config.gin").read_text())
    entry = {"name": path.stem, "path": str(path), "sha256": "0", "flag": f"--module={path}"}
    (folder / RECORD).write_text(json.dumps([entry]))
    with pytest.raises(UserModuleError, match=r"Pass --module=.*payload_of_a_test\.py again"):
        commands.evaluate([], [], folder)
    assert not (tmp_path / "mark").exists()
    load_modules([path])
    assert (tmp_path / "mark").exists()  # or the test could not fail


def test_cells_of_a_sweep_get_the_modules(write, tmp_path):
    path = write("cells_of_a_test", "width = 1\n")

    def sweep():
        return Sweep(
            [Cell({"width": "1"}, ("w = 1",))],
            ["base.gin"],
            tmp_path / "sweep",
            data_dir=None,
            train_command=["train"],
            read_configuration=lambda files, bindings: "w = 1\n",
            modules=load_modules([path]),
        )

    (cell,) = sweep().unfinished()
    assert sweep().command(cell)[:2] == ["train", f"--module={path}"]
    folder = tmp_path / "sweep" / "cells" / "1"
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text("w = 1\n")
    (folder / RECORD).write_text(record_of(load_modules([path])))
    (folder / "evaluation.json").write_text("{}")
    assert sweep().unfinished() == []
    path.write_text("width = 2\n")  # a finished cell is not one of the changed study
    with pytest.raises(UserModuleError, match=r"cells_of_a_test\.py changed since the run"):
        sweep().unfinished()


def test_workers_build_the_study_of_the_drivers_source(write):
    modules = load_modules([EXAMPLE / "forecasting.py"])
    text = read_configuration(*ARGUMENTS)
    factory = commands.ConfiguredStudyFactory(text, None, modules)
    study = pickle.loads(pickle.dumps(factory))()
    assert study.trainer.model.count_params() == 33
    other = [dataclasses.replace(modules[0], sha256="0")]
    with pytest.raises(
        UserModuleError, match=r"forecasting\.py differs from the source on the driver"
    ):
        commands.ConfiguredStudyFactory(text, None, tuple(other))()
