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
import numpy as np
import pandas as pd
import PIL.Image

from leap_tf.atari.environments import ScreenEnvironment
from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.experiments.report import figures
from leap_tf.experiments.run_directory import RunDirectoryError
from leap_tf.experiments.run_tables import Estimate, difference, is_settled, standard_error
from leap_tf.serialization import write_atomically

LEARNED, FRESH, RANDOM = KINDS = "learned", "fresh", "random policy"
CONTROLS = FRESH, RANDOM

Agents = Mapping[str, Sequence[GameEvaluation]]


def compare(runs: Sequence[tuple[str, pathlib.Path]], output_dir: pathlib.Path) -> str:
    """Compares evaluated runs, given as method and folder, and returns the table as text.

    Runs of the same method are pooled. Games and groups are those of the first run.

    Raises:
        RunDirectoryError: a folder holds no finished evaluation, or the runs' agents were trained
            for different numbers of updates.
        ValueError: a method has the name of a control, or a run is given twice.
    """
    for method, path in runs:
        if method in CONTROLS:
            raise ValueError(f"{method!r} is the name of a control. Rename the method of {path}.")
    folders = [(method, _evaluation_folder(path)) for method, path in runs]
    if len({folder.resolve() for _, folder in folders}) < len(folders):
        raise ValueError("A run is given twice. Its agents would count twice.")
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

    Groups are lists of games. `target_scores` are the scores of "frames to score".
    """
    summaries = {
        group: {game: summarise(games[game], target_scores.get(game)) for game in names}
        for group, names in groups.items()
    }
    text = "\n\n".join([LEGEND, *(as_table(group, of) for group, of in summaries.items())])
    record = {"groups": summaries, "target_scores": dict(target_scores)}
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

    They are the `spread` of the area under the clipped reward, of the last quarter's reward and of
    the score; each agent's frames to the mean last quarter of fresh agents, and to the target score
    if there is one; mean and standard error of `reward_curves`; and the gain in area over fresh
    agents on the same starts. Rewards are per 1000 steps of a copy.
    """
    fresh = agents.get(FRESH, ())
    reached = float(np.mean([agent.final_reward() for agent in fresh])) if fresh else None
    summary = {}
    for kind, of_kind in agents.items():
        curves = reward_curves(of_kind)
        figure = summary[kind] = {
            "area": spread([agent.area_under_reward for agent in of_kind]),
            "final_reward": spread([agent.final_reward() for agent in of_kind]),
            "score": spread([agent.score for agent in of_kind]),
            "frames": of_kind[0].frames,
            "curve": {
                "frames": curves.index.tolist(),
                "mean": curves.mean(axis=1).round(3).tolist(),
                "standard_error": curves.sem(axis=1).fillna(0.0).round(3).tolist(),
            },
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
    return summary


def spread(values: Sequence[float | None]) -> dict:
    """Returns mean and standard error of the values that are not None, and the values."""
    present = [float(value) for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "standard_error": standard_error(present),
        "values": list(values),
    }


def reward_curves(agents: Sequence[GameEvaluation], points: int = 20) -> pd.DataFrame:
    """Returns the clipped reward per 1000 steps over frames: a column an agent."""
    points = min(points, agents[0].updates)
    return _over_frames(agents, [1e3 * curve(agent.rewards, points) for agent in agents])


def score_curves(agents: Sequence[GameEvaluation], points: int = 10) -> pd.DataFrame:
    """Returns the score of games over the frames where one finished: a column an agent."""
    return _over_frames(agents, [agent.score_curve(points) for agent in agents]).dropna(how="all")


def _over_frames(agents, curves):
    """Returns a table of curves, by the number of frames in the middle of each part."""
    table = pd.DataFrame(curves).T
    parts = len(table)
    return table.set_axis([round(agents[0].frames * (part + 0.5) / parts) for part in range(parts)])


def _areas(agents):
    """Returns the area of each start, a mean if several agents have the same start."""
    starts = [str(agent.seed) for agent in agents]
    areas = pd.Series([agent.area_under_reward for agent in agents], starts)
    return Estimate(areas.groupby(level=0, sort=False).mean().to_dict())


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
    for game, summary in games.items():
        for kind, figure in summary.items():
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
    """Plots the clipped reward and the score of finished games over frames as a PNG, a row a game.

    Lines are means over the agents of each game, bands are one standard error.
    """
    panels = {}
    for game, agents in games.items():
        looks = {kind: figures.look(kind, place) for place, kind in enumerate(agents)}
        for title, curves in (("reward per 1000 steps", reward_curves), ("score", score_curves)):
            drawn = {looks[kind]: curves(of_kind) for kind, of_kind in agents.items()}
            panels[f"{game}: {title} over frames"] = drawn
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = figures.curves(panels, from_zero=False, columns=2, height=0.6 + 3.2 * len(games))
    figures.save(figure, path)


def save_frame_strip(
    agent: keras.Model, environment: ScreenEnvironment, path: pathlib.Path
) -> None:
    """Plays with an agent and saves eight screens of the first copy, 25 steps apart, side by side.

    The environment is reset first. Actions are drawn from the agent's policy.
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
