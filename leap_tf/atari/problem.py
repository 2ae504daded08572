"""Games as tasks of meta-learning: the problem that `MetaTrainer` meta-learns an encoder on.

A task run is the training of one agent on one game. It starts from the encoder's present values,
with new heads unless these are learned too, and changes no variable, so any number of threads can
use one problem. It begins with a seeded reset and derives all random numbers from its seed, so it
is a function of the encoder and the seed, and checkpoints hold nothing of the environments.
"""

import collections
import contextlib
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.atari.actor_critic import (
    ActorCriticLoss,
    actor_critic,
    encoder_of,
    fresh_heads,
    trained_variables,
)
from leap_tf.atari.environments import ScreenEnvironment, check_game, plain_name
from leap_tf.atari.evaluation import CURVES, GameEvaluation, GameEvaluations
from leap_tf.atari.inner_loop import AgentState, TracedAgent, UnrollCollector
from leap_tf.errors import LeapError, whole_number
from leap_tf.functional import check_optimizer
from leap_tf.learners import (
    JointTraining,
    Leap,
    Learner,
    MeasuredAdaptation,
    TaskEnd,
    TrainingPlan,
    TrainingSetup,
)
from leap_tf.training import TaskGradient, TaskSampler, TaskSpec


class EnvironmentPool:
    """Environments of all games, created when a game is first played and then kept for reuse.

    Creating an environment takes seconds. Threads that play at the same time have different ones.
    Every use starts with a seeded reset, so results do not depend on which one a thread gets.
    `make_environment` is called as make_environment(game=name).
    """

    def __init__(self, make_environment: Callable[..., ScreenEnvironment]):
        self._make_environment = make_environment
        self._idle: dict[str, list[ScreenEnvironment]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, game: str, seed: int) -> Iterator[ScreenEnvironment]:
        """Lends an environment of a game until the block ends. Copy i is reset with seed + i."""
        with self._lock:
            idle = self._idle[game]
            environment = idle.pop() if idle else None
        environment = environment or self._make_environment(game=game)
        environment.seed(seed)
        yield environment
        # After an error the environment may be broken, so it is not reused.
        with self._lock:
            self._idle[game].append(environment)


@dataclasses.dataclass(frozen=True)
class Game:
    """A game as a task, by its name. Raises as `check_game`."""

    name: str

    def __post_init__(self):
        check_game(self.name)


def games(names: list[str]) -> list[Game]:
    """Returns the games of these names; raises ValueError if one is unknown or given twice."""
    plain = [plain_name(name) for name in names]
    repeated = sorted({name for name in plain if plain.count(name) > 1})
    if repeated:
        raise ValueError(f"Games are given more than once: {', '.join(repeated)}.")
    return [Game(name) for name in names]


class Progress(NamedTuple):
    """State of a task run: updates made, those it will have in the end, and frames so far."""

    game: str
    update: int
    updates: int
    frames: int


class TaskRunStoppedError(LeapError, RuntimeError):
    """A task run was asked to stop."""

    def __init__(self, progress: Progress):
        game, update, *_ = progress
        super().__init__(f"Training on {game} was stopped after {update} updates.")


OnUpdate = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class TrainedGame(TaskGradient):
    """Contribution of a task run to the meta-gradient, with the evaluation of the run."""

    evaluation: GameEvaluation = dataclasses.field(kw_only=True)


