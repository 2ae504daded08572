"""The figures of the transfer study, each from numbers that are computed already."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
import matplotlib.ticker

from leap_tf.experiments.report.drawing import (
    INK,
    MUTED,
    RULE,
    SURFACE,
    add_legend,
    draw_curve,
    panels,
    spread_out,
    style,
)
from leap_tf.experiments.report.methods import Look
from leap_tf.experiments.report.statistics import Curve, Estimate

_FLOOR = 0.001  # where a logarithmic axis of errors ends at the latest; a running mean can be zero


def relative_to_no_pretraining(
    drawn: Mapping[str, Sequence[tuple[str, Mapping[str, Estimate]]]],
    titles: Mapping[str, str],
    looks: Mapping[str, Look],
) -> matplotlib.figure.Figure:
    """Draws a panel for each measure: a row a data set, in it a dot a method with its error.

    Args:
        drawn: from each measure to its rows, from the top down: a label, and the ratio of every
            method to no pretraining. The last row is set apart.
        titles: from each measure to its panel's title.
        looks: of the methods.
    """
    labels = [label for label, _ in next(iter(drawn.values()))]
    shown = [m for m in looks if any(m in ratios for rows in drawn.values() for _, ratios in rows)]
    height = dict(zip(shown, spread_out(len(shown), 0.58)))
    with style():
        figure, axes = panels(len(drawn), 1.0 + 0.46 * len(labels), [titles[m] for m in drawn])
        for each, rows in zip(axes, drawn.values()):
            each.grid(False)
            each.grid(axis="x", color=RULE, linewidth=0.7)
            each.axvline(1.0, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)))
            for place in range(len(labels) - 1):
                last = place == len(labels) - 2
                each.axhline(place + 0.5, color=MUTED if last else RULE, linewidth=0.7)
            for place, (_, ratios) in enumerate(rows):
                for method, ratio in ratios.items():
                    _dot(each, ratio, place + height[method], looks[method])
            each.set_yticks(range(len(labels)), labels if each is axes[0] else [], color=INK)
            each.set(ylim=(len(labels) - 0.5, -0.5), xlabel="no pretraining = 1")
            each.margins(x=0.06)
            each.spines["left"].set_visible(False)
        add_legend(figure, [looks[method] for method in shown], markers=True)
    return figure


def learning_by_dataset(
    drawn: Mapping[str, Sequence[tuple[Look, Curve]]],
) -> matplotlib.figure.Figure:
    """Draws small multiples: a panel a held-out data set, in it a curve a method.

    Args:
        drawn: from each data set's label to its curves of the training error, in [0, 1].
    """
    columns = 4 if len(drawn) > 3 else max(len(drawn), 1)
    rows = -(-len(drawn) // columns)
    with style():
        figure, axes = panels(len(drawn), 0.6 + 2.2 * rows, list(drawn), columns)
        for place, (each, curves) in enumerate(zip(axes, drawn.values())):
            for look, curve in curves:
                draw_curve(each, curve, look)
            each.margins(x=0.02)
            each.set_yscale("log")
            lowest = min((curve.mean.min() for _, curve in curves), default=1.0)
            each.set_ylim(max(0.8 * lowest, _FLOOR), 1.15)
            each.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            each.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            each.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3, integer=True))
            each.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
            if place >= (rows - 1) * columns:
                each.set_xlabel("gradient step")
        looks = {look.label: look for curves in drawn.values() for look, _ in curves}
        add_legend(figure, list(looks.values()), columns=5)
    return figure


def _dot(axes, ratio, height, look):
    error = ratio.standard_error
    if error is not None:
        ends = [ratio.mean - error, ratio.mean + error]
        axes.plot(ends, [height, height], color=look.light, linewidth=1.4)
    axes.plot(
        ratio.mean,
        height,
        look.marker,
        color=look.light,
        markersize=7,
        markeredgecolor=SURFACE,
        markeredgewidth=0.8,
    )
