"""Figures of a task run, by hand."""

import numpy as np

from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations, curve
from tests.atari.small import played


def evaluation(episodes=(), rewards=(0.0, 1.0, 2.0, 3.0)):
    return played(rewards, episodes)


def test_rewards_by_hand():
    of_four = evaluation()
    assert of_four.frames == 160
    assert of_four.area_under_reward == 1500
    assert of_four.final_reward == 3000
    assert evaluation(rewards=8 * (0.0, 1.0)).final_reward == 500
    metrics = GameEvaluations((of_four, evaluation(rewards=(0.0, 0.0)))).metrics()
    assert metrics == {"loss": 0.75, "reward": 750, "final_reward": 1500}


def test_scores_by_hand():
    # A step of both copies is 8 frames, so the games ended at frames 16, 40, 80 and 160.
    games = [(1.0, 2), (3.0, 5), (5.0, 10), (9.0, 20)]
    of_four = evaluation(games)
    assert of_four.score == 9.0
    assert of_four.frames_to_score(4.0, window=2) == 80
    assert of_four.frames_to_score(1.0, window=1) == 16
    assert of_four.frames_to_score(8.0, window=2) is None
    assert of_four.frames_to_score(0.0, window=5) is None
    np.testing.assert_array_equal(of_four.score_curve(4), [2.0, 5.0, np.nan, 9.0])
    assert evaluation(games[:3]).score is None  # fewer than two a copy


def test_curves_are_means_of_parts():
    np.testing.assert_array_equal(curve([1, 3, 5, 7], 2), [2, 6])
    np.testing.assert_allclose(curve([1, 2, 3, 4, 5], 2), [2, 4.5])


def test_records_come_back_as_they_were():
    there = evaluation([(1.0, 2)])
    back = GameEvaluation.from_record(there.as_record())
    assert back.as_record() == there.as_record()
    np.testing.assert_array_equal(back.rewards, there.rewards)
    assert back.episodes == there.episodes
