"""Checks of arguments, for every layer."""

import operator
from typing import Any


def whole_number(name: str, number: Any, least: int) -> int:
    """Returns a number, NumPy's too, as Python's; raises TypeError or ValueError if it is none."""
    try:
        number = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, and is {number!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, and is {number}.")
    return number
