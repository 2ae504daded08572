"""Writes a stand-in for rules_python's @pypi into the current folder, from installed packages.

One Bazel package per distribution, `@pypi//<name>`, with links to its top-level files and with its
requirements as `deps`. As with rules_python, a program sees the distributions it depends on and no
others, though all of them are installed side by side.
"""

import importlib.metadata
import json
import pathlib
import re

from packaging.requirements import Requirement


def bazel_name(distribution: str) -> str:
    """The name that rules_python gives a distribution: `Gin-Config` is `gin_config`."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def top_level(distribution: importlib.metadata.Distribution) -> set[str]:
    """Names in site-packages that a distribution brings."""
    names = {file.parts[0] for file in distribution.files or []}
    return {name for name in names if name not in ("..", "__pycache__") and name[-4:] != ".pth"}


def required(distribution: importlib.metadata.Distribution) -> set[str]:
    """Bazel names of what a distribution asks for on this machine, its extras left aside."""
    requirements = [Requirement(line) for line in distribution.requires or []]
    return {
        bazel_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def write_package(distribution: importlib.metadata.Distribution, present: set[str]) -> None:
    """Writes the folder of one distribution."""
    name = bazel_name(distribution.name)
    folder = pathlib.Path(name, "site-packages")
    folder.mkdir(parents=True)
    files = sorted(top_level(distribution))
    data = [f"site-packages/{file}" for file in files]
    deps = [f"//{dep}" for dep in sorted(required(distribution) & present)]
    for file in files:
        (folder / file).symlink_to(distribution.locate_file(file))
    pathlib.Path(name, "BUILD").write_text(
        "py_library(\n"
        f'    name = "{name}",\n'
        f"    data = {json.dumps(data)},\n"
        '    imports = ["site-packages"],\n'
        '    visibility = ["//visibility:public"],\n'
        f"    deps = {json.dumps(deps)},\n"
        ")\n"
    )


if __name__ == "__main__":
    # The project itself is what is built; nothing may come from where it is installed.
    distributions = {
        bazel_name(distribution.name): distribution
        for distribution in importlib.metadata.distributions()
        if bazel_name(distribution.name) != "leap_tf"
    }
    pathlib.Path("BUILD").touch()
    for distribution in distributions.values():
        write_package(distribution, set(distributions))
