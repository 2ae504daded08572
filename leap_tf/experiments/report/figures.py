"""The report's figures, each from numbers that are computed already."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np

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

Drawn = Sequence[tuple[Look, Curve]]


def errors_as_bars(rows: Sequence[tuple[Look, Estimate]], label: str) -> matplotlib.figure.Figure:
    """Draws a bar a row, from the top down, with one standard error and a dot for every seed.

    Args:
        rows: what to draw; rows without a value keep their place.
        label: of the horizontal axis.
    """
    with style():
        figure, (axes,) = panels(1, 0.75 + 0.34 * len(rows), [""])
        axes.grid(False)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        furthest = 0.0
        for place, (look, estimate) in enumerate(rows):
            values = list(estimate.values.values())
            if not values:
                axes.text(0, place, " no value", va="center", color=MUTED)
                continue
            hatched = look.dash != "-"
            axes.barh(
                place,
                estimate.mean,
                height=0.62,
                color=look.light,
                alpha=0.55 if hatched else 0.9,
                linewidth=0,
            )
            error = estimate.standard_error or 0.0
            axes.plot(
                [estimate.mean - error, estimate.mean + error],
                [place, place],
                color=INK,
                linewidth=1.3,
            )
            axes.plot(
                values,
                place + spread_out(len(values), 0.3),
                "o",
                color=INK,
                markersize=4.2,
                markeredgecolor=SURFACE,
                markeredgewidth=0.8,
                linestyle="none",
            )
            furthest = max(furthest, estimate.mean + error, *values)
            axes.text(
                0.995,
                place,
                f"{estimate.mean:.1f}",
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                color=INK,
                fontweight="bold",
            )
        axes.set_yticks(range(len(rows)), [look.label for look, _ in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, 1.1 * furthest or 1), xlabel=label)
        axes.spines["left"].set_visible(False)
    return figure


def errors_over_alphabets(ours: Drawn, theirs: Drawn) -> matplotlib.figure.Figure:
    """Draws error against pretraining alphabets: ours with bands, beside the paper's."""
    with style():
        figure, axes = panels(
            2, 3.7, ["This study", "The paper (other protocol, budget and scale)"]
        )
        for each, drawn in zip(axes, (ours, theirs)):
            last = max((curve.x[-1] for _, curve in drawn), default=1)
            for look, curve in drawn:
                draw_curve(each, curve, look, markers=True)
            measured = sorted({int(x) for _, curve in drawn for x in curve.x})
            each.set_xticks(measured if len(measured) <= 8 else range(0, measured[-1] + 1, 5))
            each.set(xlabel="pretraining alphabets", ylim=(0, None), xlim=(0, 1.04 * last))
            each.set_ylabel("held-out error, %")
        add_legend(figure, [look for look, _ in ours])
    return figure


def training_curves(
    left: Drawn, right: Drawn, titles: Sequence[str], x_label: str, points: bool = False
) -> matplotlib.figure.Figure:
    """Draws two panels of curves under one legend.

    Args:
        left, right: what they show.
        titles: of the panels.
        x_label: of both.
        points: whether the right one is of few measurements, marked each.
    """
    with style():
        figure, axes = panels(2, 3.9, titles)
        for each, drawn, markers in zip(axes, (left, right), (False, points)):
            for look, curve in drawn:
                draw_curve(each, curve, look, markers)
            each.set(xlabel=x_label, ylim=(0, None))
            each.margins(x=0.02)
        shown = {look.label: look for look, _ in [*left, *right]}
        add_legend(figure, list(shown.values()))
    return figure


def loss_curves(drawn: Drawn) -> matplotlib.figure.Figure:
    """Draws training losses over meta-steps in one wide panel."""
    with style():
        figure, (axes,) = panels(1, 4.2, ["Mean training loss along the paths"])
        for look, curve in drawn:
            draw_curve(axes, curve, look)
        axes.set(xlabel="meta-step")
        axes.margins(x=0.01)
        add_legend(figure, [look for look, _ in drawn], columns=2)
    return figure


def path_curves(drawn: Mapping[str, Drawn], titles: Mapping[str, str]) -> matplotlib.figure.Figure:
    """Draws a panel for each metric over meta-steps: the seeds thin, their mean with markers.

    Args:
        drawn: from each metric to what its panel shows.
        titles: from each metric to its panel's title.
    """
    with style():
        figure, axes = panels(len(drawn), 3.6, [titles[name] for name in drawn])
        for each, curves in zip(axes, drawn.values()):
            for look, curve in curves:
                for run in curve.runs if len(curve.runs) > 1 else ():
                    each.plot(curve.x, run, color=look.light, linewidth=0.7, alpha=0.5)
                draw_curve(each, curve, look, markers=True)
            each.set(xlabel="meta-step", ylim=(0, None))
        shown = {look.label: look for curves in drawn.values() for look, _ in curves}
        add_legend(figure, list(shown.values()))
    return figure


def jacobian_precision(
    drawn: Sequence[tuple[Look, np.ndarray, np.ndarray]],
) -> matplotlib.figure.Figure:
    """Draws ρ over gradient steps: tasks thin, their mean with markers.

    Args:
        drawn: of each learning rate its look, [K] steps and [tasks, K] ρ, NaN where not finite.
    """
    with style():
        figure, (axes,) = panels(1, 3.7, ["ρ = ‖I − J‖₁ / ‖J‖₁"])
        for look, steps, rho in drawn:
            axes.plot(steps, rho.T, color=look.light, linewidth=0.7, alpha=0.5)
            finite = np.isfinite(rho).any(axis=0)
            axes.plot(
                steps[finite],
                np.nanmean(rho[:, finite], axis=0),
                color=look.light,
                linewidth=2.2,
                marker=look.marker,
                markersize=6,
                markeredgecolor=SURFACE,
                markeredgewidth=0.8,
            )
        steps = drawn[0][1]
        axes.set(xlabel="gradient steps", ylim=(0, None), xticks=steps)
        add_legend(figure, [look for look, *_ in drawn])
    return figure
