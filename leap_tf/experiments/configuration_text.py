"""A whole configuration as text, as `read_configuration` returns it, and what its bindings are."""

import re


def bindings_of(text: str) -> dict[str, str]:
    """Returns every binding, from name to value as text on one line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = re.split(r"^([\w/.]+) =", "\n".join(lines), flags=re.MULTILINE)[1:]
    return {name: " ".join(value.split()) for name, value in zip(found[::2], found[1::2])}


def changed_bindings(then: str, now: str) -> dict[str, str]:
    """Returns what one configuration binds otherwise than another, from name to value as text."""
    old, new = bindings_of(then), bindings_of(now)
    return {
        name: new.get(name, "nothing")
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }
