"""The figures of a report, and how methods look in all of them.

Hues are Okabe and Ito's, earth colours and greys; markers and dashes repeat them for print.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines
import matplotlib.ticker
import numpy as np
import pandas as pd
import PIL.Image

from leap_tf.experiments.run_tables import Estimate

INK, MUTED, RULE = "#1d2733", "#66717f", "#d8dee5"
_STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.linewidth": 0.7, "font.size": 9,
    "axes.spines.right": False, "axes.spines.top": False, "axes.axisbelow": True,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlepad": 8, "axes.titlesize": 10,
    "axes.titleweight": "bold", "grid.color": RULE, "legend.frameon": False,
    "text.parse_math": False, "xtick.color": MUTED, "xtick.major.size": 0, "ytick.color": MUTED,
    "ytick.major.size": 0, "ytick.minor.size": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Look:
    """The label of a method or configuration, and how its marks are drawn (Matplotlib's names)."""

    label: str
    colour: str
    marker: str = "o"
    dash: Any = "-"
    width: float = 1.6


METHODS = {
    "leap": Look("Leap", "#0072b2", "o", width=2.4),
    "reptile": Look("Reptile", "#009e73", "s"),
    "fomaml": Look("FOMAML", "#d98a00", "^"),
    "maml": Look("MAML", "#d55e00", "v"),
    "anil": Look("ANIL", "#b8578f", "D"),
    "metasgd": Look("Meta-SGD", "#4ba3d4", "p"),
    "hat": Look("HAT", "#862512", "P"),
    "progressive": Look("Progressive Nets", "#c4863c", "X"),
    "finetuning": Look("Finetuning", "#555c66", "h"),
    "none": Look("No pretraining", "#8d949e", "o", (0, (4, 2))),
}
RAMP = ("#c3aedd", "#9a7cc2", "#71519f", "#43296b")


def look(method: str, place: int = 0) -> Look:
    """Returns how a method is drawn; an unknown one by its place among others.

    A method at a learning rate, such as "leap_0.2", looks like the method.
    """
    name, _, rate = method.partition("_")
    if known := METHODS.get(name):
        dash = known.dash if place % 2 == 0 else (0, (3, 1.5))  # tells two rates apart
        return (
            dataclasses.replace(known, label=f"{known.label}, {rate}", dash=dash) if rate else known
        )
    return Look(method, f"C{place % 10}", "osD^vphPX*"[place % 10])


def in_order(methods: Iterable[str]) -> list[str]:
    """Returns methods once each: known ones in the order of `METHODS`, then the others by name."""
    places = {name: place for place, name in enumerate(METHODS)}
    last = len(places)
    return sorted(
        set(methods), key=lambda method: (places.get(method.partition("_")[0], last), method)
    )


def save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    """Saves a figure as PNG of 128 colours, the same bytes every time."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=110)
    PIL.Image.open(buffer).convert("RGB").quantize(128).save(path, "PNG", optimize=True)


def bars(rows: Mapping[Look, Estimate], label: str) -> matplotlib.figure.Figure:
    """Draws a bar a row, from the top down, with one standard error and a dot for every seed."""
    with _style():
        figure, (axes,) = _panels([""], 0.75 + 0.34 * len(rows))
        axes.grid(axis="x")
        for place, (of_row, estimate) in enumerate(rows.items()):
            if not (seeds := [*estimate.values.values()]):
                continue
            alpha = 0.9 if of_row.dash == "-" else 0.55
            axes.barh(place, estimate.mean, height=0.62, color=of_row.colour, alpha=alpha)
            axes.errorbar(estimate.mean, place, xerr=estimate.standard_error, color=INK)
            heights = place + _offsets(len(seeds), 0.3)
            axes.plot(seeds, heights, "o", color=INK, markersize=4.5, markeredgecolor="white")
            axes.text(0.995, place, f"{estimate.mean:.1f}", color=INK, fontweight="bold",
                      transform=axes.get_yaxis_transform(), ha="right", va="center")  # fmt: skip
        axes.set_yticks(range(len(rows)), [of_row.label for of_row in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, 1.05 * axes.get_xlim()[1]), xlabel=label)
        axes.spines["left"].set_visible(False)
    return figure


def curves(
    panels: Mapping[str, Mapping[Look, pd.DataFrame]],
    *,
    thin: bool = False,
    logarithmic: bool = False,
    from_zero: bool = True,
    columns: int = 0,
    height: float = 3.8,
) -> matplotlib.figure.Figure:
    """Draws panels of curves, tables of positions × seeds, under one legend.

    Lines are means, bands one standard error; few measurements are marked. `thin` lines show the
    seeds in place of bands, `columns` of panels stand side by side (all by default), and a
    `logarithmic` vertical axis has ticks in per cent.
    """
    with _style():
        figure, axes = _panels(list(panels), height, columns)
        for each, drawn in zip(axes, panels.values()):
            each.grid(axis="y")
            for row, table in drawn.items():
                x, mean, error = table.index, table.mean(axis=1), table.sem(axis=1)
                if thin and table.shape[1] > 1:
                    each.plot(x, table, color=row.colour, lw=0.7, alpha=0.5)
                else:
                    band = {"color": row.colour, "alpha": 0.16, "lw": 0}
                    each.fill_between(x, mean - error, mean + error, **band)
                marker = row.marker if len(table) < 20 else "none"
                each.plot(x, mean, color=row.colour, linestyle=row.dash, linewidth=row.width,
                          marker=marker, markersize=5, markeredgecolor="white")  # fmt: skip
            each.margins(x=0.02)
            ticks = matplotlib.ticker.MaxNLocator(6 - columns, integer=True, steps=[1, 2, 5, 10])
            each.xaxis.set_major_locator(ticks)
            each.set_ylim(bottom=0 if from_zero and not logarithmic else None)
            if logarithmic:
                lowest = min((table.mean(axis=1).min() for table in drawn.values()), default=1.0)
                each.set(yscale="log", ylim=(max(0.8 * lowest, 1e-3), 1.15))
                each.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
                each.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
                each.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        _legend(figure, dict.fromkeys(row for drawn in panels.values() for row in drawn))
    return figure


def ratios(panels: Mapping[str, pd.DataFrame], x_label: str) -> matplotlib.figure.Figure:
    """Draws estimates, rows × methods, as dots with errors; a line marks 1, the last row total."""
    with _style():
        rows = next(iter(panels.values())).index
        figure, axes = _panels(list(panels), 1.0 + 0.46 * len(rows))
        for each, table in zip(axes, panels.values()):
            each.grid(axis="x")
            each.axvline(1.0, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)))
            for place in range(1, len(rows)):
                each.axhline(place - 0.5, lw=0.7, color=MUTED if place == len(rows) - 1 else RULE)
            for method, offset in zip(table, _offsets(table.shape[1], 0.58)):
                style = {"color": look(method).colour, "marker": look(method).marker}
                for place, ratio in enumerate(table[method]):
                    each.errorbar(ratio.mean, place + offset, xerr=ratio.standard_error,
                                  markersize=7, markeredgecolor="white", **style)  # fmt: skip
            each.set_yticks(range(len(rows)), rows if each is axes[0] else [], color=INK)
            each.set(ylim=(len(rows) - 0.5, -0.5), xlabel=x_label)
            each.margins(x=0.06)
            each.spines["left"].set_visible(False)
        _legend(figure, [look(method) for method in table], dots=True)
    return figure


def _style():
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    return matplotlib.rc_context({**defaults, **_STYLE})


def _panels(titles, height, columns=0):
    figure = matplotlib.figure.Figure(figsize=(9.2, height), layout="constrained")
    columns = columns or len(titles)
    places = list(figure.subplots(-(-len(titles) // columns), columns, squeeze=False).flat)
    for title, each in zip(titles, places):
        each.set_title(title)
    for each in places[len(titles) :]:
        each.remove()
    return figure, places[: len(titles)]


def _legend(figure, looks, dots=False):
    handles = [
        matplotlib.lines.Line2D([], [], label=each.label, color=each.colour, lw=each.width,
                                linestyle="none" if dots else each.dash,
                                marker=each.marker if dots else "none")
        for each in looks
    ]  # fmt: skip
    longest = max((len(each.label) for each in looks), default=0)
    columns = min(len(handles), 6) if longest < 20 else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=max(columns, 1),
                  handlelength=2.2, columnspacing=2.0)  # fmt: skip


def _offsets(count, width):
    """Returns offsets around zero that put `count` dots side by side within a width."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(1)
