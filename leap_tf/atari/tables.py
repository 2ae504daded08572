"""Figures of agents on a game, held against agents with a fresh encoder, and the table of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.experiments.plots import standard_error
from leap_tf.experiments.report.statistics import Estimate, difference, is_settled

LEARNED, FRESH, RANDOM = "learned", "fresh", "random policy"
CONTROLS = FRESH, RANDOM
POINTS = 20

Agents = Mapping[str, Sequence[GameEvaluation]]


def summarise(agents: Agents, target_score: float | None = None) -> dict:
    """Returns figures of one game, for each kind of agent.

    Args:
        agents: from a kind, such as "fresh", to its agents.
        target_score: for "frames to score"; left out if None.

    Returns:
        For each kind: mean and standard error over the agents, and each agent's own figure, of
        the area under the clipped reward, the last quarter's reward, the score, and the frames to
        the mean last quarter of fresh agents; the curve of means and errors; and by how much the
        area is above that of fresh agents on the same starts. Rewards are per 1000 steps of a copy.
    """
    fresh = agents.get(FRESH, ())
    reached = float(np.mean([agent.final_reward() for agent in fresh])) if fresh else None
    figures = {}
    for kind, of_kind in agents.items():
        figure = {
            "area": spread([agent.area_under_reward for agent in of_kind]),
            "final_reward": spread([agent.final_reward() for agent in of_kind]),
            "score": spread([agent.score for agent in of_kind]),
            "frames": of_kind[0].frames,
            "curve": reward_band(of_kind),
        }
        if reached is not None:
            figure["target_reward"] = round(reached, 3)
            figure["frames_to_reward"] = [agent.frames_to_reward(reached) for agent in of_kind]
            if kind != FRESH:
                gain = difference(_areas(of_kind), _areas(fresh))
                figure["gain"] = spread(list(gain.values.values()))
                figure["gain_is_settled"] = is_settled(gain)
        if target_score is not None:
            figure["target_score"] = target_score
            figure["frames_to_score"] = [agent.frames_to_score(target_score) for agent in of_kind]
        figures[kind] = figure
    return figures


def spread(values: Sequence[float | None]) -> dict:
    """Returns mean, standard error and the values themselves; None where there are none."""
    present = [float(value) for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "standard_error": standard_error(present),
        "values": list(values),
    }


def reward_band(agents: Sequence[GameEvaluation], points: int = POINTS) -> dict:
    """Returns frames, mean and standard error of the clipped reward over the agents."""
    points = min(points, agents[0].updates)
    curves = 1e3 * np.stack([curve(agent.rewards, points) for agent in agents])
    errors = [standard_error(values) or 0.0 for values in curves.T]
    return {
        "frames": [round(agents[0].frames * (point + 0.5) / points) for point in range(points)],
        "mean": curves.mean(axis=0).round(3).tolist(),
        "standard_error": np.round(errors, 3).tolist(),
    }


def as_table(group: str, games: Mapping[str, Mapping[str, dict]]) -> str:
    """Formats a group of games as a Markdown table.

    Args:
        group: its name.
        games: from a game to what `summarise` gives.
    """
    lines = [
        f"**{group}**",
        "",
        "| game | agent | reward | above fresh | last quarter | score | frames to fresh's last "
        "quarter | frames to score |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for game, figures in games.items():
        for kind, figure in figures.items():
            agents = len(figure["area"]["values"])
            cells = [
                _text(figure["area"]),
                _gain(figure),
                _text(figure["final_reward"]),
                _text(figure["score"]),
                _reached(figure, "reward"),
                _reached(figure, "score"),
            ]
            lines.append(f"| {game} | {kind} ({agents}) | {' | '.join(cells)} |")
    return "\n".join(lines)


LEGEND = (
    "Clipped reward per 1000 steps, over the whole visit and over its last quarter; score of the "
    "last quarter of games that ended. Mean ± standard error over the agents, whose number is in "
    'brackets. "Above fresh" is over pairs on the same starts; * where all pairs agree in sign and '
    "zero is outside the 95 % interval of Student's t."
)


def _areas(agents):
    """The area on each start, the mean if several agents played it."""
    starts: dict[str, list[float]] = {}
    for agent in agents:
        starts.setdefault(str(agent.seed), []).append(agent.area_under_reward)
    return Estimate({seed: float(np.mean(areas)) for seed, areas in starts.items()})


def _text(figure, form="{:.1f}"):
    if figure["mean"] is None:
        return "–"
    error = figure["standard_error"]
    return form.format(figure["mean"]) + ("" if error is None else f" ± {error:.1f}")


def _gain(figure):
    if "gain" not in figure:
        return "–"
    return _text(figure["gain"], "{:+.1f}") + ("*" if figure["gain_is_settled"] else "")


def _reached(figure, what):
    if f"target_{what}" not in figure:
        return "–"
    frames = figure[f"frames_to_{what}"]
    reached = [count for count in frames if count is not None]
    share = f"{len(reached)} of {len(frames)} reach {figure[f'target_{what}']:.4g}"
    return f"{np.mean(reached):,.0f} ({share})" if reached else f"({share})"
