"""Tests of what docs/cluster.md and examples/cluster say."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_example_of_the_docs_builds_a_study():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    names = {"__name__": "my_study"}
    exec(compile(block, "docs/cluster.md", "exec"), names)
    study = names["build_study"]()
    history = study.trainer.fit(study.tasks.train, 1, verbose=False).history
    assert history["tasks_failed"] == [0]


def test_the_job_for_kubernetes_has_the_version_that_is_installed():
    yaml = pytest.importorskip("yaml", reason="comes with Ray")
    job = yaml.safe_load((ROOT / "examples/cluster/rayjob.yaml").read_text())
    pinned = re.search(
        r"^ray==(.+)$", (ROOT / "requirements-cluster.txt").read_text(), re.MULTILINE
    )
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    arguments = job["spec"]["entrypoint"].split()
    assert (ROOT / arguments[1]).exists()
    flags = {argument.partition("=")[0].lstrip("-") for argument in arguments[2:]}
    command = [sys.executable, ROOT / arguments[1], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    assert flags <= set(re.findall(r"^  --(\w+):", shown, re.MULTILINE))


def test_the_image_installs_what_the_training_command_needs():
    """requirements-cluster.txt has Ray, but not the packages of configurations and data sets."""
    dockerfile = (ROOT / "examples/cluster/Dockerfile").read_text()
    files = re.findall(r"-r (\S+)", dockerfile)
    packages = "".join((ROOT / file).read_text() for file in files)
    for package in ("ray", "gin-config", "tensorflow-datasets", "matplotlib", "jinja2"):
        assert re.search(rf"^{package}==", packages, re.MULTILINE), package
