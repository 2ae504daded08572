"""Holds the BUILD file against the imports of the sources.

    bazel query --output=xml //:all | python tests/bazel/imports.py

Bazel itself notices a missing dependency only when a test runs into it. Here every target must list
exactly what its own files import, and every source must belong to a target.
"""

import ast
import importlib.metadata
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from pypi import bazel_name

FOLDERS = ("leap_tf", "leap_tf_cli", "bin", "benchmarks", "studies", "tests", "docs")
# They check the project from outside, or need PyTorch, which Bazel's environment does not have.
APART = ("tests/bazel", "tests/docs", "tests/install", "benchmarks/second_order.py")

# Needed by what is imported, or run in another process or by path.
NOT_IMPORTED = {
    "//:atari",
    "//:studies",
    "//:testing",
    "//:experiments",
    "@pypi//dill",
    "@pypi//gymnasium",
    "@pypi//importlib_resources",
    "@pypi//setuptools",
    "@pypi//tensorboard",
    "@pypi//tf_keras",
}


class Target(NamedTuple):
    """A py_library, py_binary or py_test of the BUILD file."""

    name: str
    sources: set[str]
    dependencies: set[str]


def read_targets(xml: str) -> list[Target]:
    """Returns the Python targets of what `bazel query --output=xml` printed."""

    def labels(rule, attribute):
        values = {label.get("value") for label in rule.findall(f"list[@name='{attribute}']/label")}
        return {value.split(":")[0] if value[0] == "@" else value for value in values}

    xml = xml.replace('<?xml version="1.1"', '<?xml version="1.0"')  # the parser knows no 1.1
    return [
        Target(
            rule.get("name"),
            {source.removeprefix("//:") for source in labels(rule, "srcs")},
            labels(rule, "deps"),
        )
        for rule in ElementTree.fromstring(xml).iter("rule")
        if rule.get("class") in ("py_library", "py_binary", "py_test")
    ]


def module_name(source: str) -> str:
    """`leap_tf/tasks/__init__.py` is `leap_tf.tasks`."""
    return source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(source: str) -> set[tuple[str, ...]]:
    """Returns the modules a file imports; `from a import b` may mean two: ("a.b", "a")."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(pathlib.Path(source).read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name,) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(f"{node.module}.{alias.name}", node.module) for alias in node.names}
    return {names for names in found if names[0].split(".")[0] not in sys.stdlib_module_names}


def problems(targets: list[Target]) -> list[str]:
    """Returns a line for every dependency missing or not used, and every source left out."""
    owners: dict[str, set[str]] = {}
    for target in targets:
        for source in target.sources:
            owners.setdefault(module_name(source), set()).add(target.name)
    own_packages = {module.split(".")[0] for module in owners}
    distributions = importlib.metadata.packages_distributions()

    def providers(names: tuple[str, ...], source: str) -> set[str]:
        package = names[0].split(".")[0]
        beside = str(pathlib.PurePath(source).parent / names[-1])  # as scripts import each other
        if beside.replace("/", ".") in owners:
            return owners[beside.replace("/", ".")]
        if package in own_packages:
            return next((owners[name] for name in names if name in owners), set())
        return {f"@pypi//{bazel_name(name)}" for name in distributions.get(package, ())}

    found = []
    for target in targets:
        needed: set[str] = set()
        for source in sorted(target.sources):
            for names in sorted(imported(source)):
                provided = providers(names, source)
                if not provided:
                    found.append(f"{source} imports {names[-1]}, which is in no target or package")
                elif target.name not in provided:
                    needed |= provided & target.dependencies
                    if not provided & target.dependencies:
                        found.append(
                            f"{target.name}: {source} imports {names[-1]}: "
                            f"add {' or '.join(sorted(provided))} to deps"
                        )
        unused = target.dependencies - needed - NOT_IMPORTED
        found += [f"{target.name}: nothing imports {name}" for name in sorted(unused)]

    listed = {source for target in targets for source in target.sources}
    present = {str(path) for folder in FOLDERS for path in pathlib.Path(folder).rglob("*.py")}
    left_out = {path for path in present - listed if not path.startswith(APART)}
    return found + [f"{path} is in no target" for path in sorted(left_out)]


if __name__ == "__main__":
    targets = read_targets(sys.stdin.read())
    lines = problems(targets)
    print("\n".join(lines), file=sys.stderr)
    print(f"{len(targets)} targets, {len(lines)} wrong or missing dependencies")
    sys.exit(bool(lines) or not targets)
