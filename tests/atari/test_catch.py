"""The catch family: its rules, and a whole study on it, in which Leap's transfer must show."""

import json
import pathlib

import gin
import numpy as np
import pytest
from tf_agents.environments import utils

from leap_tf.atari import commands
from leap_tf.atari.catch import CatchEnvironment, Layout, draw_layout
from leap_tf.atari.comparison import FRESH, LEARNED, cell_file, read_cell
from leap_tf.atari.environments import AtariEnvironment
from leap_tf.atari.problem import Game
from leap_tf.experiments.run_tables import Estimate, is_settled

CONFIGURATION = pathlib.Path(__file__).parents[2] / "gin_configs/atari_catch.gin"
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
BLACK, BALL, PADDLE = ([*colour] for colour in COLOURS)


def placed(balls, paddles, directions=None, **changes):
    """Returns a game in a given state, on a layout without drift."""
    layout = Layout(COLOURS, 1, 2, 6, 1, 0, False)._replace(**changes)
    environment = CatchEnvironment("catch/0", len(balls), image_size=7)
    environment.layout = layout
    environment.reset()
    environment.balls, environment.paddles = np.array(balls), np.array(paddles)
    environment.directions = np.zeros(len(balls), int) if directions is None else directions
    return environment


def test_it_is_a_valid_environment():
    utils.validate_py_environment(CatchEnvironment("catch/3", copies=2), episodes=3)
    assert CatchEnvironment("catch/3", copies=2).reset().observation.shape == (2, 84, 84, 3)


def test_a_ball_that_touches_the_paddle_is_caught():
    # In the last row: left of the paddle, on its two columns, and right of it.
    environment = placed([[5, 1], [5, 2], [5, 3], [5, 4]], [2] * 4)
    step = environment.step(np.ones(4, int))
    np.testing.assert_array_equal(step.reward, [0, 1, 1, 0])
    np.testing.assert_array_equal(step.discount, [0] * 4)
    assert step.is_last().all()
    assert [episode.score for episode in environment.take_episodes()] == [0, 1, 1, 0]
    step = environment.step(np.ones(4, int))
    assert step.is_first().all()
    np.testing.assert_array_equal(environment.balls[:, 0], [0] * 4)
    np.testing.assert_array_equal(step.reward, [0] * 4)


def test_a_wide_ball_touches_with_either_end():
    environment = placed([[5, 0], [5, 1], [5, 3], [5, 4]], [2] * 4, ball_width=2)
    np.testing.assert_array_equal(environment.step(np.ones(4, int)).reward, [0, 1, 1, 0])


@pytest.mark.parametrize(("swapped", "expected"), [(False, [2, 3, 4]), (True, [4, 3, 2])])
def test_actions_move_the_paddle(swapped, expected):
    environment = placed([[0, 0]] * 3, [3] * 3, swapped=swapped)
    step = environment.step(np.arange(3))
    np.testing.assert_array_equal(environment.paddles, expected)
    assert step.is_mid().all()
    np.testing.assert_array_equal(environment.balls, [[1, 0]] * 3)


def test_the_paddle_stays_on_the_screen():
    environment = placed([[0, 0]] * 2, [0, 5])
    environment.step(np.array([0, 2]))
    np.testing.assert_array_equal(environment.paddles, [0, 5])


def test_drifting_balls_bounce_off_the_walls():
    environment = placed([[0, 1], [0, 5]], [0, 0], np.array([-1, 1]), drift=1)
    columns = []
    for _ in range(3):
        environment.step(np.ones(2, int))
        columns.append(environment.balls[:, 1].tolist())
    assert columns == [[0, 6], [1, 5], [2, 4]]


def test_the_screen_shows_ball_and_paddle():
    environment = placed([[0, 3]], [4])
    screen = environment.step(np.ones(1, int)).observation[0].tolist()
    assert screen[1] == [BLACK] * 3 + [BALL] + [BLACK] * 3
    assert screen[6] == [BLACK] * 4 + [PADDLE] * 2 + [BLACK]
    assert sum(pixel != BLACK for row in screen for pixel in row) == 3
    large = CatchEnvironment("catch/5", 1, seed=2, image_size=84).reset().observation
    small = CatchEnvironment("catch/5", 1, seed=2, image_size=7).reset().observation
    np.testing.assert_array_equal(large[:, 6::12, 6::12], small)


def test_games_are_a_function_of_layout_and_seed():
    def played(game, seed):
        environment = CatchEnvironment(game, 3, seed, image_size=7)
        actions = np.random.default_rng(0).integers(0, 3, (30, 3))
        return np.stack(
            [environment.reset().observation]
            + [environment.step(action).observation for action in actions]
        )

    first = played("catch/1", 4)
    np.testing.assert_array_equal(first, played("catch/1", 4))
    assert np.any(first != played("catch/1", 5))


def test_layouts_differ():
    layouts = [draw_layout(seed) for seed in range(1000)]
    assert len({tuple(layout.colours.flat) for layout in layouts}) == 1000
    assert len({layout[1:] for layout in layouts}) == 2**6  # all sizes and movements occur
    for layout in layouts:
        background, *others = layout.colours
        assert background.max() < 64 < 96 <= np.min(others)
    assert all(isinstance(value, (int, bool)) for value in layouts[0][1:])


def test_names_are_checked():
    assert Game("catch/17").name == "catch/17"
    for name in ("catch", "catch/", "catch/x", "catch/-1", "catch/1/2", "catch/1234567890"):
        with pytest.raises(ValueError, match="must be catch/ and a number"):
            Game(name)
    with pytest.raises(ValueError, match="must be catch/ and a number"):
        CatchEnvironment("pong")
    with pytest.raises(ValueError, match="emulator has no game 'catch'"):
        AtariEnvironment("catch/17")
    with pytest.raises(ValueError, match="image_size must be a multiple of 7. Received: 80"):
        CatchEnvironment("catch/0", image_size=80)


def test_leap_transfers_to_held_out_layouts(tmp_path):
    """Three meta-trainings by the commands; the gain of each is one value of the interval."""
    try:
        for seed in range(3):
            folder = tmp_path / str(seed)
            commands.train([CONFIGURATION], [f"atari_study.seed = {seed}"], folder)
            kinds = [LEARNED] if seed else [LEARNED, FRESH]
            bindings = [f"atari_evaluate.kinds = {kinds}", "atari_evaluate.pictures = False"]
            commands.evaluate(bindings, folder)
        games = gin.query_parameter("atari_evaluate.groups")["held out"]
    finally:
        gin.clear_config()
    assert not set(games) & {f"catch/{seed}" for seed in range(8)}

    def areas(seed, kind):
        results = tmp_path / str(seed) / "evaluation" / "100_updates"
        cells = [cell_file(results, kind, game, 0) for game in games]
        return np.array([read_cell(cell).area_under_reward for cell in cells])

    fresh = areas(0, FRESH)
    gains = {str(seed): float((areas(seed, LEARNED) - fresh).mean()) for seed in range(3)}
    assert is_settled(Estimate(gains)), gains
    assert Estimate(gains).mean > 0, gains
    commands.compare([f"Leap={tmp_path / str(seed)}" for seed in range(3)], tmp_path / "compared")
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert len(summary["groups"]["held out"][games[0]]["Leap"]["area"]["values"]) == 3
