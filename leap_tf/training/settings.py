"""Settings as JSON, kept beside a training so that a restart with other ones is seen."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

_PLAIN = (bool, int, float, str, type(None))


def describe(thing: Any) -> Any:
    """Returns the settings of an optimizer, a loss, a learner or a rule, as JSON has them.

    Names of optimizers are left out, since Keras numbers them, and whatever is neither a number, a
    text, a list of them, an optimizer, a loss nor a data class, such as variables.
    """
    if isinstance(thing, _PLAIN):
        return thing
    if _is_list(thing):
        return list(thing)
    kind = {"class": type(thing).__name__}
    if isinstance(thing, (keras.optimizers.Optimizer, keras.losses.Loss)):
        config = {name: value for name, value in thing.get_config().items() if name != "name"}
        return json.loads(json.dumps(kind | config, default=lambda value: type(value).__name__))
    if dataclasses.is_dataclass(thing):
        named = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    else:
        named = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    return kind | {
        name: describe(value)
        for name, value in named.items()
        if isinstance(value, _PLAIN) or _is_list(value) or dataclasses.is_dataclass(value)
    }


def _is_list(thing: Any) -> bool:
    return isinstance(thing, (list, tuple)) and all(isinstance(each, _PLAIN) for each in thing)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each setting that differs, such as "inner.momentum: 0.0 then, 0.9 now".

    Args:
        then, now: what `describe` gave, or mappings of it.
    """
    old, new = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name}: {old.get(name, 'nothing')} then, {new.get(name, 'nothing')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
