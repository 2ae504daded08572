"""The tables of the study on two cores are those of the agents in docs/results/atari."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from leap_tf.atari.comparison import CONTROLS, write_comparison
from leap_tf.atari.evaluation import GameEvaluation

ROOT = pathlib.Path(__file__).parents[2]
GROUPS = {"held out": ["crazy_climber", "alien"], "more actions": ["krull"], "seen": ["ms_pacman"]}
TARGETS = {"alien": 300, "krull": 2500, "ms_pacman": 500}
GAMES = [game for group in GROUPS.values() for game in group]
NOT_KEPT = {name: [] for name in ("losses", "entropies", "raw_rewards")}


FLAVOURS = ["crazy_climber/m1/d0", "crazy_climber/m3/d0"]
FLAVOUR_RUNS = {"Leap": ["leap_0"], "Reptile": ["reptile_0"]}


def read_agents():
    """Reads the agents: from run, kind and game to a list in the order of their starts."""
    found = {}
    file = ROOT / "docs" / "results" / "atari" / "agents.jsonl.gz"
    with gzip.open(file, "rt") as lines:
        for line in map(json.loads, lines):
            key = line.pop("run"), line.pop("kind"), line["game"]
            assert line.pop("start") == len(found.setdefault(key, []))
            found[key].append(GameEvaluation.from_record({**line, **NOT_KEPT}))
    return found


@pytest.fixture(scope="module")
def agents():
    return read_agents()


def test_the_page_shows_the_tables(agents, tmp_path):
    games = {
        game: {
            "Leap": [agents["leap_0", "learned", game], agents["leap_1", "learned", game]],
            "fresh": [agents["leap_0", "fresh", game]],
            "random policy": [agents["leap_0", "random policy", game]],
        }
        for game in GAMES
    }
    table = write_comparison(games, GROUPS, tmp_path, TARGETS)
    page = (ROOT / "docs" / "results" / "README.md").read_text()
    rows = [row for row in table.splitlines() if row[:2] == "| "]
    assert len(rows) == 3 + 3 * 4  # a header of each group; Leap, fresh and random policy
    for row in rows:
        assert row in page


def test_every_agent_had_the_same_frames_and_starts(agents):
    agents = {key: of for key, of in agents.items() if not key[0].startswith("flavours")}
    assert sum(map(len, agents.values())) == 4 * 5 * (3 + 1 + 3)
    assert len({agent.updates for of in agents.values() for agent in of}) == 1
    for game in GAMES:
        starts = {tuple(a.seed for a in of) for (_, _, g), of in agents.items() if g == game}
        assert len(starts) == 1
        assert len(set(starts.pop())) == 5


def test_encoders_of_other_budgets_are_held_against_the_same_fresh_agents(agents):
    page = (ROOT / "docs" / "results" / "README.md").read_text()
    encoders = {
        "seed 0, 10 meta-steps": "leap_0_at10",
        "seed 0, 20 meta-steps": "leap_0_at20",
        "seed 0, 30 meta-steps": "leap_0",
        "seed 1, 30 meta-steps": "leap_1",
        "seed 0, 8 meta-steps of long visits": "long_0",
    }
    for name, run in encoders.items():
        gains, ahead = [], 0
        for game in ("crazy_climber", "alien", "krull", "ms_pacman"):
            learned, fresh = (
                np.array([agent.area_under_reward for agent in agents[key]])
                for key in ((run, "learned", game), ("leap_0", "fresh", game))
            )
            gains.append(f"{round(100 * (learned.mean() / fresh.mean() - 1)):+d} %")
            ahead += int(np.sum(learned > fresh)) if game != "ms_pacman" else 0
        assert f"| {name} | {' | '.join(gains)} | {ahead} |" in page


def flavour_games(agents):
    """Returns the runs of each kind of agent on each held-out flavour."""
    games = {}
    for game in FLAVOURS:
        learned = {
            method: [agents[f"flavours_{run}", "learned", game] for run in runs]
            for method, runs in FLAVOUR_RUNS.items()
        }
        controls = {kind: [agents["flavours_leap_0", kind, game]] for kind in CONTROLS}
        games[game] = learned | controls
    return games


def flavour_gains(agents):
    """Returns the percentage by which the mean reward of each run is above that of fresh agents."""

    def mean(run, kind):
        areas = [a.area_under_reward for game in FLAVOURS for a in agents[run, kind, game]]
        assert len(areas) == 10
        return np.mean(areas)

    fresh = mean("flavours_leap_0", "fresh")
    return {
        run: round(100 * (mean(f"flavours_{run}", "learned") / fresh - 1))
        for runs in FLAVOUR_RUNS.values()
        for run in runs
    }


def test_the_page_shows_the_table_of_flavours(agents, tmp_path):
    table = write_comparison(flavour_games(agents), {"held out": FLAVOURS}, tmp_path, {})
    page = (ROOT / "docs" / "atari.md").read_text()
    rows = [row for row in table.splitlines() if row[:2] == "| "]
    assert len(rows) == 1 + 2 * (len(FLAVOUR_RUNS) + 2)
    for row in rows:
        assert row in page


def test_the_page_has_the_beginnings_of_learned_and_the_ends_of_fresh_agents(agents):
    def quarter(run, kind, number):
        rewards = [np.array([a.rewards for a in agents[run, kind, game]]) for game in FLAVOURS]
        return [round(1e3 * np.array_split(of, 4, axis=1)[number].mean()) for of in rewards]

    numbers = [
        *quarter("flavours_leap_0", "learned", 0),
        *quarter("flavours_reptile_0", "learned", 0),
        *quarter("flavours_leap_0", "fresh", -1),
    ]
    sentence = (
        "get {} and {} (Leap) and {} and {} (Reptile) per 1000 steps; fresh agents get {} and {} "
        "in their last 12,000"
    ).format(*numbers)
    assert sentence in " ".join((ROOT / "docs" / "atari.md").read_text().split())


def test_the_readme_has_the_gains_on_flavours(agents):
    gains = flavour_gains(agents)
    sentence = f"{gains['leap_0']} % more reward with Leap and {gains['reptile_0']} % with Reptile"
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
    assert sentence in " ".join((ROOT / "docs" / "atari.md").read_text().split())
