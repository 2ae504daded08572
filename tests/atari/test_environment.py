"""The emulator as a TF-Agents environment: specs, boundaries, seeds, names."""

import numpy as np
import pytest
from tf_agents.environments import tf_py_environment, utils
from tf_agents.trajectories import time_step as ts

from leap_tf.atari.environments import AtariEnvironment, available_games, flavours, plain_name
from leap_tf.atari.problem import Game, games
from tests.atari.small import ColourBandit


def play(environment, steps, seed=0):
    """Random play; time steps with raw rewards."""
    rng = np.random.default_rng(seed)
    played = []
    for _ in range(steps):
        actions = rng.integers(0, environment.actions, environment.batch_size)
        played.append((environment.step(actions), environment.raw_reward.copy()))
    return played


def assert_same(one, other):
    for (step, raw), (other_step, other_raw) in zip(one, other, strict=True):
        np.testing.assert_array_equal(raw, other_raw)
        for array, other_array in zip(step, other_step, strict=True):
            np.testing.assert_array_equal(array, other_array)


def step_types(played, copy=0):
    return np.array([step.step_type[copy] for step, _ in played])


@pytest.mark.parametrize("life_loss_ends", [False, True])
def test_it_is_a_valid_environment(life_loss_ends):
    environment = AtariEnvironment("breakout", copies=2, life_loss_ends=life_loss_ends)
    utils.validate_py_environment(environment, episodes=2)


def test_the_bandit_is_a_valid_environment():
    utils.validate_py_environment(ColourBandit(copies=2, image_size=8), episodes=2)


def test_it_runs_in_the_graph():
    environment = tf_py_environment.TFPyEnvironment(AtariEnvironment("pong", copies=2))
    time_step = environment.step(np.zeros(2, np.int32))
    assert time_step.observation.shape == (2, 84, 84, 3)
    assert time_step.observation.dtype == "uint8"


@pytest.mark.parametrize("sticky_actions", [0.0, 0.25])
def test_games_are_a_function_of_their_seed(sticky_actions):
    one = AtariEnvironment("breakout", 2, emulator_threads=1, sticky_actions=sticky_actions)
    other = AtariEnvironment("breakout", 2, emulator_threads=2, sticky_actions=sticky_actions)
    one.seed(5)
    first = [(one.reset(), one.raw_reward), *play(one, 150)]
    play(one, 37, seed=1)  # something else happens in between
    one.seed(5)
    again = [(one.reset(), one.raw_reward), *play(one, 150)]
    assert_same(first, again)
    other.seed(5)
    assert_same(first, [(other.reset(), other.raw_reward), *play(other, 150)])
    one.seed(6)
    one.reset()
    assert any(
        not np.array_equal(step.observation, before.observation)
        for (step, _), (before, _) in zip(play(one, 150), first[1:])
    )


def test_episodes_end_in_last_and_start_with_first():
    environment = AtariEnvironment("breakout", copies=2, seed=1)
    assert np.all(environment.reset().step_type == ts.StepType.FIRST)
    played = play(environment, 700)
    ends = 0
    for copy in range(2):
        types = step_types(played, copy)
        last = np.flatnonzero(types == ts.StepType.LAST)
        np.testing.assert_array_equal(np.flatnonzero(types == ts.StepType.FIRST), last + 1)
        for t in last:
            assert played[t][0].discount[copy] == 0.0
            assert played[t + 1][0].discount[copy] == 1.0
        ends += len(last)
    assert ends >= 2
    assert len(environment.take_episodes()) == ends
    assert environment.take_episodes() == []


def test_a_time_limit_cuts_off_without_ending():
    environment = AtariEnvironment("pong", copies=1, max_frames=200, no_op_max=1)
    environment.reset()
    played = play(environment, 60)
    last = np.flatnonzero(step_types(played) == ts.StepType.LAST)
    assert last.size == 1
    assert played[last[0]][0].discount[0] == 1.0
    assert len(environment.take_episodes()) == 1


def test_the_loss_of_a_life_ends_an_episode_and_not_the_game():
    whole = AtariEnvironment("breakout", copies=2, seed=3)
    lives = AtariEnvironment("breakout", copies=2, seed=3, life_loss_ends=True)
    whole.reset()
    lives.reset()
    played_whole, played_lives = play(whole, 300), play(lives, 300)
    # The same games are played, with the same scores,
    for (step, raw), (other_step, other_raw) in zip(played_whole, played_lives):
        np.testing.assert_array_equal(step.observation, other_step.observation)
        np.testing.assert_array_equal(raw, other_raw)
    scores = whole.take_episodes()
    assert scores
    assert scores == lives.take_episodes()
    # but each of breakout's five lives is an episode.
    ends = sum((step_types(played_lives, copy) == ts.StepType.LAST).sum() for copy in range(2))
    games_over = sum(
        (step_types(played_whole, copy) == ts.StepType.LAST).sum() for copy in range(2)
    )
    assert ends >= 5 * games_over


