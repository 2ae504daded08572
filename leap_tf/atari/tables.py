"""Means over seeds, and the table that people read."""

from collections.abc import Mapping, Sequence

import numpy as np

from leap_tf.atari.evaluation import GameEvaluation, curve

POINTS = 20


def summarise(
    evaluations: Mapping[str, Sequence[GameEvaluation]], target_score: float | None = None
) -> dict:
    """Returns figures of one game for each initialization.

    Args:
        evaluations: from the initialization's name to the agents that started from it.
        target_score: for "frames to reach it"; left out if None.

    Returns:
        For each name: mean and standard error over the agents, and each agent's own figure, of
        the area under the clipped reward, the last quarter's reward and the score; the curve of
        means and errors. Rewards are per 1000 steps of a copy.
    """
    return {
        name: {
            "area": spread([agent.area_under_reward for agent in agents]),
            "final_reward": spread([agent.final_reward() for agent in agents]),
            "score": spread([agent.score for agent in agents]),
            "frames": agents[0].frames,
            "curve": reward_band(agents),
        }
        | (
            {}
            if target_score is None
            else {
                "target_score": target_score,
                "frames_to_score": [agent.frames_to_score(target_score) for agent in agents],
            }
        )
        for name, agents in evaluations.items()
    }


def spread(values: Sequence[float | None]) -> dict:
    """Returns mean, standard error and the values themselves; None where there are none."""
    present = [float(value) for value in values if value is not None]
    error = float(np.std(present, ddof=1) / np.sqrt(len(present))) if len(present) > 1 else None
    return {
        "mean": float(np.mean(present)) if present else None,
        "standard_error": error,
        "values": list(values),
    }


def reward_band(agents: Sequence[GameEvaluation], points: int = POINTS) -> dict:
    """Returns frames, mean and standard error of the clipped reward over the agents."""
    points = min(points, agents[0].updates)
    curves = 1e3 * np.stack([curve(agent.rewards, points) for agent in agents])
    errors = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * curves[0]
    return {
        "frames": [round(agents[0].frames * (point + 0.5) / points) for point in range(points)],
        "mean": curves.mean(axis=0).round(3).tolist(),
        "standard_error": errors.round(3).tolist(),
    }


def as_table(group: str, games: Mapping[str, Mapping[str, dict]], seeds: int, updates: int) -> str:
    """Formats a group of games as a Markdown table, mean ± standard error over seeds."""
    lines = [
        f"**{group}**, {seeds} seeds, {updates} updates each; clipped reward per 1000 steps over "
        "the whole visit and over its last quarter, score of the last quarter of games",
        "",
        "| game | agent | reward | last quarter | score | frames to score |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for game, figures in games.items():
        for name, figure in figures.items():
            cells = [_text(figure[key]) for key in ("area", "final_reward", "score")]
            lines.append(f"| {game} | {name} | {' | '.join(cells)} | {_reached(figure)} |")
    return "\n".join(lines)


def _text(figure):
    if figure["mean"] is None:
        return "–"
    error = figure["standard_error"]
    return f"{figure['mean']:.1f}" + ("" if error is None else f" ± {error:.1f}")


def _reached(figure):
    if "target_score" not in figure:
        return "–"
    reached = [frames for frames in figure["frames_to_score"] if frames is not None]
    share = f"{len(reached)} of {len(figure['frames_to_score'])}"
    mean = f"{np.mean(reached):,.0f} " if reached else ""
    return f"{mean}({share} reach {figure['target_score']:g})"
