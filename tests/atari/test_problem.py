"""Games as a problem: task runs depend on encoder and seed only; the path the learner observes."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    RMSProp,
    actor_critic,
    actor_critic_loss,
    forward,
    fresh_heads,
    mnih_2013,
    trained_agent,
    trained_variables,
)
from leap_tf.atari.environments import AtariEnvironment
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.inner_loop import TracedAgent, UnrollCollector
from leap_tf.atari.problem import EnvironmentPool, Game, TaskRunStoppedError, TrainedGame
from leap_tf.geometry import PathGeometry, PathPoint, extend_path, start_path
from leap_tf.serialization import SerializationError, decode, encode
from leap_tf.training.problem import training_job
from tests.atari.small import ColourBandit, assert_same, problem, small_encoder, task


def test_an_agent_learns_the_bandit_on_atari_sized_screens():
    pool = EnvironmentPool(lambda game: ColourBandit(game, copies=16))
    optimizer = RMSProp(1e-3, epsilon=1e-5, epsilon_inside_root=True, global_clipnorm=0.5)
    agent = problem(mnih_2013(), environment_pool=pool, inner_optimizer=optimizer)
    evaluation, parameters = agent.adapt("bandit4", seed=0, steps=130)
    of_five_steps = 4  # the fifth starts the next episode
    best = 1000 * of_five_steps / 5
    assert evaluation.final_reward > 0.9 * best
    assert evaluation.final_reward > 3 * 1000 * evaluation.rewards[:5].mean()
    # The parameters are those of the trained agent: it names colours of new screens.
    environment = ColourBandit(copies=64, seed=99)
    model = trained_agent(agent.encoder, parameters)
    logits, _ = model(environment.reset().observation.astype(np.float32))
    rewards = environment.step(np.argmax(logits, axis=-1)).reward
    assert rewards.mean() > 0.9


def test_a_task_run_is_a_function_of_encoder_and_seed():
    encoder = small_encoder()
    agent = problem(encoder)
    weights = encoder.get_weights()
    spec = task(seed=3, steps=6)
    first = agent.train(spec)
    agent.train(task(seed=4, steps=3))  # the environments are used in between
    again = agent.train(spec)
    assert first.finite
    assert first.metrics == again.metrics
    assert_same(first.meta_gradient, again.meta_gradient)
    assert_same(weights, encoder.get_weights())
    other = agent.train(task(seed=5, steps=6))
    assert other.metrics["loss"] != first.metrics["loss"]


def test_a_task_run_on_a_real_game_is_too():
    pool = EnvironmentPool(lambda game: AtariEnvironment(game, copies=2, sticky_actions=0.25))
    agent = problem(mnih_2013(filters=(4, 4), units=8), [Game("breakout")], environment_pool=pool)
    spec = task(seed=3, steps=4, index=0)
    first = agent.train(spec)
    agent.train(task(seed=4, steps=3, index=0))
    assert_same(first.meta_gradient, agent.train(spec).meta_gradient)


def test_games_with_other_actions_share_the_encoder():
    agent = problem()
    for actions in (2, 5):
        trained = agent.train(task(seed=1, steps=3, index=actions - 2))
        assert len(trained.meta_gradient) == len(agent.encoder.trainable_variables)
        assert trained.metrics["gradient_steps"] == 3
        _, parameters = agent.adapt(f"bandit{actions}", seed=1, steps=2)
        assert trained_agent(agent.encoder, parameters).outputs[0].shape == (None, actions)


def test_screens_actions_and_rewards_belong_together():
    agent = TracedAgent(
        actor_critic(small_encoder(), 3),
        RMSProp(),
        leap_tf.Leap(),
        range(4),
        loss=ActorCriticLoss(),
    )
    parameters = [variable.value for variable in trained_variables(agent.model)]
    environment = ColourBandit(copies=4, actions=3, image_size=16)
    collector = UnrollCollector(environment, agent, steps=5, seed=0)
    for _ in range(3):
        unroll, raw = collector.collect(parameters)
        screens = tf.concat(unroll.screens, 0).numpy().reshape(6, 4, 16, 16, 3)
        # Colours 0 to 2 are red, green and blue; the action at the last step is ignored.
        named = np.argmax(screens[:-1, :, 0, 0], axis=-1) == unroll.actions
        expected = named & ~unroll.is_last[:-1]
        np.testing.assert_array_equal(unroll.rewards, expected.astype(np.float32))
        np.testing.assert_array_equal(unroll.discounts, 1.0 - unroll.is_last[1:])
        assert raw == pytest.approx(unroll.rewards.mean())
    assert len(np.unique(unroll.actions)) > 1


def test_reptile_gets_the_end_of_training():
    encoder = small_encoder()
    spec = task(seed=2, steps=5)
    agent = problem(encoder, learner=leap_tf.Reptile())
    update = agent.train(spec).meta_gradient
    _, trained = agent.adapt("bandit4", spec.seed, spec.steps)
    moved = [start - end.numpy() for start, end in zip(encoder.get_weights(), trained)]
    assert_same(update, moved)


def test_heads_of_an_actor_critic_are_meta_learned():
    agent = actor_critic(small_encoder(), 4, value_gain=0.0)
    learned = problem(agent, learner=leap_tf.Reptile())
    spec = task(seed=2, steps=5)
    _, trained = learned.adapt("bandit4", spec.seed, spec.steps)
    before = [variable.numpy() for variable in trained_variables(agent)]
    assert not before[-2].any()
    moved = [start - end.numpy() for start, end in zip(before, trained, strict=True)]
    assert_same(learned.train(spec).meta_gradient, moved)
    assert_same(
        [each.numpy() for each in trained_variables(trained_agent(agent, trained))], trained
    )
    # From another encoder, without heads, as the fresh agents of an evaluation.
    fresh = small_encoder()
    values = fresh.get_weights()
    _, of_control = learned.adapt("bandit4", spec.seed, spec.steps, encoder=values)
    assert_same(of_control, problem(fresh).adapt("bandit4", spec.seed, spec.steps)[1])
    with pytest.raises(ValueError, match="The heads have 4 actions, and a game 3"):
        learned.adapt("bandit3", spec.seed, spec.steps)


def test_the_path_is_made_of_unrolls_and_their_loss():
    """Leap's meta-gradient, computed again from losses and gradients taken apart."""
    encoder = small_encoder()
    settings = ActorCriticLoss()
    model = actor_critic(encoder, 4)
    shared = range(len(encoder.trainable_variables))
    learner = leap_tf.Leap()
    agent = TracedAgent(model, keras.optimizers.SGD(0.1), learner, shared, loss=settings)
    environment = ColourBandit(copies=4, image_size=16, seed=7)
    collector = UnrollCollector(environment, agent, steps=5, seed=0)
    state = agent.start([tf.identity(variable.value) for variable in trained_variables(model)])
    path = start_path(agent.meta_learned(state.parameters))
    for _ in range(4):
        unroll, _ = collector.collect(state.parameters)
        with tf.GradientTape() as tape:
            tape.watch(state.parameters)
            logits, values = forward(model, state.parameters, tf.concat(unroll.screens, 0))
            loss = actor_critic_loss(
                tf.reshape(logits, (6, 4, 4))[:-1],
                tf.reshape(values, (6, 4)),
                actions=unroll.actions,
                rewards=unroll.rewards,
                discounts=unroll.discounts,
                is_last=unroll.is_last,
                settings=settings,
            ).total
        gradients = tape.gradient(loss, state.parameters)
        seen = agent.meta_learned(state.parameters)
        path = extend_path(
            path, PathPoint(seen, loss, agent.meta_learned(gradients)), PathGeometry()
        )
        before = state.parameters
        state, reported = agent.update(state, [], unroll)
        np.testing.assert_allclose(reported.total, loss, rtol=1e-5)
        for old, gradient, new in zip(before, gradients, state.parameters):
            np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    for actual, expected in zip(state.memory.meta_gradient, path.meta_gradient, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(state.memory.length, path.length, rtol=1e-4)


def test_without_learning_the_policy_stays_as_it_is():
    encoder = small_encoder()
    spec = task(seed=2, steps=5)
    control, parameters = problem(encoder).adapt("bandit4", 2, 5, learning=False)
    still = problem(encoder, inner_optimizer=keras.optimizers.SGD(0.0)).evaluate(spec)
    np.testing.assert_array_equal(control.rewards, still.rewards)
    assert control.episodes == still.episodes
    assert control.losses.size == control.entropies.size == 0
    assert GameEvaluation.from_record(control.as_record()).losses.size == 0
    assert_same(encoder.get_weights(), parameters[: len(encoder.trainable_variables)])


def test_a_task_run_can_start_from_another_encoder():
    first, other = small_encoder(), small_encoder()
    spec = task(seed=2, steps=3)
    from_other, parameters = problem(first).adapt("bandit4", 2, 3, encoder=other.get_weights())
    expected, expected_parameters = problem(other).adapt("bandit4", 2, 3)
    np.testing.assert_array_equal(from_other.losses, expected.losses)
    assert_same(parameters, expected_parameters)
    assert problem(first).evaluate(spec).losses[0] != expected.losses[0]


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
    with pytest.raises(ValueError, match=r"value_gain must be at least 0. Received: -1.0"):
        problem(value_gain=-1.0)


def test_a_value_head_of_zeros_leaves_the_encoder_alone_at_the_first_update():
    """Only the policy's gradient reaches it, and that is small as the policy's head is."""
    moved = {}
    for gain in (0.0, 1.0):
        agent = problem(
            learner=leap_tf.Reptile(), value_gain=gain, inner_optimizer=keras.optimizers.SGD(1.0)
        )
        trained = agent.train(task(seed=3, steps=1))
        moved[gain] = float(tf.linalg.global_norm(trained.meta_gradient))
    assert 0 < moved[0.0] < 0.05 * moved[1.0]


def test_task_runs_report_progress_and_can_be_stopped():
    seen = []

    def on_update(progress):
        seen.append(progress)
        if progress.update == 3:
            raise TaskRunStoppedError(progress)

    observed = problem(on_update=on_update)
    with pytest.raises(TaskRunStoppedError, match="bandit4 was stopped after 3 updates"):
        observed.train(task(seed=2, steps=9))
    assert seen == [("bandit4", update, 9, update * 5 * 4) for update in (1, 2, 3)]
    with pytest.raises(TaskRunStoppedError):
        observed.adapt("bandit4", seed=2, steps=9, on_update=on_update)
    observed.adapt("bandit4", seed=2, steps=4)  # the constructor's callback is for training only


class StillEncoder(leap_tf.NoMetaLearning):
    """Does not change the variables that it observes."""

    def direction(self, gradients, learner_values, step):
        return [None] * len(gradients)


def test_a_direction_of_the_learner_is_taken():
    encoder = small_encoder()
    still = problem(encoder, learner=StillEncoder())
    _, values = still.adapt("bandit4", seed=2, steps=5)
    assert_same(encoder.get_weights(), values[: len(encoder.trainable_variables)])
    assert np.any(values[-1])  # the heads learned


def test_results_can_be_sent_and_read():
    agent = problem()
    trained = agent.train(task(seed=2, steps=5))
    again = decode(encode(trained), TrainedGame)
    training_job(agent).check(again)
    assert_same(again.meta_gradient, trained.meta_gradient)
    assert again.metrics == trained.metrics
    evaluated = agent.evaluate(task(seed=2, steps=5))
    assert (evaluated.game, evaluated.seed, evaluated.updates) == ("bandit4", 2, 5)
    for run, read in (
        (trained.evaluation, again.evaluation),
        (evaluated, decode(encode(evaluated), GameEvaluation)),
    ):
        assert len(read.episodes) > 0
        assert read.episodes == run.episodes
        assert read.seconds > 0
        assert (read.seconds, read.path_length) == (run.seconds, run.path_length)
        assert_same([read.losses, read.rewards], [run.losses, run.rewards])


def test_results_of_another_kind_are_refused():
    trained = problem().train(task(seed=2, steps=2))
    for evaluation, message in (
        (None, "evaluation must be GameEvaluation. Received: 'None'"),
        (replace(trained.evaluation, episodes=[("high", 3)]), "score must be float"),
        (replace(trained.evaluation, copies=None), "copies must be int. Received: 'None'"),
    ):
        with pytest.raises(SerializationError, match=message):
            decode(encode(replace(trained, evaluation=evaluation)), TrainedGame)


def test_divergence_is_reported():
    agent = problem(inner_optimizer=keras.optimizers.SGD(1e30))
    assert not agent.train(task(seed=2, steps=4)).finite


def test_learners_that_cannot_play_are_refused():
    with pytest.raises(ValueError, match="needs query batches"):
        problem(learner=leap_tf.MAML())
    with pytest.raises(ValueError, match="use SequentialLearner with"):
        problem(learner=leap_tf.JointTraining())


def test_an_unroll_without_steps_is_refused():
    with pytest.raises(ValueError, match="unroll must be at least 1. Received: 0"):
        problem(unroll=0)


def test_a_pool_makes_environments_once_for_each_user():
    made = []

    def make(game):
        made.append(game)
        return ColourBandit(game, copies=2, image_size=8)

    pool = EnvironmentPool(make)
    with pool.borrow("a", 1) as first, pool.borrow("a", 1) as second:
        assert first is not second
    with pool.borrow("a", 2), pool.borrow("b", 2):
        pass
    assert made == ["a", "a", "b"]
    with pytest.raises(RuntimeError), pool.borrow("b", 3):
        raise RuntimeError
    with pool.borrow("b", 3):
        pass
    assert made == ["a", "a", "b", "b"]