def test_rewards_are_clipped_and_scores_are_not():
    environment = AtariEnvironment("space_invaders", copies=1, reward_clip=5.0)
    environment.reset()
    played = play(environment, 500)
    clipped = np.array([step.reward for step, _ in played])
    raw = np.array([reward for _, reward in played])
    assert clipped.max() == 5.0
    assert raw.max() > 5.0
    inner = np.array([step.step_type for step, _ in played]) != ts.StepType.FIRST
    np.testing.assert_array_equal(clipped[inner], np.clip(raw, -5, 5)[inner])
    (episode,) = environment.take_episodes()
    assert episode.score > clipped[: episode.steps].sum()


def test_scores_are_sums_of_raw_rewards():
    environment = AtariEnvironment("breakout", copies=1, seed=1)
    environment.reset()
    played = play(environment, 800)
    episodes = environment.take_episodes()
    start = 0
    for episode in episodes:
        assert episode.score == sum(raw[0] for _, raw in played[start : episode.steps])
        start = episode.steps
    assert len(episodes) >= 2


def test_sticky_actions_change_the_game():
    plain, sticky = (AtariEnvironment("pong", 1, sticky_actions=share) for share in (0.0, 0.9))
    plain.reset()
    sticky.reset()
    frames, sticky_frames = (
        [step.observation for step, _ in play(environment, 100)] for environment in (plain, sticky)
    )
    assert any(not np.array_equal(a, b) for a, b in zip(frames, sticky_frames))


def test_other_settings_reach_the_emulator():
    environment = AtariEnvironment("pong", 1, all_actions=True, image_size=42, frame_skip=2)
    assert environment.actions == 18
    assert environment.reset().observation.shape == (1, 42, 42, 3)
    assert environment.frame_skip == 2


def screens(game, steps, **flags):
    environment = AtariEnvironment(game, 1, seed=4, **flags)
    environment.reset()
    return np.stack([step.observation[0] for step, _ in play(environment, steps)])


