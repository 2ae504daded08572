"""The tables of the study on two cores are those of the agents beside them."""

import json
import pathlib

import pytest

from leap_tf.atari.comparison import compare

ROOT = pathlib.Path(__file__).parents[2]
STUDY = ROOT / "docs" / "results" / "atari" / "study"


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
