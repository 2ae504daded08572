"""How fast agents play and learn. Prints rates and ratios, all measured in one run.

    python benchmarks/atari.py

The unit of work is the same for all: environment steps of 32 copies of a game in unrolls of 5.

    raw         the emulator alone, with actions drawn before: the limit
    visit       the training loop of leap_tf.atari, observed by Leap
    visits      one task run more than cores at the same time, as in a meta-batch; each with one
                emulator thread
    driver      the same agent, without Leap, under TF-Agents' DynamicStepDriver and replay buffer
    cleanrl     with --cleanrl: CleanRL's PPO loop as A2C, with the same network, see
                cleanrl_turns.py. ppo_atari.py wraps the emulator in Python,
                ppo_atari_envpool.py uses a vector environment in C++, envpool

Contenders take turns within each round, so a busy machine slows all of them. The median over the
rounds is reported, with the range. On a machine that does nothing else, and with perfect overlap,
the ratio of wall times would be that of the CPU times of all threads.
"""

import argparse
import collections
import os
import pathlib
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import leap_tf
from leap_tf.training import available_cores

leap_tf.configure_threads()

import keras
import numpy as np
from tf_agents.drivers import dynamic_step_driver
from tf_agents.environments import tf_py_environment
from tf_agents.replay_buffers import tf_uniform_replay_buffer
from tf_agents.utils import common

from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    RMSProp,
    actor_critic,
    mnih_2013,
    trained_variables,
)
from leap_tf.atari.environments import AtariEnvironment
from leap_tf.atari.inner_loop import TracedAgent, UnrollCollector
from leap_tf.atari.tf_agents import ActorCriticAgent

COPIES, UNROLL = 32, 5


class Raw:
    """The emulator alone."""

    runs = 1

    def __init__(self, game):
        self._environment = AtariEnvironment(game, COPIES, emulator_threads=available_cores())
        self._environment.reset()
        random = np.random.default_rng(0)
        self._actions = random.integers(
            0, self._environment.actions, (1000, COPIES), dtype=np.int32
        )

    def run(self, updates):
        for actions in self._actions[: updates * UNROLL]:
            self._environment.play(actions)


class TaskRuns:
    """The training loop, once or several times at a time."""

    def __init__(self, game, threads, runs=1):
        self.runs = runs
        playing = [AtariEnvironment(game, COPIES, emulator_threads=threads) for _ in range(runs)]
        self._agent = traced_agent(playing[0], leap_tf.Leap())
        self._collectors = [UnrollCollector(each, self._agent, UNROLL, seed=0) for each in playing]
        self._states = [self._agent.start(parameters_of(self._agent)) for _ in playing]
        self._threads = ThreadPoolExecutor(runs)

    def run(self, updates):
        list(self._threads.map(self._train, range(self.runs), [updates] * self.runs))

    def _train(self, index, updates):
        for _ in range(updates):
            unroll, _ = self._collectors[index].collect(self._states[index].parameters)
            self._states[index], loss = self._agent.update(self._states[index], [], unroll)
            float(loss.total)


def traced_agent(environment, learner):
    encoder = mnih_2013()
    observed = range(len(encoder.trainable_variables))
    model = actor_critic(encoder, environment.actions)
    return TracedAgent(model, RMSProp(), learner, observed, loss=ActorCriticLoss())


def parameters_of(agent):
    return [variable.value + 0 for variable in trained_variables(agent.model)]


class Driver:
    """The agent under DynamicStepDriver, as in the examples of TF-Agents."""

    runs = 1

    def __init__(self, game):
        environment = tf_py_environment.TFPyEnvironment(
            AtariEnvironment(game, COPIES, emulator_threads=available_cores())
        )
        actions = environment.action_spec().maximum + 1
        self._agent = ActorCriticAgent(
            environment.time_step_spec(),
            environment.action_spec(),
            actor_critic(mnih_2013(), actions),
            RMSProp(),
            unroll=UNROLL,
        )
        self._buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(
            self._agent.collect_data_spec, COPIES, max_length=UNROLL + 1
        )
        self._driver = dynamic_step_driver.DynamicStepDriver(
            environment,
            self._agent.collect_policy,
            observers=[self._buffer.add_batch],
            num_steps=UNROLL * COPIES,
        )
        self._driver.run = common.function(self._driver.run)
        self._driver.run()
        self._train = common.function(self._agent.train)

    def run(self, updates):
        for _ in range(updates):
            self._driver.run()
            float(self._train(self._buffer.gather_all()).loss)