def test_frame_skip_is_the_number_of_frames_of_a_step():
    """Two steps of 2 frames end in the screen of one step of 4, without actions and pooling."""
    flags = {"no_op_max": 0, "fire_on_reset": False, "max_pool": False}
    seen = []
    for frame_skip in (2, 4):
        environment = AtariEnvironment("pong", 1, frame_skip=frame_skip, **flags)
        environment.reset()
        idle = np.zeros(1, np.int32)
        seen.append([environment.step(idle).observation for _ in range(160 // frame_skip)])
    np.testing.assert_array_equal(seen[0][1::2], seen[1])
    assert not np.array_equal(seen[0][-1], seen[0][1])


def test_the_maximum_of_two_frames_is_at_least_the_last():
    pooled, plain = (screens("breakout", 60, max_pool=pool) for pool in (True, False))
    # The emulator pools before it resizes, so the order holds up to rounding.
    assert np.all(pooled.astype(int) >= plain.astype(int) - 1)
    assert np.any(pooled.astype(int) > plain.astype(int) + 1)


def test_names_are_checked_before_the_emulator_is_called():
    assert len(available_games()) == 104
    for name in ("combat", "joust", "maze_craze", "warlords"):
        with pytest.raises(ValueError, match="several players"):
            AtariEnvironment(name)
    with pytest.raises(ValueError, match="Did you mean ms_pacman"):
        Game("MsPacman")
    with pytest.raises(ValueError, match="more than once: pong"):
        games(["pong", "breakout", "pong"])
    assert games(["pong"]) == [Game("pong")]


# Flavours: modes and difficulties


@pytest.mark.parametrize(
    "options",
    [
        {"no_op_max": 1},
        {"no_op_max": 0, "fire_on_reset": False, "max_pool": False, "frame_skip": 3},
        {"no_op_max": 1, "life_loss_ends": True, "all_actions": True, "image_size": 42},
        {"no_op_max": 1, "max_frames": 200, "frame_skip": 1},
        {"no_op_max": 1, "max_frames": 203},
        {"no_op_max": 1, "sticky_actions": 0.25},
    ],
    ids=str,
)
def test_the_plain_flavour_plays_as_the_vector_environment(options):
    game, flavour = (
        AtariEnvironment(name, 2, seed=5, **options) for name in ("breakout", "breakout/m0/d0")
    )
    assert game.actions == flavour.actions
    np.testing.assert_array_equal(game.reset().observation, flavour.reset().observation)
    seen = [play(environment, 400) for environment in (game, flavour)]
    for played in seen:
        for step, _ in played:  # the last screens of episodes may differ
            step.observation[step.step_type == ts.StepType.LAST] = 0
    assert_same(*seen)
    episodes = game.take_episodes()
    assert episodes
    assert flavour.take_episodes() == episodes


@pytest.mark.parametrize("name", ["breakout", "breakout/m0/d0"])
def test_fire_is_pressed_before_the_no_ops(name):
    options = {"frame_skip": 1, "max_pool": False}
    plain = AtariEnvironment("breakout", 1, no_op_max=1, **options)
    waiting = [plain.reset().observation[0]]  # after "fire" alone, then after each no-op
    waiting += [plain.step(np.array([0])).observation[0] for _ in range(29)]
    starts = AtariEnvironment(name, 8, seed=3, no_op_max=30, **options).reset().observation
    waits = [[np.array_equal(start, screen) for screen in waiting].index(True) for start in starts]
    assert len(set(waits)) > 3


@pytest.mark.parametrize("game", ["atlantis", "wizard_of_wor"])  # their last life is number 0
def test_a_flavour_ends_where_its_last_life_does(game):
    options = {"no_op_max": 0, "life_loss_ends": True, "max_frames": 8003}
    seen = [AtariEnvironment(name, 1, seed=1, **options) for name in (game, f"{game}/m0/d0")]
    steps = [play(environment, 2100) for environment in seen]
    assert [s.step_type.item() for s, _ in steps[0]] == [s.step_type.item() for s, _ in steps[1]]
    episodes = [environment.take_episodes() for environment in seen]
    assert episodes[0] == episodes[1]
    assert episodes[0]


def test_flavours_differ_and_are_functions_of_their_seed():
    first = {}
    for name in ("space_invaders/m0/d0", "space_invaders/m3/d0", "space_invaders/m0/d1"):
        one, again, other = (AtariEnvironment(name, 2, seed=seed) for seed in (5, 5, 6))
        seen = [[e.reset().observation, *play(e, 60)] for e in (one, again, other)]
        assert_same(seen[0][1:], seen[1][1:])
        assert any(
            not np.array_equal(a[0].observation, b[0].observation)
            for a, b in zip(seen[0][1:], seen[2][1:])
        )
        one.seed(5)
        np.testing.assert_array_equal(one.reset().observation, seen[0][0])
        first[name] = seen[0][-1][0].observation.tobytes()
    assert len(set(first.values())) == 3


def test_flavours_are_checked_before_anything_starts():
    assert len(flavours("crazy_climber")) == 8
    assert len(flavours("space_invaders")) == 32
    assert games(["freeway/m7/d1"]) == [Game("freeway/m7/d1")]
    with pytest.raises(ValueError, match="more than once: freeway"):
        games(["freeway/m0/d0", "freeway"])
    assert plain_name("centipede/m22/d0") == "centipede"
    assert plain_name("catch/3") == "catch/3"
    with pytest.raises(ValueError, match="catch/ and a number"):
        Game("catch/03")
    with pytest.raises(ValueError, match="freeway has no flavour 'freeway/m8/d0'. It has: freeway"):
        games(["freeway/m0/d0", "freeway/m8/d0"])
    with pytest.raises(ValueError, match="has no flavour 'freeway/3/1'"):
        Game("freeway/3/1")
    with pytest.raises(ValueError, match="no game 'freway'.* Did you mean freeway"):
        Game("freway/m0/d0")
    with pytest.raises(ValueError, match="emulator_threads must be 1 for a flavour"):
        AtariEnvironment("freeway/m0/d0", 1, emulator_threads=2)


@pytest.mark.parametrize(
    "number",
    [
        {"copies": 0},
        {"image_size": 0},
        {"frame_skip": 0},
        {"reward_clip": 0.0},
        {"reward_clip": float("nan")},
        {"emulator_threads": 0},
        {"no_op_max": -5},
        {"max_frames": 0},
        {"max_frames": 2**31},
        {"sticky_actions": 2.0},
        {"sticky_actions": float("nan")},
    ],
    ids=str,
)
def test_numbers_are_checked_before_the_emulator_is_called(number):
    (name,) = number
    with pytest.raises(ValueError, match=name):
        AtariEnvironment("pong", **number)
