"""Comparison of agents on games: figures, tables and learning curves, of one run or several.

An evaluation writes one file per agent, `evaluation/<n>_updates/<kind>/<game>_seed<start>.json`.
They are read again here, so comparing methods and seeds trains no agent twice. Agents from fresh
encoders and random play are the controls. They are the same in every run, so they are taken from
the first run that has them.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import pandas as pd
import PIL.Image

from leap_tf.atari.environments import ScreenEnvironment
from leap_tf.atari.evaluation import GameEvaluation, curve
from leap_tf.experiments.report import figures
from leap_tf.experiments.run_directory import RunDirectory, RunDirectoryError, changed_bindings
from leap_tf.experiments.run_tables import Estimate, difference, is_settled, standard_error
from leap_tf.serialization import write_atomically

LEARNED, FRESH, RANDOM = KINDS = "learned", "fresh", "random policy"
CONTROLS = FRESH, RANDOM

Runs = Sequence[Sequence[GameEvaluation]]  # the agents of each run
Agents = Mapping[str, Runs]  # of each kind

# Settings of single agents. The others are those of meta-training.
_OF_AGENTS = re.compile(
    r"AtariProblem\.(unroll|value_gain|inner_optimizer|loss|environment_pool)$|inner/|RMSProp\.|"
    r"ActorCriticLoss\.|EnvironmentPool\.|\w+Environment\.(?!emulator_threads)"
)


def compare(runs: Sequence[tuple[str, pathlib.Path]], output_dir: pathlib.Path) -> str:
    """Compares evaluated runs, given as method and folder, and returns the table as text.

    Games and groups are those of the first run. If the runs share evaluations of several numbers of
    updates, the longest are compared.

    Raises:
        RunDirectoryError: the runs share no finished evaluation with equal numbers of updates, or
            settings of their agents differ.
        ValueError: a method has the name of a control, or a run is given twice.
    """
    for method, path in runs:
        if method in CONTROLS:
            raise ValueError(f"{method!r} is the name of a control. Rename the method of {path}.")
    if len({path.resolve() for _, path in runs}) < len(runs):
        raise ValueError("A run is given twice. Its agents would count twice.")
    evaluation = _shared_evaluation([path for _, path in runs])
    folders = [(method, path / "evaluation" / evaluation) for method, path in runs]
    first = json.loads((folders[0][1] / "summary.json").read_text())
    agents: dict[str, dict[str, list[list[GameEvaluation]]]] = {}
    for game in {game for games in first["groups"].values() for game in games}:
        kinds: dict[str, list[list[GameEvaluation]]] = {}
        for method, folder in folders:
            kinds.setdefault(method, []).append(_read_cells(folder, LEARNED, game))
        for control in CONTROLS:
            found = [_read_cells(folder, control, game) for _, folder in folders]
            kinds[control] = [each for each in found if each][:1]
        present = {kind: [run for run in of_kind if run] for kind, of_kind in kinds.items()}
        agents[game] = {kind: of_kind for kind, of_kind in present.items() if of_kind}
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


def _shared_evaluation(paths):
    """Returns the name of the longest evaluation that all runs have, and checks their settings."""
    finished = {
        str(path): {file.parent.name for file in path.glob("evaluation/*_updates/summary.json")}
        for path in paths
    }
    shared = set.intersection(*finished.values())
    if not shared:
        found = "; ".join(f"{path} has {sorted(of) or 'none'}" for path, of in finished.items())
        raise RunDirectoryError(
            f"The runs share no finished evaluation: {found}. Evaluate them with equal numbers of "
            "updates, with bin/atari_evaluate.py."
        )
    first, *others = [RunDirectory(path).require_config() for path in paths]
    for other in others:
        changed = changed_bindings(first.read_text(), other.read_text())
        if different := {name: of for name, of in changed.items() if _OF_AGENTS.match(name)}:
            raise RunDirectoryError(
                f"Agents of {other.parent} have other settings than those of {first.parent}: "
                f"{different}. Only agents of equal settings can be compared."
            )
    return max(shared, key=lambda name: int(name.partition("_")[0]))


def summarise(agents: Agents, target_score: float | None = None) -> dict:
    """Returns the figures of one game, for each kind of agent such as "fresh".

    They are the `spread` of area, last quarter and score, over runs if there are several, otherwise
    over agents; `reward_curves`; the gain in area over fresh agents on the same starts; and each
    agent's frames to the target score, if any. Rewards are per 1000 steps of a copy.
    """
    summary = {}
    for kind, of_kind in agents.items():
        curves = reward_curves(of_kind)
        units = _units(of_kind)
        scored = all(agent.score is not None for run in of_kind for agent in run)
        figure = summary[kind] = {
            "agents": [len(run) for run in of_kind],
            "area": spread([_mean(unit, "area_under_reward") for unit in units]),
            "final_reward": spread([_mean(unit, "final_reward") for unit in units]),
            "score": spread([_mean(unit, "score") for unit in units] if scored else []),
            "frames": of_kind[0][0].frames,
            "curve": {
                "frames": curves.index.tolist(),
                "mean": curves.mean(axis=1).round(3).tolist(),
                "standard_error": curves.sem(axis=1).fillna(0.0).round(3).tolist(),
            },
        }
        if FRESH in agents and kind != FRESH:
            fresh = _areas(agents[FRESH][0])
            gains = [difference(_areas(run), fresh) for run in of_kind]
            several = {str(number): gain.mean for number, gain in enumerate(gains) if gain.values}
            gain = gains[0] if len(gains) == 1 else Estimate(several)
            figure["gain"] = spread(list(gain.values.values()))
            figure["gain_is_settled"] = is_settled(gain) and (kind == RANDOM or len(gains) > 1)
        if target_score is not None:
            figure["target_score"] = target_score
            figure["frames_to_score"] = [
                agent.frames_to_score(target_score) for run in of_kind for agent in run
            ]
    return summary


def spread(values: Sequence[float]) -> dict:
    """Returns mean and standard error of the values, and the values; the mean of none is None."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "standard_error": standard_error(values),
        "values": list(values),
    }


