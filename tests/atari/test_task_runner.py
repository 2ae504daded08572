"""Visits to games: pure functions of their seed, and the path they show the learner."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.atari.arcade import Arcade
from leap_tf.atari.colour_bandit import ColourBandit
from leap_tf.atari.encoder import (
    actor_critic,
    agent_of,
    forward,
    fresh_heads,
    mnih_2013,
    trained_variables,
)
from leap_tf.atari.environment import AtariEnvironment
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.games import Game
from leap_tf.atari.loss import ActorCriticLoss, actor_critic_loss
from leap_tf.atari.rmsprop import RMSProp
from leap_tf.atari.task_runner import AtariTaskRunner, TrainedGame
from leap_tf.atari.traced_agent import TracedAgent
from leap_tf.atari.visit import VisitStoppedError, play
from leap_tf.geometry import PathGeometry, PathPoint, extend_path, start_path
from leap_tf.serialization import Parts, UnfitPartsError
from leap_tf.training import SeededTask
from tests.atari.small import bandits, small_encoder


def bandit(actions=4):
    return types.SimpleNamespace(name=f"bandit{actions}")


def runner(learner=None, encoder=None, arcade=None, **options):
    return AtariTaskRunner(
        encoder or small_encoder(),
        options.pop("inner_optimizer", None) or RMSProp(3e-3, epsilon=1e-5),
        learner or leap_tf.Leap(),
        arcade or bandits(),
        **options,
    )


def assert_same(tensors, others):
    for tensor, other in zip(tensors, others, strict=True):
        np.testing.assert_array_equal(tensor, other)


def test_an_agent_learns_the_bandit_on_atari_sized_screens():
    arcade = Arcade(lambda game: ColourBandit(game, copies=16))
    optimizer = RMSProp(1e-3, epsilon=1e-5, epsilon_inside_root=True, global_clipnorm=0.5)
    agent = runner(encoder=mnih_2013(), arcade=arcade, inner_optimizer=optimizer)
    evaluation, parameters = agent.adapt(SeededTask(bandit(), seed=0, steps=130))
    of_five_steps = 4  # the fifth starts the next episode
    best = 1000 * of_five_steps / 5
    assert evaluation.final_reward() > 0.9 * best
    assert evaluation.final_reward() > 3 * 1000 * evaluation.rewards[:5].mean()
    # What is returned is the trained agent: it names colours it sees for the first time.
    environment = ColourBandit(copies=64, seed=99)
    model = agent_of(agent.encoder, parameters)
    logits, _ = model(environment.reset().observation.astype(np.float32))
    rewards = environment.step(np.argmax(logits, axis=-1)).reward
    assert rewards.mean() > 0.9


def test_a_visit_is_a_function_of_encoder_and_seed():
    encoder = small_encoder()
    agent = runner(encoder=encoder)
    weights = encoder.get_weights()
    seeded = SeededTask(bandit(), seed=3, steps=6)
    first = agent.train(seeded)
    agent.train(SeededTask(bandit(), seed=4, steps=3))  # the environments are used in between
    again = agent.train(seeded)
    assert first.finite
    assert first.metrics == again.metrics
    assert_same(first.meta_gradient, again.meta_gradient)
    assert_same(weights, encoder.get_weights())
    other = agent.train(SeededTask(bandit(), seed=5, steps=6))
    assert other.metrics["loss"] != first.metrics["loss"]


def test_a_visit_to_a_real_game_is_too():
    arcade = Arcade(lambda game: AtariEnvironment(game, copies=2, sticky_actions=0.25))
    agent = runner(encoder=mnih_2013(filters=(4, 4), units=8), arcade=arcade)
    seeded = SeededTask(Game("breakout"), seed=3, steps=4)
    first = agent.train(seeded)
    agent.train(SeededTask(Game("breakout"), seed=4, steps=3))
    assert_same(first.meta_gradient, agent.train(seeded).meta_gradient)


def test_games_with_other_actions_share_the_encoder():
    agent = runner()
    for actions in (2, 5):
        trained = agent.train(SeededTask(bandit(actions), seed=1, steps=3))
        assert len(trained.meta_gradient) == len(agent.encoder.trainable_variables)
        assert trained.metrics["gradient_steps"] == 3
        _, parameters = agent.adapt(SeededTask(bandit(actions), seed=1, steps=2))
        assert agent_of(agent.encoder, parameters).outputs[0].shape == (None, actions)


def test_groups_are_one_batch():
    agent = runner(arcade=bandits(copies=2, groups=2))
    evaluation = agent.evaluate(SeededTask(bandit(), seed=1, steps=4))
    assert evaluation.copies == 4
    assert evaluation.frames_per_update == 4 * 5
    assert evaluation.updates == 4


@pytest.mark.parametrize("groups", [1, 2])
def test_screens_actions_and_rewards_belong_together(groups):
    agent = TracedAgent(
        actor_critic(small_encoder(), 3), RMSProp(), leap_tf.Leap(), range(4), ActorCriticLoss()
    )
    parameters = [variable.value for variable in trained_variables(agent.model)]
    environments = [
        ColourBandit(copies=4 // groups, actions=3, seed=group, image_size=16)
        for group in range(groups)
    ]
    steps = [environment.reset() for environment in environments]
    random = np.random.default_rng(0)
    for _ in range(3):
        unroll, raw = play(environments, steps, agent, parameters, 5, random)
        screens = tf.concat(unroll.screens, 0).numpy().reshape(6, 4, 16, 16, 3)
        # Colours 0 to 2 are red, green and blue; the action at the last step is ignored.
        named = np.argmax(screens[:-1, :, 0, 0], axis=-1) == unroll.actions
        expected = named & ~unroll.is_last[:-1]
        np.testing.assert_array_equal(unroll.rewards, expected.astype(np.float32))
        np.testing.assert_array_equal(unroll.discounts, 1.0 - unroll.is_last[1:])
        assert raw == pytest.approx(unroll.rewards.mean())
    assert len(np.unique(unroll.actions)) > 1


def test_reptile_is_shown_where_training_led():
    encoder = small_encoder()
    seeded = SeededTask(bandit(), seed=2, steps=5)
    update = runner(leap_tf.Reptile(), encoder).train(seeded).meta_gradient
    _, trained = runner(leap_tf.Reptile(), encoder).adapt(seeded)
    moved = [start - end.numpy() for start, end in zip(encoder.get_weights(), trained)]
    assert_same(update, moved)


def test_the_path_is_made_of_unrolls_and_their_loss():
    """Leap's meta-gradient, computed again from losses and gradients taken apart."""
    encoder = small_encoder()
    settings = ActorCriticLoss()
    model = actor_critic(encoder, 4)
    shared = range(len(encoder.trainable_variables))
    learner = leap_tf.Leap()
    agent = TracedAgent(model, keras.optimizers.SGD(0.1), learner, shared, settings)
    environments = [ColourBandit(copies=4, image_size=16, seed=7)]
    steps, random = [environments[0].reset()], np.random.default_rng(0)
    state = agent.start([tf.identity(variable.value) for variable in trained_variables(model)])
    path = start_path(agent.meta_learned(state.parameters))
    for _ in range(4):
        unroll, _ = play(environments, steps, agent, state.parameters, 5, random)
        with tf.GradientTape() as tape:
            tape.watch(state.parameters)
            logits, values = forward(model, state.parameters, tf.concat(unroll.screens, 0))
            loss = actor_critic_loss(
                tf.reshape(logits, (6, 4, 4))[:-1],
                tf.reshape(values, (6, 4)),
                unroll.actions,
                unroll.rewards,
                unroll.discounts,
                unroll.is_last,
                settings,
            ).total
        gradients = tape.gradient(loss, state.parameters)
        seen = agent.meta_learned(state.parameters)
        path = extend_path(
            path, PathPoint(seen, loss, agent.meta_learned(gradients)), PathGeometry()
        )
        before = state.parameters
        state, report = agent.update(state, [], unroll)
        np.testing.assert_allclose(report.loss, loss, rtol=1e-5)
        for old, gradient, new in zip(before, gradients, state.parameters):
            np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    for actual, expected in zip(state.memory.meta_gradient, path.meta_gradient, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(state.memory.length, path.length, rtol=1e-4)


def test_without_learning_the_policy_stays_as_it_is():
    encoder = small_encoder()
    seeded = SeededTask(bandit(), seed=2, steps=5)
    control, parameters = runner(encoder=encoder).adapt(seeded, learning=False)
    still = runner(encoder=encoder, inner_optimizer=keras.optimizers.SGD(0.0)).evaluate(seeded)
    np.testing.assert_array_equal(control.rewards, still.rewards)
    assert control.episodes == still.episodes
    assert control.losses.size == control.entropies.size == 0  # it has none
    assert GameEvaluation.from_record(control.as_record()).losses.size == 0
    assert_same(encoder.get_weights(), parameters[: len(encoder.trainable_variables)])


def test_a_visit_can_start_from_another_encoder():
    first, other = small_encoder(), small_encoder()
    seeded = SeededTask(bandit(), seed=2, steps=3)
    from_other, parameters = runner(encoder=first).adapt(seeded, encoder=other.get_weights())
    expected, expected_parameters = runner(encoder=other).adapt(seeded)
    np.testing.assert_array_equal(from_other.losses, expected.losses)
    assert_same(parameters, expected_parameters)
    assert runner(encoder=first).evaluate(seeded).losses[0] != expected.losses[0]


def test_fresh_value_heads_have_the_norm_that_was_asked_for():
    model = actor_critic(small_encoder(), 3)
    policy, _, value, _ = fresh_heads(model, seed=5)
    assert np.linalg.norm(value) == pytest.approx(1.0)
    for gain in (0.0, 0.5):
        other_policy, policy_bias, other, bias = fresh_heads(model, 5, gain)
        np.testing.assert_allclose(other, gain * value, rtol=1e-6)
        np.testing.assert_array_equal(other_policy, policy)
        assert not np.any(policy_bias)
        assert not np.any(bias)
    with pytest.raises(ValueError, match=r"value_gain is a norm, at least 0, and is -1.0"):
        runner(value_gain=-1.0)


def test_a_value_head_of_zeros_leaves_the_encoder_alone_at_the_first_update():
    """Only the policy's gradient reaches it, and that is small as the policy's head is."""
    moved = {}
    for gain in (0.0, 1.0):
        agent = runner(
            leap_tf.Reptile(), value_gain=gain, inner_optimizer=keras.optimizers.SGD(1.0)
        )
        trained = agent.train(SeededTask(bandit(), seed=3, steps=1))
        moved[gain] = float(tf.linalg.global_norm(trained.meta_gradient))
    assert 0 < moved[0.0] < 0.05 * moved[1.0]


def test_a_visit_can_be_watched_and_ended():
    seen = []

    def watch(seeded, frames_per_update, updates):
        seen.append((seeded.task.name, frames_per_update, updates))
        if updates == 3:
            raise VisitStoppedError(seeded.task.name, updates)

    watched = runner(watch=watch)
    with pytest.raises(VisitStoppedError, match="bandit4 was left after 3 updates"):
        watched.train(SeededTask(bandit(), seed=2, steps=9))
    assert seen == [("bandit4", 5 * 4, updates) for updates in (1, 2, 3)]
    with pytest.raises(VisitStoppedError):
        watched.adapt(SeededTask(bandit(), seed=2, steps=9), watch=watch)
    watched.adapt(SeededTask(bandit(), seed=2, steps=4))  # judging is watched by who asks for it


@pytest.mark.parametrize("sticky_actions", [0.0, 0.25])
def test_groups_play_the_same_games(sticky_actions):
    visits = []
    for groups in (1, 2):
        keras.utils.set_random_seed(0)

        def make(game, copies=4 // groups):
            return AtariEnvironment(game, copies, sticky_actions=sticky_actions)

        agent = runner(encoder=mnih_2013(filters=(4, 4), units=8), arcade=Arcade(make, groups))
        visits.append(agent.evaluate(SeededTask(Game("breakout"), seed=3, steps=3)))
    one, two = visits
    np.testing.assert_array_equal(one.rewards, two.rewards)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-5)


class StillEncoder(leap_tf.PlainTraining):
    """Leaves alone what it sees."""

    def direction(self, gradients, own):
        return [None] * len(gradients)


def test_a_direction_of_the_learner_is_taken():
    encoder = small_encoder()
    still = runner(StillEncoder(), encoder)
    _, values = still.adapt(SeededTask(bandit(), seed=2, steps=5))
    assert_same(encoder.get_weights(), values[: len(encoder.trainable_variables)])
    assert np.any(values[-1])  # the heads learned


def test_what_came_of_a_visit_survives_being_taken_apart():
    agent = runner()
    trained = agent.train(SeededTask(bandit(), seed=2, steps=5))
    assert (trained.visit.game, trained.visit.seed, trained.visit.updates) == ("bandit4", 2, 5)
    assert trained.visit.seconds > 0
    again = TrainedGame.from_parts(trained.parts(), agent.meta_variables, agent.lasting_state)
    assert_same(again.meta_gradient, trained.meta_gradient)
    assert again.metrics == trained.metrics
    judged = agent.evaluate(SeededTask(bandit(), seed=2, steps=5))
    for visit in (trained.visit, judged):
        read = GameEvaluation.from_parts(visit.parts())
        assert read.episodes == visit.episodes
        assert len(read.episodes) > 0
        assert (read.seconds, read.path_length) == (visit.seconds, visit.path_length)
        assert_same([read.losses, read.rewards], [visit.losses, visit.rewards])


def test_parts_that_are_of_no_visit_are_refused():
    agent = runner()
    parts = agent.train(SeededTask(bandit(), seed=2, steps=2)).parts()
    for visit, message in (
        (None, "nothing of the visit"),
        ({**parts.plain["visit"], "episodes": [["high", 3]]}, "no episode"),
        ({**parts.plain["visit"], "copies": None}, "copies of a result is NoneType"),
    ):
        with pytest.raises(UnfitPartsError, match=message):
            TrainedGame.from_parts(
                Parts({**parts.plain, "visit": visit}, parts.arrays), agent.meta_variables, []
            )


def test_divergence_is_told():
    agent = runner(inner_optimizer=keras.optimizers.SGD(1e30))
    assert not agent.train(SeededTask(bandit(), seed=2, steps=4)).finite


def test_learners_that_cannot_play_are_refused():
    with pytest.raises(ValueError, match="needs batches to query"):
        runner(leap_tf.MAML())
    with pytest.raises(ValueError, match="use SequentialLearner with"):
        runner(leap_tf.MultiHeadedFinetuning())


def test_an_unroll_without_steps_is_refused():
    with pytest.raises(ValueError, match="unroll must be at least 1, and is 0"):
        runner(unroll=0)


def test_an_arcade_makes_environments_once_for_each_player():
    made = []

    def make(game):
        made.append(game)
        return ColourBandit(game, copies=2, image_size=8)

    arcade = Arcade(make)
    with arcade.visit("a", 1) as first, arcade.visit("a", 1) as second:
        assert first is not second
    with arcade.visit("a", 2), arcade.visit("b", 2):
        pass
    assert made == ["a", "a", "b"]
    with pytest.raises(RuntimeError), arcade.visit("b", 3):
        raise RuntimeError
    with arcade.visit("b", 3):
        pass
    assert made == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="at least one group"):
        Arcade(make, groups=0)
