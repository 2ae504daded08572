"""One visit to a game: act for some steps, learn from them, and so on.

    for each update:
        for each of T steps, for each group:  act ── send the actions ── (the emulator works)
        update the parameters on all that happened

The visit starts with a seeded reset and its random numbers come from the same seed, so it is a
function of parameters and seed, whatever the environments were used for before.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tf_agents.trajectories import time_step as ts

from leap_tf.atari.screen_environment import Episode, ScreenEnvironment
from leap_tf.atari.traced_agent import AgentState, Report, TracedAgent, Unroll


class VisitStoppedError(RuntimeError):
    """A visit was asked to end, because the program is.

    Args:
        game: which was left.
        updates: made until then.
    """

    def __init__(self, game: str, updates: int):
        super().__init__(game, updates)

    def __str__(self):
        game, updates = self.args
        return f"{game} was left after {updates} updates."


class Update(NamedTuple):
    """An update, and the unroll that caused it.

    Attributes:
        state: the agent after it.
        report: of the unroll, before it; None without learning.
        reward: clipped, mean per step of a copy.
        raw_reward: the same, not clipped.
    """

    state: AgentState
    report: Report | None
    reward: float
    raw_reward: float


class Visit(NamedTuple):
    """What came of it. An update is that of T steps of B copies.

    Attributes:
        state: the agent after the last update.
        losses, entropies: [updates] float32, of each unroll before the update it caused; empty
            without learning.
        rewards: [updates] float32, clipped, mean per step of a copy.
        raw_rewards: [updates] float32, the same, not clipped.
        episodes: games that ended, in order, with the steps of a copy until then.
        seconds: what all this took, the reset before it left out.
    """

    state: AgentState
    losses: np.ndarray
    entropies: np.ndarray
    rewards: np.ndarray
    raw_rewards: np.ndarray
    episodes: list[Episode]
    seconds: float


def visit(
    environments: Sequence[ScreenEnvironment],
    agent: TracedAgent,
    parameters: list[tf.Tensor],
    own: Sequence[tf.Tensor],
    updates: int,
    unroll: int,
    seed: int,
    learning: bool = True,
    watch: Callable[[int], None] | None = None,
) -> Visit:
    """Plays and learns.

    Args:
        environments: groups of copies of one game; they are reset first.
        agent: acts and learns.
        parameters: where it starts.
        own: values of the learner's own variables.
        updates: how many updates to make.
        unroll: steps of each copy between them, T.
        seed: of the draws of actions.
        learning: whether it learns; if not, the parameters stay.
        watch: called after every update with how many there were. What it raises ends the visit.
    """
    steps = [environment.reset() for environment in environments]
    started = time.perf_counter()
    state = agent.start(parameters)
    reports, rewards, raw_rewards = [], [], []
    random = np.random.default_rng(seed)
    train = train_on(environments, steps, agent, state, own, unroll, random, learning)
    for done, update in enumerate(itertools.islice(train, updates), start=1):
        state = update.state
        if update.report:
            reports.append((float(update.report.loss), float(update.report.entropy)))
        rewards.append(update.reward)
        raw_rewards.append(update.raw_reward)
        if watch:
            watch(done)
    losses, entropies = np.array(reports, np.float32).reshape(-1, 2).T
    episodes = [episode for environment in environments for episode in environment.take_episodes()]
    return Visit(
        state,
        losses,
        entropies,
        np.array(rewards, np.float32),
        np.array(raw_rewards, np.float32),
        sorted(episodes, key=lambda episode: episode.steps),
        time.perf_counter() - started,
    )


def train_on(
    environments: Sequence[ScreenEnvironment],
    steps: list[ts.TimeStep],
    agent: TracedAgent,
    state: AgentState,
    own: Sequence[tf.Tensor],
    unroll: int,
    random: np.random.Generator,
    learning: bool = True,
) -> Iterator[Update]:
    """Yields one update after the other, without end.

    Args:
        environments: groups of copies of one game.
        steps: where each group is; moved on in place.
        agent: acts and learns.
        state: where it starts.
        own: values of the learner's own variables.
        unroll: steps of each copy between two updates.
        random: the source of the noise that draws actions.
        learning: whether it learns; if not, the state stays.
    """
    while True:
        played, raw_reward = play(environments, steps, agent, state.parameters, unroll, random)
        report = None
        if learning:
            state, report = agent.update(state, own, played)
        yield Update(state, report, float(played.rewards.mean()), raw_reward)


def play(
    environments: Sequence[ScreenEnvironment],
    steps: list[ts.TimeStep],
    agent: TracedAgent,
    parameters: list[tf.Tensor],
    unroll: int,
    random: np.random.Generator,
) -> tuple[Unroll, float]:
    """Acts for `unroll` steps.

    While one group's emulator threads work, the actions of the next group are chosen.

    Args:
        environments: groups of copies.
        steps: where each group is; moved on in place.
        agent: acts.
        parameters: of the agent.
        unroll: how many steps.
        random: the source of the noise that draws actions.

    Returns:
        What happened, and the mean raw reward per step of a copy.
    """
    screens, actions, history = [], [], []
    raw = 0.0
    # Drawn for all groups at once, so that it does not depend on how many there are.
    copies = [environment.batch_size for environment in environments]
    shape = (unroll, sum(copies), environments[0].actions)
    noise = np.split(random.gumbel(size=shape).astype(np.float32), np.cumsum(copies)[:-1], axis=1)
    for t in range(unroll):
        for group, environment in enumerate(environments):
            if t:
                steps[group] = environment.receive()
                raw += environment.raw_reward.sum()
            screens.append(tf.convert_to_tensor(steps[group].observation))
            chosen = agent.act(parameters, screens[-1], noise[group][t]).numpy()
            environment.send(chosen)
            actions.append(chosen)
        history.append(_joined(steps))
    for group, environment in enumerate(environments):
        steps[group] = environment.receive()
        raw += environment.raw_reward.sum()
        screens.append(tf.convert_to_tensor(steps[group].observation))
    history.append(_joined(steps))
    step_types, rewards, discounts = (np.stack(parts) for parts in zip(*history))
    return (
        Unroll(
            screens,
            np.concatenate(actions).reshape(unroll, -1),
            rewards[1:],
            discounts[1:],
            step_types == ts.StepType.LAST,
        ),
        raw / rewards[1:].size,
    )


def _joined(steps):
    """Step types, rewards and discounts of all groups at one time."""
    return [
        np.concatenate(parts)
        for parts in zip(*((step.step_type, step.reward, step.discount) for step in steps))
    ]
