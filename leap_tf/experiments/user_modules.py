"""Modules of the user: what they offer to gin files, and the record of them in a run's folder.

Only the person at the command line imports a module, by naming it with --module. A gin file cannot,
and the record in a run's folder only says which modules to name again.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from leap_tf.errors import LeapError

RECORD = "modules.json"  # the name of the record in a run's folder


class UserModuleError(LeapError, ValueError):
    """A module cannot be imported, is missing from a command, or has changed."""


# Functions and classes that are not registered with gin yet, each with its name and module there.
RECORDED: list[tuple[Callable, str, str]] = []


def configurable(
    target: Callable | None = None, *, name: str | None = None, module: str | None = None
) -> Any:
    """Offers a function or a class to gin files, and returns it unchanged.

    Use it as a decorator of builders of models and tasks, learners, Keras layers and losses, and
    distributions of tasks, in a module that is named with --module. A gin file can refer to the
    object (`study.model = @small_model`) and bind its arguments (`small_model.width = 8`); a call
    from Python ignores these bindings. gin need not be installed.

    Args:
        target: the function or class.
        name: its name in gin files; by default its own.
        module: what stands before the name where that alone is ambiguous; by default its module.

    Returns:
        The function or class; without `target`, a decorator.

    Raises:
        TypeError: `target` is not callable.

    Example:

        >>> import leap_tf
        >>> @leap_tf.configurable
        ... def small_model(width=8):
        ...     return leap_tf.mlp(hidden=[width])
        >>> small_model(width=4).count_params()
        13
    """

    def record(target: Callable) -> Callable:
        if not callable(target):
            raise TypeError(f"configurable takes a function or a class, and not {target!r}.")
        RECORDED.append((target, name or target.__name__, module or target.__module__))
        return target

    return record if target is None else record(target)


@dataclasses.dataclass(frozen=True)
class UserModule:
    """A module that has been imported.

    Attributes:
        name: its import name.
        path: its source file, or the folder of a package.
        sha256: of the source, of all Python files for a package.
        flag: the flag that names it.
    """

    name: str
    path: str
    sha256: str
    flag: str


def load_modules(modules: Sequence[str | os.PathLike]) -> tuple[UserModule, ...]:
    """Imports modules, each given by its import name or by the path of its `.py` file.

    The folder of a path is appended to `sys.path`, so that the file can import its neighbours.

    Raises:
        UserModuleError: there is no such module, its name belongs to another one, or its import
            fails.
    """
    return tuple(_load(os.fspath(module)) for module in modules)


def _load(given):
    name, file = given, None
    if given.endswith(".py") or os.sep in given:
        file = pathlib.Path(given).expanduser().resolve()
        name, given = file.stem, str(file)
        if not file.is_file() or not name.isidentifier():
            raise UserModuleError(f"{file} is not the file of a module, such as my_study.py.")
        found = importlib.util.find_spec(name)
        if found and found.origin != str(file):
            raise UserModuleError(
                f"{file} has the name of another module, {found.origin}. Give it another name."
            )
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserModuleError(
                f"There is no module {name!r} to import. Install it, or give the path of its file, "
                f"such as --module={name}.py."
            ) from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserModuleError(
            f"--module={given} cannot be imported: {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    if not getattr(module, "__file__", None):
        raise UserModuleError(f"--module={given} has no source file.")
    source = pathlib.Path(module.__file__)
    sources = [source]
    if hasattr(module, "__path__"):
        source = source.parent
        sources = sorted(source.rglob("*.py"))
    content = b"".join(each.read_bytes() for each in sources)
    return UserModule(name, str(source), hashlib.sha256(content).hexdigest(), f"--module={given}")


def record_of(modules: Sequence[UserModule]) -> str:
    """Returns the text of `RECORD`."""
    return json.dumps([dataclasses.asdict(module) for module in modules], indent=1) + "\n"


def check_modules(folder: pathlib.Path, modules: Sequence[UserModule], same_run: bool) -> None:
    """Checks that `modules`, which a command names, are those of the run in a folder.

    A run without a record has none yet, and any modules are right. Another source is a warning
    unless the results count as results of the `same_run`. Otherwise what differs is a
    UserModuleError.
    """
    record = folder / RECORD
    if not record.exists():
        return
    try:
        then = [UserModule(**each) for each in json.loads(record.read_text())]
    except (ValueError, TypeError) as error:
        raise UserModuleError(f"{record} cannot be read: {error}") from error
    now = {module.name: module for module in modules}
    if missing := [module.flag for module in then if module.name not in now]:
        raise UserModuleError(
            f"The run in {folder} uses modules of your own. Pass {' '.join(missing)} again."
        )
    more = sorted(set(now) - {module.name for module in then})
    if more and same_run:
        raise UserModuleError(
            f"The run in {folder} started without the modules {more}. Leave them out, or pass a "
            "different --output_dir."
        )
    changed = [now[each.name].path for each in then if now[each.name].sha256 != each.sha256]
    if changed and same_run:
        raise UserModuleError(
            f"{', '.join(changed)} changed since the run in {folder} started. Restore the source, "
            f"pass a different --output_dir, or, if the change does not affect results, remove "
            f"{record}."
        )
    if changed:
        print(f"Warning: {', '.join(changed)} changed since {folder} was trained.", file=sys.stderr)