class CleanRL:
    """A script of CleanRL, in a process of its own that waits between its turns."""

    runs = 1

    def __init__(self, python, script, environment):
        turns = pathlib.Path(__file__).with_name("cleanrl_turns.py").resolve()
        self._process = subprocess.Popen(
            [python, str(turns), str(script), environment],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.cpu_seconds = 0.0

    def run(self, updates):
        print(updates, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args} ended.")
        self.cpu_seconds += float(answer.split()[1])

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def cpu_seconds(contender):
    """Returns the CPU time so far of the process in which a contender runs."""
    return contender.cpu_seconds if isinstance(contender, CleanRL) else time.process_time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=20, help="of each contender in a round")
    parser.add_argument("--cleanrl", type=pathlib.Path, help="a checkout of CleanRL")
    parser.add_argument("--cleanrl_python", help="the Python of its environment")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    game, cores = arguments.game, available_cores()
    contenders = {
        "raw": Raw(game),
        "visit": TaskRuns(game, threads=cores),
        "visits": TaskRuns(game, threads=1, runs=cores + 1),
        "driver": Driver(game),
    }
    if arguments.cleanrl:
        name = game.title().replace("_", "")
        for script, environment in (
            ("ppo_atari", f"{name}NoFrameskip-v4"),
            ("ppo_atari_envpool", f"{name}-v5"),
        ):
            path = arguments.cleanrl / "cleanrl" / f"{script}.py"
            contenders[script] = CleanRL(arguments.cleanrl_python, path, environment)
    wall, cpu = ({name: [] for name in contenders} for _ in range(2))
    for index in range(arguments.rounds + 1):
        for name, contender in contenders.items():
            started, started_cpu = time.perf_counter(), cpu_seconds(contender)
            contender.run(arguments.updates)
            steps = contender.runs * arguments.updates * UNROLL * COPIES
            if index:  # the first round is for warming up
                wall[name].append((time.perf_counter() - started) / steps)
                cpu[name].append((cpu_seconds(contender) - started_cpu) / steps)
    print(f"{game}, {COPIES} copies, {cores} cores; median of {arguments.rounds} rounds (range)")
    for name in contenders:
        line("environment steps/s", name, [1 / value for value in wall[name]], "{:8.0f}")
    for name in contenders:
        if name != "raw":
            rates = [1 / (value * UNROLL * COPIES) for value in wall[name]]
            line("updates/s", name, rates, "{:8.2f}")
    for name in contenders:
        line("CPU ms a step", name, [1e3 * value for value in cpu[name]], "{:8.3f}")
    for name in list(contenders)[1:]:
        line("(a) of the raw emulator, wall", name, ratios(wall["raw"], wall[name]), "{:8.3f}")
        line("(a) of the raw emulator, CPU", name, ratios(cpu["raw"], cpu[name]), "{:8.3f}")
    ours = ("visit", "visits")
    for other in [name for name in contenders if name not in ("raw", *ours)]:
        for name in ours:
            what = f"(b) speed over {other}"
            line(f"{what}, wall", name, ratios(wall[other], wall[name]), "{:8.3f}")
            line(f"{what}, CPU", name, ratios(cpu[other], cpu[name]), "{:8.3f}")
    for contender in contenders.values():
        if isinstance(contender, CleanRL):
            contender.close()
    print("CPU ms of an update, alone and one after the other; median (range)")
    for name, values in parts(game, arguments.rounds).items():
        line("CPU ms an update", name, values, "{:8.2f}")


def parts(game, rounds, repeats=10):
    """Returns the CPU milliseconds of each part of an update, one value per round."""
    environment = AtariEnvironment(game, COPIES, emulator_threads=1)
    agents = {
        "Leap": traced_agent(environment, leap_tf.Leap()),
        "no path": traced_agent(environment, leap_tf.NoMetaLearning()),
    }
    parameters = parameters_of(agents["Leap"])
    unroll, _ = UnrollCollector(environment, agents["Leap"], UNROLL, seed=0).collect(parameters)
    states = {name: agent.start(parameters) for name, agent in agents.items()}
    noise = np.zeros((COPIES, environment.actions), np.float32)
    actions = np.zeros(COPIES, np.int32)

    def update(name):
        return float(agents[name].update(states[name], [], unroll)[1].total)

    work = {
        "5 steps of the emulator": (UNROLL, lambda: environment.play(actions)),
        "acting, 5 times": (
            UNROLL,
            lambda: agents["Leap"].act(parameters, unroll.screens[0], noise).numpy(),
        ),
        "update, Leap watching": (1, lambda: update("Leap")),
        "update, no path": (1, lambda: update("no path")),
    }
    found = collections.defaultdict(list)
    for index in range(rounds + 1):
        for name, (times, function) in work.items():
            started = time.process_time()
            for _ in range(times * repeats):
                function()
            if index:  # the first round is for warming up
                found[name].append(1e3 * (time.process_time() - started) / repeats)
    return found


def ratios(one, other):
    return [a / b for a, b in zip(one, other)]


def line(what, name, values, form):
    found = statistics.median(values), min(values), max(values)
    median, low, high = (form.format(value).strip() for value in found)
    print(f"{what + ', ' + name:52} {median:>9}   ({low}–{high})")


if __name__ == "__main__":
    main()
