"""Tests of the binaries in processes of their own: finished, killed, stopped, misused."""

import inspect
import json
import pathlib
import re
import signal
import subprocess
import sys

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf import __version__
from leap_tf.experiments import commands
from leap_tf.experiments.export import export_run
from leap_tf.experiments.run_directory import (
    RunDirectory,
    RunDirectoryError,
    extended_from,
    set_aside,
)
from leap_tf.experiments.study import meta_train
from leap_tf.training import Study, read_metrics
from tests.runs import (
    command,
    learned,
    run,
    start,
    train_here,
    wait_for_meta_step,
    without_times,
)

SINUSOID = pathlib.Path(__file__).parents[2] / "gin_configs" / "sinusoid.gin"


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    result = run("train.py", folder, "meta_train.meta_steps = 12")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_leaves_everything_in_its_folder(finished):
    folder, result = finished
    directory = RunDirectory(folder)
    assert "meta_train.meta_steps = 12" in directory.config.read_text()
    assert "mlp.hidden = (40, 40)" in directory.operative_config.read_text()
    (environment,) = json.loads(directory.environment.read_text())
    assert environment["packages"]["keras"] == keras.__version__
    assert environment["packages"]["leap-tf"] == __version__
    assert environment["intra_op_threads"] == 1
    assert [entry["meta_step"] for entry in read_metrics(directory.metrics)] == list(range(1, 13))
    assert "val_error" in read_metrics(directory.metrics)[1]
    assert list(directory.tensorboard.rglob("events*"))
    assert list(directory.checkpoints.glob("*.index"))
    for picture in ("learning_curve.png", "adaptation.png"):
        assert (directory.plots / picture).read_bytes().startswith(b"\x89PNG")
    assert "study.seed = 0" in directory.config.read_text()
    assert "meta-step 12/12" in result.stderr
    assert "functional_saver" not in result.stderr  # libraries keep quiet
    assert "\r" not in result.stderr  # no progress bar where there is no terminal


def test_the_table_compares_learned_with_fresh(finished):
    folder, result = finished
    record = json.loads(RunDirectory(folder).evaluation.read_text())
    learned_row, fresh_row = (
        record["results"][name] for name in ("learned initialization", "no pretraining")
    )
    assert record["transductive"] is False
    assert [t["name"] for t in learned_row["tasks"]] == [t["name"] for t in fresh_row["tasks"]]
    assert learned_row["error"] < fresh_row["error"]
    assert f"{learned_row['error']:.3f} ±" in result.stdout
    assert f"{fresh_row['area_under_error']:.1f} ±" in result.stdout
    assert "3 held-out tasks" in result.stdout


def test_evaluate_prints_the_same_table_again(finished, capsys):
    folder, trained = finished
    commands.evaluate([], [], folder)
    table = capsys.readouterr().out.partition("The run's own")[0].strip()
    assert "learned initialization" in table
    assert table in trained.stdout
    other = run("evaluate.py", folder, "evaluate.steps = 2", "evaluate.target_error = 3.0")
    assert "steps to error 3" in other.stdout, other.stderr
    record = json.loads(RunDirectory(folder).evaluation_again.read_text())
    assert len(record["results"]["no pretraining"]["tasks"][0]["training_errors"]) == 2
    assert record["steps"] == 2
    assert record["bindings"] == {"evaluate.steps": "2", "evaluate.target_error": "3.0"}
    own = json.loads(RunDirectory(folder).evaluation.read_text())
    assert own["steps"] == 5  # the run's own evaluation is unchanged


def test_evaluation_cannot_override_what_was_trained(finished):
    """With another seed, alphabets that were trained on could be among the held-out ones."""
    for binding, name in (
        ("study.seed = 1", "study.seed"),
        ("MetaTrainer.learner = @MetaSGD()", "MetaTrainer.learner"),
        ("sinusoid_splits.test_tasks = 9", "sinusoid_splits.test_tasks"),
    ):
        with pytest.raises(SystemExit, match=f"{name} cannot be overridden"):
            with commands.one_line_errors():
                commands.evaluate([], [binding], finished[0])


