"""How methods and configurations are named and drawn: the same everywhere in a report.

Meta-learners have the hues of Okabe and Ito's palette, which colour-blind readers can tell apart;
learners of one task after another have a dark and a pale earth, apart from those they are compared
with by hue and lightness; baselines are grey. Markers and dashes say the same once more, for print.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Look:
    """A name and how its marks are drawn.

    Attributes:
        key: identifies it, also as a CSS variable.
        label: as readers see it.
        light, dark: its colour on a light and on a dark page.
        marker, dash: Matplotlib's.
        width: of lines, in points.
    """

    key: str
    label: str
    light: str
    dark: str
    marker: str = "o"
    dash: Any = "-"
    width: float = 1.6


_METHODS = (
    Look("leap", "Leap", "#0072b2", "#4aa8e0", "o", width=2.4),
    Look("reptile", "Reptile", "#009e73", "#2fc59b", "s"),
    Look("fomaml", "FOMAML", "#d98a00", "#f0b03f", "^"),
    Look("maml", "MAML", "#d55e00", "#f3813a", "v"),
    Look("anil", "ANIL", "#b8578f", "#dd8fbd", "D"),
    Look("metasgd", "Meta-SGD", "#4ba3d4", "#8fcdf2", "p"),
    Look("hat", "HAT", "#862512", "#d65f45", "P"),
    Look("progressive", "Progressive Nets", "#c4863c", "#ecca8a", "X"),
    Look("finetuning", "Finetuning", "#555c66", "#b4bac4", "h"),
    Look("none", "No pretraining", "#8d949e", "#868d98", "o", (0, (4, 2))),
)
METHODS: Mapping[str, Look] = {look.key: look for look in _METHODS}

# For methods of later days: any order of arrival gives the same colours, by name.
_SPARE = (("#7a5195", "#b793d6"), ("#6b8e23", "#a9c95f"), ("#8b5a2b", "#c9986a"))

_RAMP = (
    ("#c3aedd", "#6f55a0"), ("#9a7cc2", "#8f74c4"), ("#71519f", "#b29ae0"), ("#43296b", "#d9cbf5"),
)  # fmt: skip

_ABLATION = {  # path length is Leap's blue, energy amber; without the loss they are paler
    ("length", "loss"): ("#0073b3", "#4ba9e1"),
    ("length", "noloss"): ("#79b4da", "#2f6f9d"),
    ("energy", "loss"): ("#b36b00", "#eba53d"),
    ("energy", "noloss"): ("#dfb069", "#94652a"),
}


def method_look(key: str, others: Iterable[str] = ()) -> Look:
    """Returns how a method is drawn, also one that is not known.

    Args:
        key: the method, as sweeps name it.
        others: all methods of the report, so that unknown ones differ from each other.
    """
    if key in METHODS:
        return METHODS[key]
    unknown = sorted({key, *others} - set(METHODS))
    light, dark = _SPARE[unknown.index(key) % len(_SPARE)]
    return Look(key, key, light, dark, "*")


def in_order(keys: Iterable[str]) -> list[str]:
    """Returns methods once each: known ones in the order of a report, then the others by name."""
    present = set(keys)
    return [key for key in METHODS if key in present] + sorted(present - set(METHODS))


def ablation_look(distance: str, loss: str, stabilizer: str) -> Look:
    """Returns how a configuration of Leap is drawn: hue by distance and loss, dashes without
    the stabilizer."""
    light, dark = _ABLATION.get((distance, loss), _SPARE[0])
    label = " · ".join(
        [
            distance,
            {"loss": "with loss", "noloss": "no loss"}.get(loss, loss),
            {"stab": "stabilizer", "nostab": "no stabilizer"}.get(stabilizer, stabilizer),
        ]
    )
    dash = (0, (3, 1.5)) if stabilizer == "nostab" else "-"
    return Look(f"{distance}-{loss}", label, light, dark, dash=dash)


def rate_look(index: int, count: int, label: str) -> Look:
    """Returns how the index-th of several ordered settings is drawn: a ramp from pale to dark."""
    position = round(index * (len(_RAMP) - 1) / max(count - 1, 1)) if count > 1 else 2
    light, dark = _RAMP[position]
    return Look(f"ramp{position}", label, light, dark, "osD^"[position])


def colours() -> dict[str, tuple[str, str, str]]:
    """Returns from each colour that looks can have to its CSS variable, light and dark value."""
    pairs = {f"method-{look.key}": (look.light, look.dark) for look in _METHODS}
    pairs |= {f"spare-{index}": pair for index, pair in enumerate(_SPARE)}
    pairs |= {f"ramp-{index}": pair for index, pair in enumerate(_RAMP)}
    pairs |= {f"{distance}-{loss}": pair for (distance, loss), pair in _ABLATION.items()}
    return {light: (f"--{name}", light, dark) for name, (light, dark) in pairs.items()}
