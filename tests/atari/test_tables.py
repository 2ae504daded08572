"""Tables, bands and log lines, against values computed by hand."""

import json

import numpy as np
import pytest

from leap_tf.atari.commands import ProgressLog, TaskRunLog
from leap_tf.atari.comparison import (
    as_table,
    plot_learning_curves,
    reward_curves,
    score_curves,
    spread,
    summarise,
)
from leap_tf.atari.problem import Progress, TaskRunStoppedError, TrainedGame
from tests.atari.small import played


def agent(rewards, scores=(), **of):
    return played(rewards, [(score, step + 1) for step, score in enumerate(scores)], **of)


def test_spread_by_hand():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "standard_error": 1.0, "values": [1.0, 3.0]}
    assert spread([])["mean"] is None
    assert spread([4.0])["standard_error"] is None


def test_curves_of_rewards_are_summarised_by_mean_and_error():
    agents = [agent([0.0, 2.0]), agent([2.0, 4.0])]
    assert reward_curves([agents], points=1).to_dict("list") == {0: [1000.0], 1: [3000.0]}
    of_runs = reward_curves([agents, agents[1:]], points=1)
    assert of_runs.to_dict("list") == {0: [2000.0], 1: [3000.0]}
    assert summarise({"learned": [agents]})["learned"]["curve"] == {
        "frames": [20, 60],
        "mean": [1000.0, 3000.0],
        "standard_error": [1000.0, 1000.0],
    }
    alone = summarise({"learned": [[agent([1.0])]]})["learned"]["curve"]
    assert alone["standard_error"] == [0.0]


def test_curves_of_scores_leave_out_parts_without_a_finished_game(tmp_path):
    # A step of both copies is 8 frames, so the third game ends at frame 24 of 160.
    of_two = [agent([1.0] * 4, [1.0, 2.0, 3.0]), agent([1.0] * 4, [4.0, 8.0])]
    curves = score_curves([of_two], points=8)
    assert curves.index.tolist() == [10, 30]
    np.testing.assert_array_equal(curves, [[1.5, 6.0], [3.0, np.nan]])
    plot_learning_curves({"pong": {"learned": [of_two]}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_by_hand():
    agents = [agent([0.001, 0.003], [2.0] * 10), agent([0.003, 0.005])]
    figures = summarise({"learned": [agents]}, target_score=2.0)
    assert figures["learned"]["area"]["mean"] == 3.0
    assert figures["learned"]["frames_to_score"] == [80, None]
    table = as_table("held out", {"pong": figures})
    assert ("| pong | learned (2) | 3.0 ± 1.0 | – | 4.0 ± 1.0 | – | 80 (1 of 2 reach 2) |") in table
    scored = as_table("seen", {"pong": summarise({"fresh": [agents[:1]]})})
    assert "| pong | fresh (1) | 2.0 | – | 3.0 | 2.0 | – |" in scored
    without = as_table("seen", {"pong": summarise({"fresh": [agents[1:]]})})
    assert "| pong | fresh (1) | 4.0 | – | 5.0 | – | – |" in without


def test_learned_agents_are_compared_with_fresh_ones_on_the_same_starts():
    def agents(*areas):
        return [agent([area / 1e3, (area + 1) / 1e3], seed=seed) for seed, area in enumerate(areas)]

    controls = {"fresh": [agents(1.0, 3.0, 2.0)], "random policy": [agents(0.0, 2.5, 1.0)]}
    figures = summarise({"learned": [agents(4.0, 7.0, 5.5)], "other": [agents(9.0)], **controls})
    assert figures["learned"]["gain"]["values"] == pytest.approx([3.0, 4.0, 3.5])
    assert figures["other"]["gain"]["values"] == pytest.approx([8.0])  # the start they share
    assert "gain" not in figures["fresh"]
    table = as_table("held out", {"pong": figures})
    assert "| pong | learned (3) | 6.0 ± 0.9 | +3.5 ± 0.3 | 6.5 ± 0.9 |" in table
    # One run has the luck of one meta-training, however many its starts. Random play has none.
    assert not figures["learned"]["gain_is_settled"]
    assert figures["random policy"]["gain"]["values"] == pytest.approx([-1.0, -0.5, -1.0])
    assert figures["random policy"]["gain_is_settled"]


def test_methods_are_judged_between_runs():
    def run(*areas):
        return [agent([area / 1e3], seed=seed) for seed, area in enumerate(areas)]

    fresh = {"fresh": [run(1.0, 3.0)]}
    figures = summarise({"Leap": [run(5.0, 8.0), run(4.0, 7.0), run(4.0)], **fresh})
    assert figures["Leap"]["gain"]["values"] == pytest.approx([4.5, 3.5, 3.0])
    assert figures["Leap"]["gain_is_settled"]  # 3.67, and an interval of ± 1.90 over the runs
    assert figures["Leap"]["area"]["values"] == pytest.approx([6.5, 5.5, 4.0])
    assert "| pong | Leap (2+2+1) | 5.3 ± 0.7 | +3.7 ± 0.4* |" in as_table("", {"pong": figures})
    figures = summarise({"Leap": [run(5.0, 8.0), run(1.0, 2.5)], **fresh})
    assert figures["Leap"]["gain"]["values"] == pytest.approx([4.5, -0.25])
    assert not figures["Leap"]["gain_is_settled"]


def test_long_task_runs_print_their_progress(capsys):
    ProgressLog(seconds=0.0)(Progress("pong", 1500, 2000, 640 * 1500))
    printed = "pong: 1,500 of 2,000 updates, 960,000 frames so far\n"
    assert capsys.readouterr().err == printed
    patient = ProgressLog()
    patient(Progress("pong", 1501, 2000, 640 * 1501))
    assert capsys.readouterr().err == ""
    patient.stop()
    with pytest.raises(TaskRunStoppedError, match="pong was stopped after 1502 updates"):
        patient(Progress("pong", 1502, 2000, 640 * 1502))


def test_task_runs_are_logged_and_printed_from_time_to_time(tmp_path, capsys):
    log = TaskRunLog(tmp_path / "task_runs.jsonl", seconds=1000.0)
    for run in (agent([0.001, 0.003], [5.0] * 4), agent([0.001], [9.0] * 3, game="qbert")):
        log(TrainedGame((), {}, True, evaluation=run))
    lines = [json.loads(line) for line in (tmp_path / "task_runs.jsonl").read_text().splitlines()]
    assert [line["game"] for line in lines] == ["pong", "qbert"]
    assert lines[0]["rewards"] == [1.0, 3.0]
    assert lines[0]["frames_per_second"] == 40.0
    assert 50 < lines[0]["peak_memory_mb"] <= lines[1]["peak_memory_mb"] < 100_000
    assert capsys.readouterr().err == (
        "pong: 80 frames, 40 frames/s, reward 2.0 per 1000 steps, score 5.0\n"
    )
