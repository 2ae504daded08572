"""Whether what a report is made of has the form it should; it may come from anybody.

A form is a type, a tuple of them, `[form]` for a list, `{str: form}` for any names, or `{"name":
form}` for at least these names, those in `Optional` if they are there.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

# Larger numbers are no measurements, and overflow in sums and pictures.
_LARGEST = 1e15


class Optional(NamedTuple):
    """A name that may be missing."""

    form: Any


NUMBER, MAYBE = (int, float), (int, float, type(None))
_TASK = {
    "name": str,
    "error": MAYBE,
    "loss": MAYBE,
    "examples": int,
    "area_under_error": MAYBE,
    "steps_to_target": (int, type(None)),
    "training_errors": [MAYBE],
    "training_losses": [MAYBE],
    "parameters": Optional(int),
}
_OUTCOME = {
    "error": MAYBE,
    "loss": MAYBE,
    "area_under_error": MAYBE,
    "diverged": [str],
    "tasks": [_TASK],
}
EVALUATION = {
    "split": str,
    "steps": int,
    "target_error": NUMBER,
    "transductive": bool,
    "results": {str: _OUTCOME},
}
SWEEP = [{"name": str, "values": {str: str}, "gin_files": [str], "bindings": [str]}]
METRICS = [{str: MAYBE}]
METRIC = {"meta_step": int, "seconds": NUMBER}
ENVIRONMENT = [
    {
        "python": str,
        "platform": str,
        "cores": int,
        "intra_op_threads": int,
        "inter_op_threads": int,
        "packages": {str: str},
    }
]
JACOBIAN = {
    "learning_rate": NUMBER,
    "task": (int, str),
    "steps": [int],
    "rho": [MAYBE],
    "layer": Optional(str),
    "parameters": int,
    "matrix_bytes": int,
    "seconds": NUMBER,
}


class ResultsError(ValueError):
    """A folder or file does not hold what a report is made of."""


def read_json(path: pathlib.Path, form: Any = None) -> Any:
    """Reads a file of JSON, and checks its form if there is one.

    Raises:
        ResultsError: it is not JSON, or not of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not JSON: {error}") from error
    if form is not None:
        check(content, form, str(path))
    return content


def check(value: Any, form: Any, where: str) -> None:
    """Compares a value with a form.

    Args:
        value: from a file.
        form: what it should be.
        where: what to call it.

    Raises:
        ResultsError: it is something else.
    """
    if isinstance(form, list):
        _require(isinstance(value, list), where, "a list")
        for index, each in enumerate(value):
            check(each, form[0], f"{where}[{index}]")
    elif isinstance(form, dict):
        _require(isinstance(value, dict), where, "an object")
        for name in form:
            if name is str:
                for key, each in value.items():
                    check(each, form[str], f"{where}[{key!r}]")
            elif isinstance(form[name], Optional):
                if name in value:
                    check(value[name], form[name].form, f"{where}[{name!r}]")
            else:
                _require(name in value, where, f"something with {name!r}")
                check(value[name], form[name], f"{where}[{name!r}]")
    else:
        kinds = form if isinstance(form, tuple) else (form,)
        wanted = " or ".join(kind.__name__ for kind in kinds)
        # To Python a bool is an int; to a report it is none.
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        _require(fits, where, wanted)
        if isinstance(value, int | float):
            _require(math.isfinite(value) and abs(value) <= _LARGEST, where, "a number of use")


def check_folder_name(name: str, where: str) -> None:
    """Refuses a name that leads out of the folder it should be in.

    Raises:
        ResultsError: it does.
    """
    plain = name and name not in (".", "..") and not set(name) & set("/\\\0")
    _require(plain, f"{where}: {name!r}", "the name of a folder")


def _require(condition, where, wanted):
    if not condition:
        raise ResultsError(f"{where[:300]} should be {wanted}, and is not.")
