"""TF-Agents: gradients, policy, drivers, savers, and learning of a game with a known optimum."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment
from tf_agents.metrics import tf_metrics
from tf_agents.policies import greedy_policy, policy_saver
from tf_agents.replay_buffers import tf_uniform_replay_buffer
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.utils import common

import leap_tf
from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    PixelConvolution,
    RMSProp,
    actor_critic,
    forward,
    mnih_2013,
    trained_variables,
)
from leap_tf.atari.inner_loop import TracedAgent, Unroll
from leap_tf.atari.tf_agents import ActorCriticAgent, ActorCriticNetwork
from tests.atari.small import ColourBandit, small_encoder


def agent_for(environment, encoder):
    return ActorCriticAgent(
        environment.time_step_spec(),
        environment.action_spec(),
        actor_critic(encoder, environment.action_spec().maximum + 1),
        RMSProp(3e-3, epsilon=1e-5, epsilon_inside_root=True, global_clipnorm=0.5),
    )


def bandit(copies=16, image_size=16):
    return tf_py_environment.TFPyEnvironment(ColourBandit(copies=copies, image_size=image_size))


class Driven:
    """An agent under a driver with a replay buffer of one unroll."""

    def __init__(self, environment, agent, unroll=5):
        self.agent = agent
        self.buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(
            agent.collect_data_spec, environment.batch_size, max_length=unroll + 1
        )
        self.returns = tf_metrics.AverageReturnMetric(
            batch_size=environment.batch_size, buffer_size=200
        )
        driver = dynamic_step_driver.DynamicStepDriver(
            environment,
            agent.collect_policy,
            observers=[self.buffer.add_batch, self.returns],
            num_steps=unroll * environment.batch_size,
        )
        self._drive = common.function(driver.run)
        self._drive()
        self._train = common.function(agent.train)

    def update(self):
        self._drive()
        return self._train(self.buffer.gather_all())


def test_the_encoder_is_that_of_mnih_et_al_2013():
    shapes = [tuple(variable.shape) for variable in mnih_2013().trainable_variables]
    assert shapes == [(8, 8, 3, 16), (16,), (4, 4, 16, 32), (32,), (9 * 9 * 32, 256), (256,)]


def test_pixels_are_scaled_to_one():
    ours = PixelConvolution(4, 8, 4, activation="relu")
    plain = keras.layers.Conv2D(4, 8, 4, activation="relu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3)).astype(np.float32)
    plain.build(pixels.shape)
    ours.build(pixels.shape)
    plain.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(pixels), plain(pixels / 255), rtol=1e-4, atol=1e-5)


def test_the_network_lists_every_variable_and_gradients_reach_them():
    model = actor_critic(mnih_2013(), 6)
    spec = tensor_spec.from_spec(ColourBandit().observation_spec())
    network = ActorCriticNetwork(spec, model)
    network.create_variables()
    assert len(network.trainable_variables) == 10
    screens = np.random.default_rng(0).integers(0, 256, (2, 3, 84, 84, 3), dtype=np.uint8)
    with tf.GradientTape() as tape:
        (logits, values), _ = network(screens)
        loss = tf.reduce_sum(tf.nn.log_softmax(logits)[..., 0]) + tf.reduce_sum(values)
    assert logits.shape == (2, 3, 6)
    assert values.shape == (2, 3)
    for gradient in tape.gradient(loss, network.trainable_variables):
        assert np.any(gradient)


def test_network_takes_any_outer_dimensions_and_equals_its_functional_form():
    model = actor_critic(small_encoder(), 3)
    spec = tensor_spec.from_spec(ColourBandit(image_size=16).observation_spec())
    network = ActorCriticNetwork(spec, model)
    screens = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    (logits, values), _ = network(screens)
    (deeper, _), _ = network(screens.reshape(2, 3, 16, 16, 3))
    np.testing.assert_allclose(deeper.numpy().reshape(6, 3), logits, rtol=1e-5)
    parameters = [variable.value for variable in trained_variables(model)]
    for actual, expected in zip(forward(model, parameters, screens), (logits, values)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    doubled = [2 * parameter for parameter in parameters]
    assert not np.allclose(forward(model, doubled, screens)[0], logits)


def test_encoders_with_non_trainable_variables_are_refused():
    screens = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.BatchNormalization()(screens))
    with pytest.raises(ValueError, match="non-trainable variables"):
        actor_critic(keras.Model(screens, features), 4)


def test_training_moves_every_variable_once():
    environment = bandit(copies=4)
    agent = agent_for(environment, small_encoder())
    driven = Driven(environment, agent)
    before = [variable.numpy() for variable in agent.network.trainable_variables]
    info = driven.update()
    assert np.isfinite(info.loss)
    assert info.extra.gradient_norm > 0
    for old, variable in zip(before, agent.network.trainable_variables, strict=True):
        assert np.any(old != variable.numpy())
    assert agent.train_step_counter == 1


def test_sample_weights_are_refused():
    environment = bandit(copies=2)
    driven = Driven(environment, agent_for(environment, small_encoder()))
    with pytest.raises(ValueError, match="no weights"):
        driven.agent.train(driven.buffer.gather_all(), weights=tf.ones(()))


def test_the_agent_learns_the_bandit_under_a_driver():
    environment = bandit()
    agent = agent_for(environment, small_encoder())
    driven = Driven(environment, agent)
    for _ in range(200):
        driven.update()
    best = 4.0  # the reward of four choices, one by chance
    assert driven.returns.result() > 0.9 * best
    greedy = greedy_policy.GreedyPolicy(agent.collect_policy)
    time_step = environment.reset()
    correct = []
    for _ in range(4):
        time_step = environment.step(greedy.action(time_step).action)
        correct.append(time_step.reward)
    assert np.mean(correct) > 0.95


def test_the_agent_makes_the_same_update_as_meta_training():
    """ActorCriticAgent.train and TracedAgent.update on one unroll with ends and cut-offs in it."""
    environment = ColourBandit(copies=3, actions=3, image_size=16)
    graph_environment = tf_py_environment.TFPyEnvironment(environment)
    agent = agent_for(graph_environment, small_encoder())
    model = agent.network.model
    traced = TracedAgent(
        model,
        RMSProp(3e-3, epsilon=1e-5, epsilon_inside_root=True, global_clipnorm=0.5),
        leap_tf.Leap(),
        range(4),
        loss=ActorCriticLoss(),
    )
    rng = np.random.default_rng(0)
    screens = rng.integers(0, 256, (6, 3, 16, 16, 3), dtype=np.uint8)
    actions = rng.integers(0, 3, (6, 3), dtype=np.int32)
    rewards = rng.normal(size=(6, 3)).astype(np.float32)
    discounts = np.ones((6, 3), np.float32)
    step_types = np.full((6, 3), ts.StepType.MID, np.int32)
    step_types[2, 0] = ts.StepType.LAST  # ended
    discounts[1, 0] = 0.0
    step_types[3, 1] = ts.StepType.LAST  # cut off: its discount stays
    step_types[3, 0] = step_types[4, 1] = ts.StepType.FIRST
    state = traced.start([tf.identity(each.value) for each in trained_variables(model)])
    unroll = Unroll(
        [tf.convert_to_tensor(each) for each in screens],
        actions[:-1],
        rewards[:-1],
        discounts[:-1],
        step_types == ts.StepType.LAST,
    )
    experience = trajectory.Trajectory(
        step_types, screens, actions, (), np.roll(step_types, -1, 0), rewards, discounts
    )
    for _ in range(2):  # the second has slots
        state, loss = traced.update(state, [], unroll)
        batch_major = tf.nest.map_structure(lambda each: np.swapaxes(each, 0, 1), experience)
        info = agent.train(tf.nest.map_structure(tf.convert_to_tensor, batch_major))
        np.testing.assert_allclose(info.loss, loss.total, rtol=1e-5)
        np.testing.assert_allclose(info.extra.entropy, loss.entropy, rtol=1e-5)
        for variable, value in zip(trained_variables(model), state.parameters, strict=True):
            np.testing.assert_allclose(variable.value, value, rtol=1e-5, atol=1e-6)


def test_checkpoints_restore_agent_and_optimizer(tmp_path):
    environment = bandit(copies=4)
    keras.utils.set_random_seed(1)
    agent = agent_for(environment, small_encoder())
    driven = Driven(environment, agent)
    driven.update()
    common.Checkpointer(str(tmp_path), agent=agent).save(agent.train_step_counter)
    keras.utils.set_random_seed(2)
    other = agent_for(environment, small_encoder())
    common.Checkpointer(str(tmp_path), agent=other).initialize_or_restore()
    for variable, restored in zip(agent.variables, other.variables, strict=True):
        np.testing.assert_array_equal(variable, restored)
    experience = driven.buffer.gather_all()
    assert agent.train(experience).loss == other.train(experience).loss
    for variable, restored in zip(
        agent.network.variables, other.network.variables, strict=True
    ):  # the slots were restored too, or the step would differ
        np.testing.assert_array_equal(variable, restored)


def test_a_saved_policy_acts_as_before(tmp_path):
    environment = bandit(copies=4)
    agent = agent_for(environment, small_encoder())
    policy_saver.PolicySaver(agent.policy, batch_size=None).save(str(tmp_path))
    time_step = environment.reset()
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(
        loaded.action(time_step).action, agent.policy.action(time_step).action
    )
