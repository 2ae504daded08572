"""The style figures share, and how one becomes a PNG or an SVG that fits into a page.

SVG is written with the colours of the light scheme and handed out with CSS variables in their
place, so a page in the dark scheme has dark figures. Text stays text, in the page's font.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.layout_engine
import matplotlib.lines
import numpy as np

from leap_tf.experiments.report.methods import Look, colours
from leap_tf.experiments.report.statistics import Curve

INK, MUTED, RULE, SURFACE = "#1d2733", "#66717f", "#d8dee5", "#fdfdfc"
_SCHEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", SURFACE: "--surface"}

_STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": SURFACE,
    "font.size": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": SURFACE,
    "text.parse_math": False,  # a dollar in somebody's name is a dollar
    "svg.fonttype": "none",  # text is text: it is read out, selected, and set in the page's font
    "svg.hashsalt": "leap_tf",  # identifiers are the same every time
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}

WIDTH = 9.2  # inches, of every figure, so that text is the same size in all of them


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures are made and saved in here; Matplotlib's own settings come back afterwards."""
    settings: Any = dict(matplotlib.rcParamsDefault) | _STYLE
    del settings["backend"]  # not a matter of style, and it would not come back
    with matplotlib.rc_context(settings):
        yield


def panels(
    count: int, height: float, titles: Sequence[str], columns: int | None = None
) -> tuple[matplotlib.figure.Figure, list]:
    """Returns a figure of panels, each with its title and a horizontal grid.

    Args:
        count: how many.
        height: of the figure, in inches.
        titles: of the panels.
        columns: how many stand side by side; all by default.
    """
    columns = columns or count
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.05, wspace=0.04)
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout=layout)
    places = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    axes = places[:count]
    for each in places[count:]:
        each.remove()
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title)
        each.grid(axis="y", color=RULE, linewidth=0.7)
        each.set_axisbelow(True)
        each.tick_params(length=0)
    return figure, axes


def draw_curve(axes, curve: Curve, look: Look, markers: bool = False) -> None:
    """Draws a mean with a band of one standard error, and markers where it was measured."""
    if len(curve.runs) > 1:
        axes.fill_between(
            curve.x,
            curve.mean - curve.spread,
            curve.mean + curve.spread,
            color=look.light,
            alpha=0.16,
            linewidth=0,
        )
    crowded = len(curve.x) > 12
    marked = {
        "marker": look.marker,
        "markersize": 3.4 if crowded else 5.5,
        "markeredgecolor": look.light if crowded else SURFACE,
        "markeredgewidth": 0.8,
    }
    axes.plot(
        curve.x,
        curve.mean,
        color=look.light,
        linestyle=look.dash,
        linewidth=look.width,
        solid_capstyle="round",
        **(marked if markers else {}),
    )


def add_legend(
    figure: matplotlib.figure.Figure,
    looks: Sequence[Look],
    columns: int = 4,
    markers: bool = False,
) -> None:
    """Puts one legend of all panels above them; one entry more than columns stays on the line.

    Args:
        figure: what it is put on.
        looks: the entries.
        columns: entries on a line.
        markers: whether marks are drawn as markers and not as lines.
    """
    handles = [
        matplotlib.lines.Line2D(
            [],
            [],
            color=look.light,
            linestyle="none" if markers else look.dash,
            linewidth=look.width,
            marker=look.marker if markers else "none",
            label=look.label,
        )
        for look in looks
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(columns, len(looks) if len(looks) <= columns + 1 else 0),
        handlelength=2.2,
        columnspacing=2.0,
        borderaxespad=0.2,
    )


def spread_out(count: int, width: float) -> np.ndarray:
    """Returns offsets that put `count` dots side by side within a width, around zero."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(1)


def as_png(figure: matplotlib.figure.Figure) -> bytes:
    """Returns a figure as PNG, the same bytes every time."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def as_svg(figure: matplotlib.figure.Figure, name: str, description: str) -> str:
    """Returns a figure as an SVG element for a page, the same text every time.

    Args:
        figure: drawn with the colours of this module and of `methods`.
        name: unlike that of any other figure of the page; identifiers start with it.
        description: for readers who do not see it.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    view = re.search(r'viewBox="[^"]*"', text)
    label = _escaped(description)
    text = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{label}">', text, count=1)  # type: ignore[index]
    return with_variables(text)


def with_variables(svg: str) -> str:
    """Returns SVG with CSS variables in place of the colours that change with the scheme."""
    names: Mapping[str, str] = _SCHEME | {colour: name for colour, (name, *_) in colours().items()}
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var({names[found[0]]})" if found[0] in names else found[0],
        svg,
    )


def _escaped(text):
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