class AtariProblem:
    """Trains and evaluates actor-critic agents on games, from a common encoder.

    `MetaTrainer.from_problem(problem)` meta-learns the encoder. A task is a `Game`; its steps are
    updates, each from an unroll of all copies.

    Args:
        encoder: a built Keras model from screens to [batch, features], without non-trainable
            variables. Every task run puts new heads on it. If it is an `actor_critic`, its heads
            are meta-learned too, and all games must have as many actions as it has.
        inner_optimizer: the Keras optimizer of an agent, in its initial state for every task run.
        meta_optimizer: the Keras optimizer that moves the encoder, not used before.
        environment_pool: lends the environments.
        learner: the meta-learner; `Leap()` by default. A copy of it is built for this encoder.
        loss: weights of the agent's loss.
        steps_per_task: updates per task run.
        meta_batch_size: games per meta-step.
        unroll: steps of each copy between two updates.
        value_gain: Euclidean norm of a fresh value head's weights, at least 0. In short task runs,
            the random values of fresh heads mainly teach the encoder to make its features small.
        on_result: called with the `TrainedGame` of every task run of training, in order.
        on_update: called after every update of training, on the thread that trains. An exception
            that it raises ends the task run.
        seed: seed for all random numbers except the encoder's initial weights.

    Raises:
        TypeError, ValueError: the encoder, the learner, an optimizer or a number cannot be used.
    """

    gradient_type = TrainedGame
    evaluation_type = GameEvaluation

    def __init__(
        self,
        encoder: keras.Model,
        inner_optimizer: keras.optimizers.Optimizer,
        meta_optimizer: keras.optimizers.Optimizer,
        environment_pool: EnvironmentPool,
        *,
        learner: Learner | None = None,
        loss: ActorCriticLoss | None = None,
        steps_per_task: int = 600,
        meta_batch_size: int = 4,
        unroll: int = 5,
        value_gain: float = 1.0,
        on_result: Callable[[TrainedGame], None] | None = None,
        on_update: OnUpdate | None = None,
        seed: int = 0,
    ):
        if not value_gain >= 0:
            raise ValueError(f"value_gain must be at least 0. Received: {value_gain}.")
        check_optimizer(inner_optimizer, role="inner_optimizer")
        self.setup = TrainingSetup(
            model=encoder,
            inner_optimizer=inner_optimizer,
            meta_optimizer=meta_optimizer,
            steps_per_task=whole_number("steps_per_task", steps_per_task, 1),
            meta_batch_size=whole_number("meta_batch_size", meta_batch_size, 1),
        )
        self.learner = copy.copy(learner) if learner else Leap()
        self.plan = _plan(self.learner, self.setup)
        self.sampler = TaskSampler(self.plan, meta_batch_size, whole_number("seed", seed, 0))
        self.encoder = encoder
        self.environment_pool = environment_pool
        self.unroll = whole_number("unroll", unroll, 1)
        self._has_heads = encoder_of(encoder) is not encoder
        self._shared = (
            trained_variables(encoder) if self._has_heads else list(encoder.trainable_variables)
        )
        self.learner_variables = self.learner.build(self._shared)
        self.meta_variables = [*self._shared, *self.learner_variables]
        self.state_variables: list[keras.Variable] = []
        self.variables = self.meta_variables
        self.on_result = on_result
        self.stop_requested: Callable[[], bool] = lambda: False
        self._value_gain = value_gain
        self._loss = loss or ActorCriticLoss()
        self._on_update = on_update
        self._agents: dict[tuple[int, bool], TracedAgent] = {}
        self._building = threading.Lock()

    def get_config(self) -> dict[str, Any]:
        loss = dataclasses.asdict(self._loss)
        return {"loss": loss, "unroll": self.unroll, "value_gain": self._value_gain}

    def train(self, spec: TaskSpec) -> TrainedGame:
        """Trains an agent, and returns the learner's meta-gradient and the evaluation."""
        game = self.sampler.resolve(spec).name
        options = {"on_update": self._after_update}
        agent, start, state, evaluation = self._run(game, spec.seed, spec.steps, **options)
        end = TaskEnd(agent.meta_learned(start), agent.meta_learned(state.parameters), ())
        update = self.learner.end_task(state.memory, end)
        numbers = [evaluation.losses, *state.parameters, *update.meta_gradient]
        return TrainedGame(
            meta_gradient=update.meta_gradient,
            metrics={
                "loss": float(evaluation.losses.mean()),
                "final_loss": float(evaluation.losses[-1]),
                "entropy": float(evaluation.entropies.mean()),
                "reward": evaluation.area_under_reward,
                "final_reward": evaluation.final_reward,
                "gradient_steps": evaluation.updates,
                **{name: float(value) for name, value in update.metrics.items()},
            },
            finite=all(bool(np.all(np.isfinite(number))) for number in numbers),
            evaluation=evaluation,
        )

    def evaluate(self, spec: TaskSpec) -> GameEvaluation:
        """Trains an agent without a meta-gradient, and returns the evaluation."""
        return self.adapt(self.sampler.resolve(spec).name, spec.seed, spec.steps)[0]

    def summarize(self, results: Sequence[GameEvaluation]) -> GameEvaluations:
        return GameEvaluations(tuple(results))

    def adapt(
        self,
        game: str,
        seed: int,
        steps: int,
        *,
        learning: bool = True,
        encoder: Sequence[np.ndarray] | None = None,
        on_update: OnUpdate | None = None,
    ) -> tuple[GameEvaluation, list[tf.Tensor]]:
        """Trains an agent on a game, and returns the evaluation and the trained agent.

        Without `learning`, the agent keeps its initial, nearly random policy: the control.
        `encoder` has initial values of an encoder without heads, in place of the present ones.
        `on_update` is as in the constructor, for this task run. The agent is returned as the values
        of `trained_variables`, from which `trained_agent` builds a model.
        """
        options = {"learning": learning, "encoder": encoder, "on_update": on_update}
        _, _, state, evaluation = self._run(game, seed, steps, evaluating=True, **options)
        length, energy = float(state.memory.length), float(state.memory.energy)
        evaluation = dataclasses.replace(evaluation, path_length=length, path_energy=energy)
        return evaluation, state.parameters

    def _run(
        self, game, seed, steps, *, evaluating=False, learning=True, encoder=None, on_update=None
    ) -> tuple[TracedAgent, list[tf.Tensor], AgentState, GameEvaluation]:
        """Returns the agent, its initial parameters, its final state and the evaluation."""
        game_seed, head_seed, action_seed = (
            int(number) for number in np.random.default_rng(seed).integers(2**30, size=3)
        )
        values = encoder or [variable.value for variable in self._shared]
        learner_values = [tf.convert_to_tensor(each.value) for each in self.learner_variables]
        curves: dict[str, Any] = {name: [] for name in CURVES}
        with self.environment_pool.borrow(game, game_seed) as environment:
            agent = self._agent(environment.actions, evaluating)
            start = [tf.convert_to_tensor(value) for value in values]
            if len(start) < len(trained_variables(agent.model)):
                start += fresh_heads(agent.model, head_seed, self._value_gain)
            copies, frame_skip = environment.batch_size, environment.frame_skip
            frames_per_update = self.unroll * copies * frame_skip
            collector = UnrollCollector(environment, agent, self.unroll, action_seed)
            started = time.perf_counter()
            state = agent.start(start)
            for update in range(1, steps + 1):
                unroll, raw_reward = collector.collect(state.parameters)
                if learning:
                    state, loss = agent.update(state, learner_values, unroll)
                    curves["losses"].append(float(loss.total))
                    curves["entropies"].append(float(loss.entropy))
                curves["rewards"].append(float(unroll.rewards.mean()))
                curves["raw_rewards"].append(raw_reward)
                if on_update:
                    on_update(Progress(game, update, steps, update * frames_per_update))
            episodes = environment.take_episodes()
            seconds = time.perf_counter() - started
        curves = {name: np.array(values, np.float32) for name, values in curves.items()}
        evaluation = GameEvaluation(
            game=game,
            seed=seed,
            copies=copies,
            frames_per_update=frames_per_update,
            frame_skip=frame_skip,
            **curves,
            episodes=tuple(sorted(episodes, key=lambda episode: episode.steps)),
            seconds=seconds,
        )
        return agent, start, state, evaluation

    def _agent(self, actions: int, evaluating: bool) -> TracedAgent:
        with self._building:
            if (actions, evaluating) not in self._agents:
                model = self.encoder if self._has_heads else actor_critic(self.encoder, actions)
                if model.outputs[0].shape[-1] != actions:
                    raise ValueError(
                        f"The heads have {model.outputs[0].shape[-1]} actions, and a game "
                        f"{actions}. Learned heads need games with equal numbers of actions."
                    )
                shared = range(len(self._shared))
                learner = MeasuredAdaptation(self.learner, shared) if evaluating else self.learner
                observed = range(len(trained_variables(model))) if evaluating else shared
                self._agents[actions, evaluating] = TracedAgent(
                    model, self.setup.inner_optimizer, learner, observed, loss=self._loss
                )
            return self._agents[actions, evaluating]

    def _after_update(self, progress: Progress) -> None:
        if self.stop_requested():
            raise TaskRunStoppedError(progress)
        if self._on_update:
            self._on_update(progress)


def _plan(learner: Learner, setup: TrainingSetup) -> TrainingPlan:
    """Returns the learner's plan, which must train the encoder itself on games."""
    name = type(learner).__name__
    if learner.query_batches or learner.second_order:
        raise ValueError(
            f"{name} needs query batches, which games do not have. Use Leap, Reptile, "
            "NoMetaLearning or another learner without query batches."
        )
    plan = None
    try:
        plan = None if isinstance(learner, JointTraining) else learner.plan(setup)
    except ValueError as error:
        if "task_layers" not in str(error):
            raise
    if plan is None or [*plan.models, plan.evaluation_model] != 2 * [setup.model]:
        raise ValueError(
            f"{name} trains models or mixtures of its own, which cannot act in games. To finetune "
            "one encoder on game after game, use SequentialLearner with meta_optimizer=SGD(1.0) "
            "and meta_batch_size=1."
        )
    return plan
