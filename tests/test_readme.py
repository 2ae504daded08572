"""Tests that the Python code of the README and of docs/runs.md runs as printed."""

import pathlib
import re

import pytest

import leap_tf

ROOT = pathlib.Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def run(block, namespace=None):
    namespace = {} if namespace is None else namespace
    exec(compile(block, "a block of a page", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_readme_has_at_most_130_lines_and_two_commands():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 130
    assert len(re.findall(r"```bash\n[^\n]+\n```", text)) == 2


def test_the_readme(tmp_path, capsys):
    wrap, adapt = blocks("README.md")
    assert len(wrap.strip().splitlines()) <= 16
    namespace = run(wrap)
    assert len(capsys.readouterr().out.splitlines()) == 20
    assert (tmp_path / "initialization.keras").exists()
    assert int(namespace["model"].optimizer.meta_optimizer.iterations.numpy()) == 20

    assert len(adapt.strip().splitlines()) == 5
    untrained = namespace["model"].evaluate(leap_tf.sinusoid_splits().test[0].test_batches())
    capsys.readouterr()
    run(adapt, namespace)
    assert float(capsys.readouterr().out.removeprefix("held-out loss:")) < untrained
    assert (tmp_path / "adapted.keras").exists()


def test_runs(capsys):
    track, compare = blocks("docs/runs.md")
    run(track)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2"]
    run(compare)
    assert "no pretraining" in capsys.readouterr().out


def test_all_public_names_exist():
    for name in leap_tf.__all__:
        assert hasattr(leap_tf, name)
