"""Means over seeds and lines for people, by hand."""

import dataclasses
import io
import json

import numpy as np

from leap_tf.atari import Episode, GameEvaluation
from leap_tf.atari.tables import as_table, reward_band, spread, summarise
from leap_tf.atari.visit_log import VisitLog


def agent(rewards, scores=()):
    rewards = np.array(rewards, float)
    return GameEvaluation(
        game="pong",
        seed=0,
        copies=2,
        frames_per_update=40,
        frame_skip=4,
        losses=rewards,
        entropies=rewards,
        rewards=rewards,
        raw_rewards=rewards,
        episodes=tuple(Episode(score, step + 1) for step, score in enumerate(scores)),
        seconds=2.0,
    )


def test_spread_is_over_those_that_have_a_value():
    assert spread([1.0, None, 3.0]) == {
        "mean": 2.0,
        "standard_error": 1.0,
        "values": [1.0, None, 3.0],
    }
    assert spread([None])["mean"] is None
    assert spread([4.0])["standard_error"] is None


def test_bands_are_means_of_parts_over_agents():
    band = reward_band([agent([0.0, 2.0, 4.0, 6.0]), agent([2.0, 4.0, 6.0, 8.0])], points=2)
    assert band == {
        "frames": [40, 120],
        "mean": [2000.0, 6000.0],
        "standard_error": [1000.0, 1000.0],
    }
    assert reward_band([agent([1.0])])["standard_error"] == [0.0]


def test_the_table_by_hand():
    agents = [agent([0.001, 0.003], [2.0] * 10), agent([0.003, 0.005])]
    figures = summarise({"learned": agents}, target_score=2.0)
    assert figures["learned"]["area"]["mean"] == 3.0
    assert figures["learned"]["frames_to_score"] == [80, None]
    table = as_table("held out", {"pong": figures}, seeds=2, updates=2)
    assert "| pong | learned | 3.0 ± 1.0 | 4.0 ± 1.0 | 2.0 | 80 (1 of 2 reach 2) |" in table
    without = as_table("seen", {"pong": summarise({"fresh": agents[1:]})}, seeds=1, updates=2)
    assert "| pong | fresh | 4.0 | 5.0 | – | – |" in without


def test_visits_are_kept_and_shown_now_and_then(tmp_path):
    stream = io.StringIO()
    log = VisitLog(tmp_path / "visits.jsonl", seconds=1000.0, stream=stream)
    log(agent([0.001, 0.003], [5.0]))
    log(dataclasses.replace(agent([0.001]), game="qbert"))
    lines = [json.loads(line) for line in (tmp_path / "visits.jsonl").read_text().splitlines()]
    assert [line["game"] for line in lines] == ["pong", "qbert"]
    assert lines[0]["rewards"] == [1.0, 3.0]
    assert lines[0]["frames_per_second"] == 40.0
    assert stream.getvalue() == (
        "pong: 80 frames, 40 frames/s, 1.0 updates/s, reward 2.0 per 1000 steps, score 5.0\n"
    )
