"""The Atari commands: finished, killed, resumed, misused.

Each binary runs in a process of its own at least once, and its function in this process otherwise.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.atari import commands
from leap_tf.atari.comparison import read_cell
from leap_tf.atari.environments import AtariEnvironment
from leap_tf.atari.study import configured_study
from leap_tf.experiments.commands import one_line_errors
from leap_tf.experiments.config import read_configuration
from leap_tf.experiments.run_directory import RunDirectory
from leap_tf.learners.sequential import SequentialLearner
from leap_tf.training import read_metrics
from tests.faults.kills import atari, attack

ROOT = pathlib.Path(__file__).parents[2]
CONFIGURATION = ROOT / "gin_configs/atari_cpu.gin"
SMALL = [
    "atari_study.games = ['pong', 'freeway', 'crazy_climber']",
    "mnih_2013.filters = (4, 4)",
    "mnih_2013.units = 8",
    "AtariEnvironment.copies = 2",
    "AtariProblem.steps_per_task = 4",
    "AtariProblem.meta_batch_size = 2",
    "atari_meta_train.meta_steps = 4",
    "atari_meta_train.checkpoint_seconds = 0.0",
    "atari_evaluate.groups = {'held out': ['breakout'], 'seen': ['pong']}",
    "atari_evaluate.target_scores = {'breakout': 1.0}",
    "atari_evaluate.seeds = 2",
    "CatchEnvironment.copies = 2",  # without effect
]


def command(binary, *arguments, bindings=()):
    return [
        sys.executable,
        str(ROOT / "bin" / binary),
        *arguments,
        *(f"--gin_param={binding}" for binding in bindings),
    ]


def train_command(folder, *bindings):
    return command(
        "atari_train.py",
        f"--gin_file={CONFIGURATION}",
        f"--output_dir={folder}",
        bindings=[*SMALL, *bindings],
    )


def run(arguments, **environment):
    return subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT
    )


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


def learned(folder):
    return keras.saving.load_model(RunDirectory(folder).initialization).get_weights()


def without_times(folder):
    return [
        {name: value for name, value in entry.items() if name != "seconds"}
        for entry in read_metrics(RunDirectory(folder).metrics)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    result = run(train_command(folder))
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_writes_encoder_metrics_and_logs(finished):
    folder, result = finished
    assert [entry["meta_step"] for entry in without_times(folder)] == [1, 2, 3, 4]
    runs = [json.loads(line) for line in (folder / "task_runs.jsonl").read_text().splitlines()]
    assert len(runs) == 8
    assert {each["game"] for each in runs} <= {"pong", "freeway", "crazy_climber"}
    assert all(each["frames"] == 4 * 5 * 2 * 4 for each in runs)
    assert all(each["frames_per_second"] > 0 for each in runs)
    assert "frames/s" in result.stderr
    assert "CatchEnvironment.copies has no effect: nothing refers to its" in result.stderr
    model = keras.saving.load_model(RunDirectory(folder).initialization)
    screens = AtariEnvironment("pong", copies=2).reset().observation.astype(np.float32)
    encoder = tf.saved_model.load(str(folder / "encoder"))
    np.testing.assert_allclose(encoder.serve(screens), model(screens), rtol=1e-4, atol=1e-5)
    assert "epsilon_inside_root = True" in RunDirectory(folder).operative_config.read_text()


def test_an_evaluation_resumes_and_compares_with_random_play(finished, capsys):
    folder, _ = finished
    arguments = command("atari_evaluate.py", f"--output_dir={folder}")
    first = run(arguments)
    assert first.returncode == 0, first.stderr
    results = folder / "evaluation" / "4_updates"
    cells = sorted(results.rglob("*_seed*.json"))
    assert len(cells) == 3 * 2 * 2
    saved = tf.saved_model.load(str(folder / "policies" / "breakout"))
    assert saved.action is not None
    for picture in (results / "held_out.png", results / "seen.png", folder / "plots/breakout.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    summary = json.loads((results / "summary.json").read_text())
    breakout = summary["groups"]["held out"]["breakout"]
    assert set(breakout) == {"learned", "fresh", "random policy"}
    assert len(breakout["learned"]["gain"]["values"]) == 2
    assert breakout["learned"]["frames_to_score"] == [None, None]
    assert "| breakout | random policy (2) |" in first.stdout
    # Only an agent whose file is lost is trained again, with the same result.
    lost = results / "fresh" / "pong_seed1.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    commands.evaluate([], folder)
    assert capsys.readouterr().err.count("per 1000 steps") == 1
    after = json.loads(lost.read_text())
    before["seconds"] = after["seconds"] = 0
    assert after == before
    # Every start is another task run. Four updates end no game, so only the paths tell.
    lengths = [read_cell(cell).path_length for cell in (results / "fresh").glob("pong_*")]
    assert len(set(lengths)) == 2


def test_runs_are_compared_on_the_same_starts(finished, tmp_path):
    folder, _ = finished
    other = tmp_path / "other"
    untrained = ["atari_study.seed = 1", "atari_meta_train.meta_steps = 0"]
    commands.train([CONFIGURATION], [*SMALL, *untrained], other)
    commands.evaluate(["atari_evaluate.kinds = ['learned']"], other)
    commands.evaluate([], folder)
    again = shutil.copytree(other, tmp_path / "again")  # in place of a run of another seed
    with pytest.raises(SystemExit, match="A run is given twice"), one_line_errors():
        commands.compare([f"Leap={other}", f"Reptile={other}"], tmp_path / "refused")
    result = run(
        command(
            "atari_compare.py",
            f"--run=Leap={folder}",
            f"--run=no pretraining={other}",
            f"--run=no pretraining={again}",
            f"--output_dir={tmp_path / 'compared'}",
        )
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    breakout = summary["groups"]["held out"]["breakout"]
    assert set(breakout) == {"Leap", "no pretraining", "fresh", "random policy"}
    assert breakout["no pretraining"]["agents"] == [2, 2]
    assert len(breakout["no pretraining"]["gain"]["values"]) == 2  # the runs, not the agents
    assert (tmp_path / "compared" / "held_out.png").exists()
    config = again / "config.gin"
    config.write_text(config.read_text() + "\nAtariEnvironment.reward_clip = 9.0\n")
    with pytest.raises(SystemExit, match="reward_clip.*equal settings"), one_line_errors():
        commands.compare([f"Leap={folder}", f"Reptile={again}"], tmp_path / "refused")


def test_errors_of_a_comparison_are_one_line(finished, tmp_path):
    for runs, message in (
        ("leap", "Runs must be given as method=folder"),
        (f"fresh={tmp_path}", "'fresh' is the name of a control"),
        (f"leap={tmp_path}", "share no finished evaluation: .* has none"),
    ):
        with pytest.raises(SystemExit, match=message), one_line_errors():
            commands.compare([runs], tmp_path)


def test_single_agents_are_compared_with_random_play(tmp_path, capsys):
    file = tmp_path / "figures.jsonl"
    arguments = [f"--gin_file={CONFIGURATION}", "--game=pong", "--seed=1", "--seed=2"]
    arguments += ["--updates=4", f"--output={file}"]
    first = run(command("atari_screen.py", *arguments, bindings=SMALL[1:4]))
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("random play") == 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seed"] for line in lines] == [1, 2]
    assert all(line["wall_seconds"] > 0 for line in lines)

    def screened(*bindings):
        bindings = [*SMALL[1:4], *bindings]
        commands.screen([CONFIGURATION], bindings, ["pong"], [1, 2], updates=4, output=file)
        return capsys.readouterr().out.count("random play")

    assert screened("atari_study.games = ['qbert']", "meta/SGD.learning_rate = 1.0") == 0
    assert screened("ActorCriticLoss.discount = 0.9") == 2


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("atari_study.games = ['joust']", "'joust' is a game for several players"),
        ("AtariProblem.unroll = 2.5", "cannot be built: unroll must be a whole number"),
    ],
)
def test_errors_of_the_configuration_are_one_line(tmp_path, binding, message):
    with pytest.raises(SystemExit, match=message), one_line_errors():
        commands.train([CONFIGURATION], [*SMALL, binding], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_threads_can_be_configured(tmp_path, monkeypatch):
    def meta_train(study, run):
        threads.append(study.trainer.pool._pool.threads)

    threads = []
    monkeypatch.setattr(commands, "configured_meta_train", meta_train)
    commands.train([CONFIGURATION], [*SMALL, "atari_study.pool = 7"], tmp_path)
    assert threads == [7]


def test_an_evaluation_keeps_the_settings_of_its_run(finished):
    with pytest.raises(SystemExit, match="Only atari_evaluate can be bound here"):
        with one_line_errors():
            commands.evaluate(["RMSProp.learning_rate = 1.0"], finished[0])


def test_a_game_of_training_is_not_evaluated_as_held_out(finished):
    groups = "atari_evaluate.groups = {'held out': ['breakout', 'pong/m0/d0']}"
    with pytest.raises(SystemExit, match=r"Held-out games are among .* training: \['pong'\]"):
        with one_line_errors():
            commands.evaluate([groups], finished[0])


def test_importing_without_legacy_keras_says_what_to_do():
    environment = {"TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": str(ROOT)}
    result = run([sys.executable, "-c", "import leap_tf.atari"], **environment)
    assert "TF_USE_LEGACY_KERAS=1 in the environment before TensorFlow" in result.stderr


@pytest.mark.parametrize(
    ("names", "task_runs"),
    [
        (["atari_cpu"], 120),
        (["atari_paper"], 1600),
        (["atari_cpu", "atari_reptile"], 120),
        (["atari_cpu", "atari_finetuning"], 120),
        (["atari_cpu", "atari_flavours"], 60),
        (["atari_cpu", "atari_flavours", "atari_reptile", "atari_heads"], 60),
        (["atari_cpu", "atari_flavours", "atari_finetuning", "atari_flavours_finetuning"], 60),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_every_configuration_builds_a_study(names, task_runs):
    read_configuration([ROOT / "gin_configs" / f"{name}.gin" for name in names])
    study = configured_study()
    games = [game.name for game in study.tasks.train.tasks]
    held_out = gin.query_parameter("atari_evaluate.groups")["held out"]
    assert not set(held_out) & set(games)
    optimizer = study.trainer.meta_optimizer
    if isinstance(study.trainer.learner, SequentialLearner):  # ends where the last task run does
        assert float(optimizer.learning_rate) == 1.0
        assert optimizer.global_clipnorm is None
    else:
        assert float(optimizer.learning_rate) * optimizer.global_clipnorm == pytest.approx(
            1.1, 0.02
        )
    meta_steps = gin.query_parameter("atari_meta_train.meta_steps")
    assert meta_steps * study.trainer.problem.setup.meta_batch_size == task_runs
    if names == ["atari_paper"]:
        assert len(games) == 25
        assert set(held_out) == {"breakout", "space_invaders"}
        assert study.trainer.problem.setup.steps_per_task * 5 * 32 == 5_000_000
        for game in games:
            assert AtariEnvironment(game, copies=1).actions <= 10


def test_a_run_on_ray_workers_gives_the_same_encoder(finished, tmp_path):
    pytest.importorskip("ray", reason="needs the extra: requirements-cluster.txt")
    arguments = [*train_command(tmp_path / "run"), "--pool=ray", "--workers=2"]
    result = run(arguments, RAY_AUTH_MODE="disabled")
    assert result.returncode == 0, result.stderr
    for array, other in zip(learned(tmp_path / "run"), learned(finished[0]), strict=True):
        np.testing.assert_array_equal(array, other)
    assert without_times(tmp_path / "run") == without_times(finished[0])
    assert len((tmp_path / "run" / "task_runs.jsonl").read_text().splitlines()) == 8


def test_a_killed_run_of_games_ends_bit_identical(tmp_path):
    def some(planned):
        return [kill for kill in planned if kill[0] in ("checkpoint", "final model")][-2:]

    fault = attack(atari(), tmp_path, kills=2, seed=2, shorten=some)
    assert fault.injected == 2
    assert not fault.failures
