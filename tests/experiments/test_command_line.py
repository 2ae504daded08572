"""Tests of what all programs share: a quiet start, paths, flags, packages that are missing."""

import os
import subprocess
import sys

from tests.runs import ROOT, SMALL

TRAIN = [sys.executable, "-P", "-m", "leap_tf_cli", "train"]


def run(arguments, folder, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment = (
        kept | {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)} | environment
    )
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=environment)


def python(text, folder, **environment):
    return run([sys.executable, "-c", text], folder, **environment)


def test_a_run_prints_its_own_lines_only_and_expands_the_home_directory(tmp_path):
    text = (ROOT / "gin_configs" / "sinusoid.gin").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "windows.gin").write_bytes(b"\xef\xbb\xbf" + text)
    bindings = [f"--gin_param={line}" for line in (*SMALL, "meta_train.meta_steps = 1")]
    flags = ["--gin_file=~/windows.gin", "--output_dir=~/run", *bindings]
    result = run([*TRAIN, *flags], tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["meta-step", "Adapting", "Adapting"]
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not (tmp_path / "~").exists()


def test_errors_reach_the_terminal_even_if_the_import_crashes(tmp_path):
    crash = (
        "import os, leap_tf_cli\n"
        "with leap_tf_cli._no_startup_messages():\n"
        "    os.write(2, b'I0000 noise\\nF0000 no AVX\\nlast words')\n"
        "    os.abort()\n"
    )
    for level, expected in (("3", "F0000 no AVX\nlast words"), ("0", "I0000 noise\nF0000 no AVX")):
        result = python(crash, tmp_path, TF_CPP_MIN_LOG_LEVEL=level)
        assert result.returncode < 0
        assert result.stderr.startswith(expected)


def test_unknown_home_directories_and_programs_are_refused(tmp_path):
    result = run([*TRAIN, "--gin_file=sinusoid.gin", "--output_dir=~nobody_here/run"], tmp_path)
    assert "there is no such home directory" in result.stderr
    result = run([*TRAIN[:-1], "trian"], tmp_path)
    assert "Give one of the programs train, evaluate," in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_package_ends_in_one_line(tmp_path):
    for package, program, flag in (
        ("gin", "train", "--gin_file=sinusoid.gin"),
        ("pandas", "report", "--runs=x"),
    ):
        text = f"import sys; sys.modules[{package!r}] = None; import leap_tf_cli as cli;"
        arguments = [sys.executable, "-c", f"{text} cli.{program}()", flag]
        result = run([*arguments, "--output_dir=run"], tmp_path)
        assert result.returncode == 1
        advice = "is not installed. Run: pip install 'leap-tf[experiments]'"
        assert result.stderr == f"{package} {advice}\n"


def test_help_needs_no_tensorflow(tmp_path):
    text = "import sys; sys.modules['tensorflow'] = None; import leap_tf_cli; leap_tf_cli.train()"
    result = run([sys.executable, "-c", text, "--help"], tmp_path)
    assert "Meta-trains a study" in result.stdout
    assert "--gin_file" in result.stdout
