"""Limits on the size of the package and of its documentation. No import of TensorFlow."""

import ast
import functools
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@functools.cache
def modules():
    """The text of each Python file of the package, by its path within the repository."""
    paths = sorted(ROOT.glob("leap_tf/**/*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


@functools.cache
def line_counts():
    return {path: text.count("\n") for path, text in modules().items()}


def test_the_package_has_at_most_75_files():
    assert 0 < len(modules()) <= 75


def test_no_module_has_more_than_450_lines():
    assert {path: count for path, count in line_counts().items() if count > 450} == {}


def test_the_package_has_at_most_18800_lines():
    assert sum(line_counts().values()) <= 18_800


def test_the_report_has_at_most_900_lines():
    report = [n for path, n in line_counts().items() if "leap_tf/experiments/report/" in path]
    assert report
    assert sum(report) <= 900


def test_the_documentation_has_at_most_64_files_and_3_megabytes():
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout of the repository")
    listed = subprocess.check_output(["git", "ls-files", "-z", "docs"], cwd=ROOT, text=True)
    files = [ROOT / name for name in listed.split("\0") if name]
    assert 0 < len(files) <= 64
    assert sum(path.stat().st_size for path in files if path.exists()) <= 3_000_000


def test_no_module_docstring_opens_with_a_question_word():
    opening = re.compile(r"(What|How|Whether|Who|Where)\b")
    docstrings = {path: ast.get_docstring(ast.parse(text)) for path, text in modules().items()}
    assert [path for path, docstring in docstrings.items() if opening.match(docstring or "")] == []


def test_the_version_is_the_same_everywhere():
    version = re.search(r'__version__ = "(.*)"', (ROOT / "leap_tf/__init__.py").read_text())[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'    version = "{version}",\n' in (ROOT / "MODULE.bazel").read_text()
    assert re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())[1] == version
