"""The base class of this library's errors, and checks of arguments."""

import operator
import reprlib
from collections.abc import Iterable
from typing import Any


class LeapError(Exception):
    """The base class of errors that this library defines.

    Each of them also derives from the built-in error that fits, such as ValueError.
    """


def names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Returns names as a tuple; a string is one name."""
    return (given,) if isinstance(given, str) else tuple(given)


def whole_number(name: str, number: Any, least: int) -> int:
    """Returns an integer argument as a Python int, and refuses one that is below `least`."""
    try:
        number = operator.index(number)
    except TypeError:
        found = reprlib.repr(number)
        raise TypeError(f"{name} must be a whole number. Received: {found}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}. Received: {number}.")
    return number
