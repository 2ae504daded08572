"""Comparison of agents on games: figures, tables and learning curves, of one run or several.

An evaluation writes one file per agent, `evaluation/<n>_updates/<kind>/<game>_seed<start>.json`.
They are read again here, so comparing methods and seeds trains no agent twice. Agents from fresh
encoders and random play are the controls. They are the same in every run, so they are taken from
the first run that has them.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import keras
import matplotlib.figure
import numpy as np
import pandas as pd
import PIL.Image

from leap_tf.atari.environments import ScreenEnvironment
from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.experiments.report.data import Estimate, difference, is_settled, standard_error
from leap_tf.experiments.run_directory import RunDirectoryError, write_atomically

LEARNED, FRESH, RANDOM = "learned", "fresh", "random policy"
CONTROLS = FRESH, RANDOM

Agents = Mapping[str, Sequence[GameEvaluation]]

_LINE_COLOURS = ("#1b6ca8", "#b5651d", "#888888", "#4f7942")


def compare(runs: Sequence[tuple[str, pathlib.Path]], output_dir: pathlib.Path) -> str:
    """Compares evaluated runs.

    Args:
        runs: method and folder of each run. Runs of the same method are pooled. Games and groups
            are those of the first run.
        output_dir: the folder to write.

    Returns:
        The table, as text.

    Raises:
        RunDirectoryError: a folder holds no finished evaluation, or the runs' agents were trained
            for different numbers of updates.
        ValueError: a method has the name of a control.
    """
    for method, path in runs:
        if method in CONTROLS:
            raise ValueError(f"{method!r} is the name of a control. Rename the method of {path}.")
    folders = [(method, _evaluation_folder(path)) for method, path in runs]
    lengths = {folder.name for _, folder in folders}
    if len(lengths) > 1:
        raise RunDirectoryError(
            f"Only agents with equal numbers of updates can be compared, not {sorted(lengths)}."
        )
    first = json.loads((folders[0][1] / "summary.json").read_text())
    agents: dict[str, dict[str, list[GameEvaluation]]] = {}
    for game in {game for games in first["groups"].values() for game in games}:
        kinds: dict[str, list[GameEvaluation]] = {}
        for method, folder in folders:
            kinds.setdefault(method, []).extend(_read_cells(folder, LEARNED, game))
        for control in CONTROLS:
            found = (_read_cells(folder, control, game) for _, folder in folders)
            kinds[control] = next(filter(None, found), [])
        agents[game] = {kind: of_kind for kind, of_kind in kinds.items() if of_kind}
    return write_comparison(agents, first["groups"], output_dir, first["target_scores"])


def write_comparison(
    games: Mapping[str, Agents],
    groups: Mapping[str, Iterable[str]],
    folder: pathlib.Path,
    target_scores: Mapping[str, float],
) -> str:
    """Writes `summary.json`, `summary.md` and a plot for every group, and returns the table.

    Args:
        games: agents of each game.
        groups: names of the games of each group.
        folder: where to write.
        target_scores: for some games, the score of "frames to score".
    """
    figures = {
        group: {game: summarise(games[game], target_scores.get(game)) for game in names}
        for group, names in groups.items()
    }
    text = "\n\n".join([LEGEND, *(as_table(group, of) for group, of in figures.items())])
    record = {"groups": figures, "target_scores": dict(target_scores)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / "summary.md", f"{text}\n")
    for group, names in groups.items():
        path = folder / f"{group.replace(' ', '_')}.png"
        plot_learning_curves({game: games[game] for game in names}, path)
    return text


def cell_file(folder: pathlib.Path, kind: str, game: str, start: int | str) -> pathlib.Path:
    """Returns the file of the agent of one kind, game and start."""
    return folder / kind.replace(" ", "_") / f"{game}_seed{start}.json"


def read_cell(file: pathlib.Path) -> GameEvaluation:
    """Reads the evaluation of one agent."""
    return GameEvaluation.from_record(json.loads(file.read_text()))


def _read_cells(folder, kind, game):
    """Reads all agents of a kind on a game, in the order of their starts."""
    pattern = cell_file(folder, kind, game, "*")
    files = pattern.parent.glob(pattern.name)
    return [read_cell(file) for file in sorted(files, key=lambda f: int(f.stem.split("_seed")[1]))]


def _evaluation_folder(path):
    found = sorted(path.glob("evaluation/*_updates/summary.json"))
    if len(found) != 1:
        raise RunDirectoryError(
            f"{path} has {len(found)} finished evaluations and must have exactly one. Evaluate the "
            "run with bin/atari_evaluate.py."
        )
    return found[0].parent


def summarise(agents: Agents, target_score: float | None = None) -> dict:
    """Returns the figures of one game, for each kind of agent such as "fresh".

    Args:
        agents: the agents of each kind.
        target_score: score of "frames to score"; left out if None.

    Returns:
        For each kind, the `spread` of the area under the clipped reward, of the last quarter's
        reward and of the score; each agent's frames to the mean last quarter of fresh agents; the
        `reward_band`; and the gain in area over fresh agents on the same starts. Rewards are per
        1000 steps of a copy.
    """
    fresh = agents.get(FRESH, ())
    reached = float(np.mean([agent.final_reward() for agent in fresh])) if fresh else None
    figures = {}
    for kind, of_kind in agents.items():
        figure = figures[kind] = {
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
    return figures


def spread(values: Sequence[float | None]) -> dict:
    """Returns mean and standard error of the values that are not None, and the values."""
    present = [float(value) for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "standard_error": standard_error(present),
        "values": list(values),
    }


def reward_band(agents: Sequence[GameEvaluation], points: int = 20) -> dict:
    """Returns frames, mean and standard error of the clipped reward over the agents."""
    points = min(points, agents[0].updates)
    band = mean_curve(agents, [1e3 * curve(agent.rewards, points) for agent in agents]).round(3)
    return {"frames": band.index.tolist(), **band.to_dict("list")}


def mean_curve(agents: Sequence[GameEvaluation], curves: Sequence[np.ndarray]) -> pd.DataFrame:
    """Returns mean and standard error of one curve per agent, by frames. NaNs are left out."""
    table = pd.DataFrame(curves)
    parts = len(table.columns)
    table.columns = [round(agents[0].frames * (part + 0.5) / parts) for part in range(parts)]
    return pd.DataFrame({"mean": table.mean(), "standard_error": table.sem().fillna(0.0)})


def _areas(agents):
    """Returns the area of each start, a mean if several agents have the same start."""
    starts: dict[str, list[float]] = {}
    for agent in agents:
        starts.setdefault(str(agent.seed), []).append(agent.area_under_reward)
    return Estimate({seed: float(np.mean(areas)) for seed, areas in starts.items()})


LEGEND = (
    "Clipped reward per 1000 steps, over the whole run and over its last quarter; score of the "
    "last quarter of games that ended. Mean ± standard error over the agents, whose number is in "
    'brackets. "Above fresh" is over pairs on the same starts; * where all pairs agree in sign and '
    "zero is outside the 95 % interval of Student's t."
)


def as_table(group: str, games: Mapping[str, Mapping[str, dict]]) -> str:
    """Formats a group of games as a Markdown table, given `summarise` of each game."""
    lines = [
        f"**{group}**",
        "",
        "| game | agent | reward | above fresh | last quarter | score | frames to fresh's last "
        "quarter | frames to score |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for game, figures in games.items():
        for kind, figure in figures.items():
            cells = [
                game,
                f"{kind} ({len(figure['area']['values'])})",
                _text(figure["area"]),
                _text(figure.get("gain"), "+.1f") + "*" * figure.get("gain_is_settled", False),
                _text(figure["final_reward"]),
                _text(figure["score"]),
                _reached(figure, "reward"),
                _reached(figure, "score"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(figure, form=".1f"):
    if not figure or figure["mean"] is None:
        return "–"
    error = figure["standard_error"]
    return f"{figure['mean']:{form}}" + ("" if error is None else f" ± {error:.1f}")


def _reached(figure, quantity):
    if f"target_{quantity}" not in figure:
        return "–"
    frames = figure[f"frames_to_{quantity}"]
    reached = [count for count in frames if count is not None]
    share = f"({len(reached)} of {len(frames)} reach {figure[f'target_{quantity}']:.4g})"
    return f"{np.mean(reached):,.0f} {share}" if reached else share


def plot_learning_curves(games: Mapping[str, Agents], path: pathlib.Path) -> None:
    """Plots the clipped reward and, below it, the score of finished games over frames, as a PNG.

    Lines are means over the agents of each game, bands are one standard error.
    """
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(games), 6.4), layout="constrained")
    axes = figure.subplots(2, len(games), squeeze=False)
    for (game, evaluations), reward, score in zip(games.items(), *axes):
        for colour, (name, agents) in zip(_LINE_COLOURS, evaluations.items()):
            scores = mean_curve(agents, [agent.score_curve(points=10) for agent in agents])
            rewards = pd.DataFrame(reward_band(agents)).set_index("frames")
            for each, band in ((reward, rewards), (score, scores.dropna())):
                low, high = (band["mean"] + sign * band["standard_error"] for sign in (-1, 1))
                each.plot(band["mean"], color=colour, label=name)
                each.fill_between(band.index, low, high, color=colour, alpha=0.2, linewidth=0)
        reward.set(title=game, ylabel="clipped reward per 1000 steps")
        score.set(xlabel="frames", ylabel="score")
        for each in (reward, score):
            each.spines[["top", "right"]].set_visible(False)
            each.grid(axis="y", alpha=0.3)
            each.locator_params(axis="x", nbins=5)
    axes[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def save_frame_strip(
    agent: keras.Model, environment: ScreenEnvironment, path: pathlib.Path
) -> None:
    """Plays with an agent and saves eight screens of the first copy, 25 steps apart, side by side.

    Args:
        agent: built by `actor_critic`; its actions are drawn from its policy.
        environment: the environment, which is reset first.
        path: the PNG file to write.
    """
    random = np.random.default_rng(0)
    time_step = environment.reset()
    strip = []
    for step in range(7 * 25 + 1):
        if step % 25 == 0:
            strip.append(np.asarray(time_step.observation[0]))
        logits = agent(time_step.observation.astype(np.float32))[0].numpy()
        time_step = environment.step(np.argmax(logits + random.gumbel(size=logits.shape), axis=-1))
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.concatenate(strip, axis=1)).save(path)