def test_a_signal_saves_and_leaves(finished, tmp_path):
    arguments = (tmp_path / "run", "meta_train.meta_steps = 12")
    for number, meta_step in ((signal.SIGTERM, 2), (signal.SIGINT, 5)):
        process = start("train.py", *arguments)
        wait_for_meta_step(process, tmp_path / "run", meta_step)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "The same command continues from there" in errors
        assert "Traceback" not in errors
    train_here(*arguments)
    for a, b in zip(learned(tmp_path / "run"), learned(finished[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_can_be_extended(finished, tmp_path, capsys):
    train_here(tmp_path / "run", "meta_train.meta_steps = 5")
    before = RunDirectory(tmp_path / "run").evaluation.read_bytes()
    capsys.readouterr()
    train_here(tmp_path / "run", "meta_train.meta_steps = 12")
    for a, b in zip(learned(tmp_path / "run"), learned(finished[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(tmp_path / "run") == without_times(finished[0])
    table = capsys.readouterr().out.partition("Learned initialization,")[0]
    assert table == finished[1].stdout.partition("Learned initialization,")[0]
    aside = tmp_path / "run" / "after_5_meta_steps"
    assert (aside / "evaluation.json").read_bytes() == before
    assert {path.name for path in aside.iterdir()} == {
        "evaluation.json",
        "initialization.json",
        "initialization.keras",
        "plots",
    }
    # It cannot be shortened.
    with pytest.raises(RunDirectoryError, match="a different configuration"):
        train_here(tmp_path / "run", "meta_train.meta_steps = 5")


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["MetaTrainer.stepz = 3"], "doesn't have a parameter named 'stepz'"),
        (["Leep.distance = 'length'"], "Leep"),
        (["mlp.hidden ="], "cannot be read"),
        (["innr/SGD.learning_rate = 0.5"], "Nothing refers to the scopes ['innr']"),
        (["study.tasks = @alphabet_splits", "alphabet_splits.dataset = 'omniglot'"], "tfds.load"),
        (["Leap.distance = 'width'"], "distance must be one of"),
    ],
)
def test_bad_configurations_end_in_one_line(tmp_path, bindings, message):
    with pytest.raises(SystemExit) as ended, commands.one_line_errors():
        commands.train([SINUSOID], bindings, tmp_path / "run", data_dir=tmp_path)
    assert message in ended.value.code
    assert not (tmp_path / "run").exists()  # the command can be corrected and given again


def test_bindings_without_effect_are_named(tmp_path, capsys):
    bindings = ["MetaTrainer.meta_optimizer = @meta/SGD()"]
    bindings += ["meta/SGD.learning_rate = 0.1", "conv_net.filters = 8", "SGD.momentum = 0.5"]
    commands.train([SINUSOID], [*bindings, "meta_train.meta_steps = 1"], tmp_path / "run")
    notes = re.findall(
        "(.*) has no effect: nothing refers to its function", capsys.readouterr().err
    )
    assert sorted(notes) == ["conv_net.filters", "meta/Adam.learning_rate"]


def test_a_missing_gin_file_is_named(tmp_path):
    result = run("train.py", tmp_path / "run", gin_file="gin_configs/no_such.gin")
    assert result.returncode == 1
    assert "No such gin file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("a = 1\nmeta_train.meta_steps = 21\n", 20),
        ("a = 1\nmeta_train.meta_steps = 20\n", None),
        ("a = 1\nmeta_train.meta_steps = 19\n", None),
        ("a = 2\nmeta_train.meta_steps = 21\n", None),
        ("a = 1\nmeta_train.meta_steps = %steps\n", None),
        ("a = 1\n", None),
    ],
)
def test_a_run_is_extended_by_meta_steps_alone(now, before):
    assert extended_from("a = 1\nmeta_train.meta_steps = 20\n", now) == before


def test_a_run_of_the_default_number_of_meta_steps_is_extended():
    default = inspect.signature(meta_train).parameters["meta_steps"].default
    now = f"a = 1\nmeta_train.meta_steps = {default + 1}\n"
    assert extended_from("a = 1\n", now) == default


def test_early_stopping_needs_validation(tmp_path):
    bindings = "meta_train.patience = 2", "meta_train.monitor = 'error'"
    result = run("train.py", tmp_path / "x", *bindings)
    assert "patience needs validation tasks" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_set_aside_is_never_written_over(tmp_path):
    for number in range(3):
        (tmp_path / "evaluation.json").write_text(str(number))
        set_aside(tmp_path, 20)
    set_aside(tmp_path, 20)  # nothing to keep
    kept = {path.parent.name: path.read_text() for path in tmp_path.glob("*/evaluation.json")}
    assert kept == {
        "after_20_meta_steps": "0",
        "after_20_meta_steps_2": "1",
        "after_20_meta_steps_3": "2",
    }


def test_a_run_directory_belongs_to_one_configuration(tmp_path):
    run_directory = RunDirectory(tmp_path / "run")
    run_directory.claim("a = 1\nb = 2\n")
    run_directory.metrics.write_text("{}\n")
    run_directory.claim("a = 1\nb = 2\n")
    with pytest.raises(RunDirectoryError, match=r"(?s)a different configuration.*-b = 2\n\+b = 3"):
        run_directory.claim("a = 1\nb = 3\n")
    assert run_directory.config.read_text() == "a = 1\nb = 2\n"
    assert not run_directory.is_finished("a = 1\nb = 2\n")
    run_directory.evaluation.write_text("{}")
    assert run_directory.is_finished("a = 1\nb = 2\n")
    assert not run_directory.is_finished("a = 1\nb = 3\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="not empty and holds no run"):
        RunDirectory(tmp_path / "other").claim("a = 1\n")
    assert len(json.loads(run_directory.environment.read_text())) == 2  # two starts
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_what_no_result_depends_on_may_change(tmp_path):
    run_directory = RunDirectory(tmp_path / "run")
    run_directory.claim("meta_train.validation_freq = 0\n")
    run_directory.claim("meta_train.validation_freq = 1\n")  # nothing has been computed
    run_directory.metrics.write_text("{}\n")
    with pytest.raises(RunDirectoryError, match="a different configuration"):
        run_directory.claim("meta_train.validation_freq = 2\n")
    run_directory.claim("meta_train.validation_freq = 1\nevaluate.steps = 7\n")
    run_directory.evaluation.write_text("{}")
    with pytest.raises(RunDirectoryError, match="a different configuration"):
        run_directory.claim("meta_train.validation_freq = 1\nevaluate.steps = 8\n")


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("evaluate.split = 'tset'", "split must be one of"),
        ("evaluate.steps = 0", "steps must be at least 1"),
        ("EvaluationConfig.held_out_steps = [5]", r"held_out_steps has \[5\], and .* 5 steps"),
        ("sinusoid_splits.test_tasks = 0", "no test tasks to evaluate"),
    ],
)
def test_an_impossible_evaluation_is_refused_before_training(tmp_path, binding, message):
    with pytest.raises(ValueError, match=message):
        commands.train([SINUSOID], ["MetaTrainer.steps_per_task = 5", binding], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_used_by_one_process_at_a_time(tmp_path):
    mine = RunDirectory(tmp_path / "run")
    mine.claim("a = 1\n")
    with pytest.raises(RunDirectoryError, match="Another process uses"):
        RunDirectory(tmp_path / "run").claim("a = 1\n")
    del mine
    RunDirectory(tmp_path / "run").claim("a = 1\n")


@pytest.fixture(scope="module")
def exported(finished):
    folder, _ = finished
    commands.export([], ["export.requests = 2"], folder)
    return RunDirectory(folder).export


def test_an_export_holds_model_requests_and_card(finished, exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "MODEL_CARD.md",
        "model.keras",
        "model_card.json",
        "requests",
        "saved_model",
    ]
    loaded = keras.saving.load_model(exported / "model.keras")
    for a, b in zip(loaded.get_weights(), learned(finished[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list((exported / "requests").glob("*.npz"))) == 2


def test_the_model_card_counts_the_meta_steps_of_what_was_taken(tmp_path):
    settings = ("meta_train.meta_steps = 12", "meta_train.validation_freq = 1")
    unsteady = ("meta_train.patience = 2", "meta/Adam.learning_rate = 0.1")
    train_here(tmp_path, *settings, *unsteady)
    metrics = read_metrics(RunDirectory(tmp_path).metrics)
    best = int(np.argmin([entry["val_error"] for entry in metrics])) + 1
    assert best < len(metrics)  # or this would show nothing
    commands.export([], [], tmp_path)
    card = json.loads((tmp_path / "export" / "model_card.json").read_text())
    assert card["method"]["meta_steps"] == best
    assert card["method"]["gradient_steps"] == best * 2 * 5


def test_example_requests_give_the_runs_own_figures(finished, exported):
    evaluation = json.loads(RunDirectory(finished[0]).evaluation.read_text())
    card = json.loads((exported / "model_card.json").read_text())
    adapt = tf.saved_model.load(exported / "saved_model").signatures["adapt"]
    for example, task in zip(
        card["requests"], evaluation["results"]["learned initialization"]["tasks"], strict=False
    ):
        request = dict(np.load(exported / example["file"]))
        answers = request.pop("query_y")
        assert example["task"] == task["name"]
        assert request["seed"] == task["seed"]
        adapted = adapt(**{name: tf.constant(value) for name, value in request.items()})
        np.testing.assert_allclose(adapted["losses"], task["training_losses"], atol=1e-4)
        error = np.mean((adapted["outputs"] - answers) ** 2)
        assert error == pytest.approx(task["error"], rel=1e-5)


def test_requests_of_any_name_and_shape_of_targets(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = np.ones((8, 1), np.float32)
    examples = inputs, np.arange(8)  # targets [n] for outputs [n, 1]
    names = ["東京", "shop 1", "shop-1"]
    tasks = [leap_tf.ArrayTask(name, examples, examples, batch_size=4) for name in names]
    trainer = leap_tf.MetaTrainer(leap_tf.mlp(hidden=[2]), "mse", "sgd", steps_per_task=2)
    study = Study(trainer, leap_tf.TaskSplits(tasks, [], tasks))
    run_directory = RunDirectory(tmp_path / "run")
    run_directory.claim("a = 1\n")
    run_directory.operative_config.write_text("a = 1\n")
    meta_train(study, run_directory, meta_steps=1, verbose=False)
    (tmp_path / "v1.partial").mkdir()
    folder = export_run(study, run_directory, tmp_path / "v1", requests=3)
    assert (tmp_path / "v1.partial").exists()  # it is another's
    requests = sorted(path.name for path in (folder / "requests").iterdir())
    assert requests == ["shop_1.npz", "shop_1_2.npz", "東京.npz"]
    request = dict(np.load(folder / "requests" / "shop_1_2.npz"))
    request.pop("query_y")
    adapt = tf.saved_model.load(folder / "saved_model").signatures["adapt"]
    answer = adapt(**{name: tf.constant(value) for name, value in request.items()})
    assert answer["outputs"].shape == (8, 1)


def test_requests_with_labels_in_a_column_and_pixels_of_another_size(tmp_path):
    keras.utils.set_random_seed(0)
    pixels = np.arange(8 * 4 * 4, dtype=np.uint8).reshape(8, 4, 4, 1)
    examples = pixels, np.arange(8).reshape(8, 1) % 2  # as of keras.datasets.cifar10

    def grey_to_colour(pixels):
        return tf.repeat(tf.cast(pixels, tf.float32), 3, axis=-1)

    task = leap_tf.ArrayTask("grey", examples, examples, batch_size=4, prepare=grey_to_colour)
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = leap_tf.MetaTrainer(model, loss, "sgd", steps_per_task=2)
    study = Study(trainer, leap_tf.TaskSplits([task], [], [task]))
    run_directory = RunDirectory(tmp_path / "run")
    run_directory.claim("a = 1\n")
    run_directory.operative_config.write_text("a = 1\n")
    meta_train(study, run_directory, meta_steps=0, verbose=False)
    with pytest.raises(ValueError, match="need steps=2, .* most 1. Bind export.max_steps"):
        export_run(study, run_directory, tmp_path / "short", max_steps=1)
    folder = export_run(study, run_directory, tmp_path / "v1")
    signatures = tf.saved_model.load(folder / "saved_model").signatures
    assert "adapt_uint8" not in signatures  # it would take images of the model's size
    request = dict(np.load(folder / "requests" / "grey.npz"))
    request.pop("query_y")
    answer = signatures["adapt"](**{name: tf.constant(v) for name, v in request.items()})
    assert answer["logits"].shape == (8, 2)


def test_the_model_card_is_made_from_the_runs_files(finished, exported):
    folder = RunDirectory(finished[0])
    card = json.loads((exported / "model_card.json").read_text())
    results = json.loads(folder.evaluation.read_text())["results"]
    assert card["configuration"] == folder.config.read_text()
    assert card["environment"]["trained"] == json.loads(folder.environment.read_text())[-1]
    assert card["method"]["learner"] == "Leap"
    assert card["method"]["meta_steps"] == 12
    assert card["method"]["gradient_steps"] == 12 * 2 * 5
    assert card["seed"] == 0
    for name, result in results.items():
        figures = card["evaluation"]["results"][name]
        assert figures["error"] == result["error"]
        assert figures["tasks"] == len(result["tasks"]) == 3
        errors = [task["error"] for task in result["tasks"]]
        assert figures["standard_error"] == pytest.approx(np.std(errors, ddof=1) / np.sqrt(3))
    shapes = card["signatures"]["adapt"]
    assert shapes["inputs"]["support_x"] == {"shape": [None, 1], "dtype": "float32"}
    assert shapes["outputs"]["losses"] == {"shape": [None], "dtype": "float32"}
    text = (exported / "MODEL_CARD.md").read_text()
    assert (
        f"| learned initialization | 3 | {results['learned initialization']['error']:.3f} ±" in text
    )
    assert "| held-out error | 100 × area under the training error |" in text
    assert "| inner optimizer | SGD, learning rate 0.01 |" in text
    assert "| in: support_x | float32 [any, 1] |" in text
    assert f"| keras | {keras.__version__} | {keras.__version__} |" in text


def test_a_checkpoint_is_exported_without_an_evaluation(finished, tmp_path):
    checkpoint = RunDirectory(finished[0]).checkpoints / "step-00000011"
    options = (f"--checkpoint={checkpoint}", f"--export_dir={tmp_path / 'export'}")
    exporting = [*command("export.py", finished[0], "export.requests = 1"), *options]
    result = subprocess.run(exporting, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    card = json.loads((tmp_path / "export" / "model_card.json").read_text())
    assert card["evaluation"] is None
    assert card["method"]["meta_steps"] == 11
    assert len(card["requests"]) == 1
    assert "has not been evaluated" in (tmp_path / "export" / "MODEL_CARD.md").read_text()
    weights = keras.saving.load_model(tmp_path / "export" / "model.keras").get_weights()
    assert not np.array_equal(weights[0], learned(finished[0])[0])


def test_an_export_is_never_written_over_and_needs_a_finished_run(finished, exported, tmp_path):
    with pytest.raises(SystemExit, match="exists. Pass a different --export_dir"):
        with commands.one_line_errors():
            commands.export([], [], finished[0])
    for command_of in (commands.export, commands.evaluate):
        with pytest.raises(SystemExit, match="holds no run"), commands.one_line_errors():
            command_of([], [], tmp_path)


def test_an_export_is_of_the_run_as_it_was_trained(finished):
    with pytest.raises(SystemExit, match="study.seed cannot be overridden"):
        with commands.one_line_errors():
            commands.export([], ["study.seed = 5", "export.requests = 2"], finished[0])


def test_a_second_signal_kills_whichever_it_is():
    stops = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as exit_:
        with commands.exit_on_signals(lambda: stops.append(1)):
            signal.raise_signal(signal.SIGTERM)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                assert signal.getsignal(number) is signal.SIG_DFL
    assert stops == [1]
    assert exit_.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_stops_a_run_whose_messages_nobody_reads(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

    stops = []
    monkeypatch.setattr(sys, "stderr", Broken())
    with pytest.raises(SystemExit), commands.exit_on_signals(lambda: stops.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert stops == [1]


def test_a_run_under_nohup_goes_on_after_the_logout():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with commands.exit_on_signals(pytest.fail):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