def reward_curves(runs: Runs, points: int = 20) -> pd.DataFrame:
    """Returns the clipped reward per 1000 steps over frames.

    A column is the mean of a run if there are several, otherwise an agent.
    """
    points = min(points, runs[0][0].updates)
    return _over_frames(runs, lambda agent: 1e3 * curve(agent.rewards, points))


def score_curves(runs: Runs, points: int = 10) -> pd.DataFrame:
    """Returns the score of games over the frames where one finished; columns as `reward_curves`."""
    return _over_frames(runs, lambda agent: agent.score_curve(points)).dropna(how="all")


def _over_frames(runs, curve_of):
    """Returns a table of curves, by the number of frames in the middle of each part."""
    units = [pd.DataFrame(map(curve_of, unit)).mean() for unit in _units(runs)]
    table = pd.DataFrame(units).T
    parts, frames = len(table), runs[0][0].frames
    return table.set_axis([round(frames * (part + 0.5) / parts) for part in range(parts)])


def _units(runs):
    """Returns the groups that errors are over: runs if there are several, else single agents."""
    return runs if len(runs) > 1 else [[agent] for agent in runs[0]]


def _mean(agents, figure):
    return float(np.mean([getattr(agent, figure) for agent in agents]))


def _areas(agents):
    return Estimate({str(agent.seed): agent.area_under_reward for agent in agents})


LEGEND = (
    "Clipped reward per 1000 steps, over the whole task run and over its last quarter; score of "
    "the last quarter of games that ended, where each agent ended at least two a copy. Means ± "
    "standard errors are over the runs of a method, or over the agents of a single run; the number "
    'of agents is in brackets. "Above fresh" is over pairs on the same starts. * marks differences '
    "of one sign in all runs, with zero outside the 95 % interval of Student's t over the runs."
)


def as_table(group: str, games: Mapping[str, Mapping[str, dict]]) -> str:
    """Formats a group of games as a Markdown table, given `summarise` of each game."""
    lines = [
        f"**{group}**",
        "",
        "| game | agent | reward | above fresh | last quarter | score | frames to score |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for game, summary in games.items():
        for kind, figure in summary.items():
            cells = [
                game,
                f"{kind} ({'+'.join(map(str, figure['agents']))})",
                _text(figure["area"]),
                _text(figure.get("gain"), "+.1f") + "*" * figure.get("gain_is_settled", False),
                _text(figure["final_reward"]),
                _text(figure["score"]),
                _frames_to_score(figure),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(figure, form=".1f"):
    if not figure or figure["mean"] is None:
        return "–"
    error = figure["standard_error"]
    return f"{figure['mean']:{form}}" + ("" if error is None else f" ± {error:.1f}")


def _frames_to_score(figure):
    if "target_score" not in figure:
        return "–"
    frames = figure["frames_to_score"]
    reached = [count for count in frames if count is not None]
    share = f"({len(reached)} of {len(frames)} reach {figure['target_score']:.4g})"
    return f"{np.mean(reached):,.0f} {share}" if reached else share


def plot_learning_curves(games: Mapping[str, Agents], path: pathlib.Path) -> None:
    """Plots the clipped reward and the score of finished games over frames as a PNG, a row a game.

    Lines are means, bands are one standard error, over the columns of `reward_curves`.
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
