"""The tables of the study on two cores are those of the agents beside them."""

import json
import pathlib

import numpy as np
import pytest

from leap_tf.atari.comparison import compare, read_cell

ROOT = pathlib.Path(__file__).parents[2]
STUDY = ROOT / "docs" / "results" / "atari" / "study"
BUDGET = STUDY.parent / "budget"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    compare([("Leap", STUDY / "leap_0"), ("Leap", STUDY / "leap_1")], folder)
    return folder


def test_the_summary_is_made_of_the_agents(compared):
    for name in ("summary.md", "summary.json"):
        assert (compared / name).read_text() == (STUDY / name).read_text()


def test_the_page_shows_the_tables(compared):
    page = (ROOT / "docs" / "atari.md").read_text()
    rows = [row for row in (compared / "summary.md").read_text().splitlines() if row[:2] == "| "]
    assert len(rows) == 3 + 3 * 4  # a header of each group; Leap, fresh and random policy
    for row in rows:
        assert row in page


def test_every_agent_had_the_same_frames_and_starts():
    cells = [json.loads(file.read_text()) for file in STUDY.rglob("*_seed*.json")]
    each = 3 + 1  # the first run is judged with both controls
    assert len(cells) == 4 * 5 * each
    assert len({len(cell["rewards"]) for cell in cells}) == 1
    starts = {}
    for cell in cells:
        starts.setdefault(cell["game"], []).append(cell["seed"])
    for seeds in starts.values():
        assert sorted(seeds) == sorted(each * sorted(set(seeds)))
        assert len(set(seeds)) == 5


def areas(run, kind, game):
    files = [
        run / "evaluation" / "600_updates" / kind / f"{game}_seed{start}.json" for start in range(5)
    ]
    agents = [read_cell(file) for file in files]
    return [agent.seed for agent in agents], np.array([a.area_under_reward for a in agents])


def test_encoders_of_other_budgets_are_held_against_the_same_fresh_agents():
    page = (ROOT / "docs" / "atari.md").read_text()
    encoders = {
        "seed 0, 10 meta-steps": BUDGET / "leap_0_at10",
        "seed 0, 20 meta-steps": BUDGET / "leap_0_at20",
        "seed 0, 30 meta-steps": STUDY / "leap_0",
        "seed 1, 30 meta-steps": STUDY / "leap_1",
        "seed 0, 8 meta-steps of long visits": BUDGET / "long_0",
    }
    for name, run in encoders.items():
        gains, ahead = [], 0
        for game in ("crazy_climber", "alien", "krull", "ms_pacman"):
            starts, learned = areas(run, "learned", game)
            fresh_starts, fresh = areas(STUDY / "leap_0", "fresh", game)
            assert starts == fresh_starts
            gains.append(f"{round(100 * (learned.mean() / fresh.mean() - 1)):+d} %")
            ahead += int(np.sum(learned > fresh)) if game != "ms_pacman" else 0
        assert f"| {name} | {' | '.join(gains)} | {ahead} |" in page
