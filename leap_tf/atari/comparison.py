"""Agents of one run or several, side by side: table, figures and learning curves.

What a judgement leaves in `evaluation/<n>_updates/` is read again here, so that a comparison of
methods and seeds needs no agent trained twice. Fresh agents and random play are the same in
every run; those of the first run that has them are taken.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.pictures import plot_learning_curves
from leap_tf.atari.tables import CONTROLS, LEARNED, LEGEND, Agents, as_table, summarise
from leap_tf.experiments.run_directory import RunDirectoryError, write_atomically


def write_comparison(
    games: Mapping[str, Agents],
    groups: Mapping[str, Sequence[str]],
    folder: pathlib.Path,
    target_scores: Mapping[str, float],
) -> str:
    """Writes `summary.json`, `summary.md` and a picture for every group, and returns the table.

    Args:
        games: from a game to its agents.
        groups: from a name to games.
        folder: where to.
        target_scores: for some games, the score for "frames to score".
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
        picture = folder / f"{group.replace(' ', '_')}.png"
        plot_learning_curves({game: games[game] for game in names}, picture)
    return text


def compare(runs: Sequence[tuple[str, pathlib.Path]], output_dir: pathlib.Path) -> str:
    """Compares runs that have been judged.

    Args:
        runs: method and folder of each; several runs of a method count together. The games and
            groups are those of the first.
        output_dir: where the comparison is written.

    Returns:
        The table, as text.

    Raises:
        RunDirectoryError: a folder holds no finished judgement, or agents of other lengths.
        ValueError: a method has the name of a control.
    """
    for method, path in runs:
        if method in CONTROLS:
            raise ValueError(
                f"{method!r} is a control's name. Call the method of {path} otherwise."
            )
    folders = [(method, _judgement(path)) for method, path in runs]
    lengths = {folder.name for _, folder in folders}
    if len(lengths) > 1:
        raise RunDirectoryError(
            f"Agents are compared after the same number of updates; there are {sorted(lengths)}."
        )
    first = json.loads((folders[0][1] / "summary.json").read_text())
    groups = {group: list(games) for group, games in first["groups"].items()}
    agents: dict[str, dict[str, list[GameEvaluation]]] = {}
    for game in {game for names in groups.values() for game in names}:
        kinds: dict[str, list[GameEvaluation]] = {}
        for method, folder in folders:
            kinds.setdefault(method, []).extend(_read(folder, LEARNED, game))
        for control in CONTROLS:
            found = (_read(folder, control, game) for _, folder in folders)
            kinds[control] = next(filter(None, found), [])
        agents[game] = {kind: of_kind for kind, of_kind in kinds.items() if of_kind}
    return write_comparison(agents, groups, output_dir, first["target_scores"])


def cell_file(folder: pathlib.Path, kind: str, game: str, seed: int | str) -> pathlib.Path:
    """Returns where the agent of a kind, a game and a start is kept."""
    return folder / kind.replace(" ", "_") / f"{game}_seed{seed}.json"


def read_cell(file: pathlib.Path) -> GameEvaluation:
    """Returns the agent that is kept in a file."""
    return GameEvaluation.from_record(json.loads(file.read_text()))


def _judgement(path):
    """The folder of a run's judgement."""
    found = sorted(path.glob("evaluation/*_updates/summary.json"))
    if len(found) != 1:
        raise RunDirectoryError(
            f"{path} has {len(found)} finished judgements, and one is compared. Make it with "
            "bin/atari_evaluate.py."
        )
    return found[0].parent


def _read(folder, kind, game):
    """All agents of a kind on a game, by their starts."""
    pattern = cell_file(folder, kind, game, "*")
    files = pattern.parent.glob(pattern.name)
    return [
        read_cell(file)
        for file in sorted(files, key=lambda file: int(file.stem.split("_seed")[-1]))
    ]
