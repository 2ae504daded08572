"""Results in parts that any format can carry: plain values as in JSON, and arrays by name.

Reading them back trusts nothing: what is not there, or of another kind, is refused by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

Record = TypeVar("Record")


class UnfitPartsError(ValueError):
    """Parts that are not what they should be."""


class Parts(NamedTuple):
    """A record taken apart.

    Attributes:
        plain: what JSON can say, by name.
        arrays: arrays of numbers, by name.
    """

    plain: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Divisible(Protocol):
    """What has parts."""

    def parts(self) -> Parts:
        """Returns all of it as plain values and arrays."""


def parts_of_record(record: Any) -> Parts:
    """Returns the parts of a dataclass whose fields are arrays and plain values."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    return Parts(plain, arrays)


def record_of_parts(cls: type[Record], parts: Parts, kinds: Mapping[str, Any]) -> Record:
    """Reads what `parts_of_record` gave.

    Args:
        cls: the dataclass.
        parts: plain values and arrays, from a place that may be mistaken.
        kinds: of every field its class, or `np.ndarray` for a vector of floats.

    Raises:
        UnfitPartsError: a field is missing, superfluous, or of another kind.
    """
    values = {**parts.plain, **parts.arrays}
    if set(values) != set(kinds):
        raise UnfitPartsError(
            f"{cls.__name__} has the fields {sorted(kinds)}, and a result has {sorted(values)}."
        )
    for name, kind in kinds.items():
        value = values[name]
        fits = isinstance(value, kind)
        if kind is np.ndarray:
            fits = fits and value.ndim == 1 and value.dtype.kind == "f"
        if not fits:
            raise UnfitPartsError(f"{name} of a result is {type(value).__name__}, and not {kind}.")
    return cls(**values)


def require_array(parts: Parts, name: str, shape: Sequence[int | None], dtype: str) -> np.ndarray:
    """Returns an array by its name.

    Raises:
        UnfitPartsError: it is not there, or has another shape or dtype.
    """
    array = parts.arrays.get(name)
    if array is None or array.shape != tuple(shape) or array.dtype.name != dtype:
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise UnfitPartsError(f"{name} of a result is {found}, and not {dtype} {tuple(shape)}.")
    return array


def numbers_by_name(parts: Parts, name: str) -> dict[str, float]:
    """Returns a mapping from names to numbers.

    Raises:
        UnfitPartsError: it is something else.
    """
    found = parts.plain.get(name)
    if not isinstance(found, dict) or not all(
        isinstance(value, (int, float)) for value in found.values()
    ):
        raise UnfitPartsError(f"{name} of a result is no mapping from names to numbers: {found!r}.")
    return found
