"""Games as tasks of meta-learning: one task run, and the trainer that meta-learns the encoder.

A task run is the training of one agent on one game. It starts from the encoder's present values
with new heads and changes no variable, so any number of threads can use one runner. It begins with
a seeded reset and derives all random numbers from its seed, so it is a function of the encoder and
the seed. Checkpoints therefore hold nothing of the environments.
"""

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from leap_tf.atari.actor_critic import ActorCriticLoss, actor_critic, fresh_heads, trained_variables
from leap_tf.atari.environments import EnvironmentPool
from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations
from leap_tf.atari.inner_loop import AgentState, TracedAgent, UnrollCollector
from leap_tf.errors import whole_number
from leap_tf.learners import Adaptation, Leap, Learner, TaskEnd
from leap_tf.serialization import Parts, UnfitPartsError
from leap_tf.training import (
    MetaLoop,
    SeededTask,
    TaskPool,
    ThreadPool,
    TrainedTask,
    available_cores,
)


class TaskRunStoppedError(RuntimeError):
    """A task run was asked to stop.

    Args:
        game: name of the game.
        updates: number of updates before the stop.
    """

    def __init__(self, game: str, updates: int):
        super().__init__(game, updates)

    def __str__(self):
        game, updates = self.args
        return f"Training on {game} was stopped after {updates} updates."


class Progress(NamedTuple):
    """State of a task run: updates made, those it will have in the end, and frames so far."""

    game: str
    update: int
    updates: int
    frames: int


OnUpdate = Callable[[Progress], None]
Reporter = Callable[[GameEvaluation], None]


@dataclasses.dataclass(frozen=True)
class TrainedGame(TrainedTask):
    """Contribution of a task run to the meta-gradient, with its evaluation.

    Attributes:
        evaluation: rewards, losses and scores of the run.
    """

    evaluation: GameEvaluation = dataclasses.field(kw_only=True)

    def parts(self) -> Parts:
        trained, evaluation = super().parts(), self.evaluation.parts()
        arrays = {f"evaluation_{name}": array for name, array in evaluation.arrays.items()}
        plain = {**trained.plain, "evaluation": evaluation.plain}
        return Parts(plain, {**trained.arrays, **arrays})

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        meta_variables: Sequence[keras.Variable],
        lasting_state: Sequence[keras.Variable],
    ) -> "TrainedGame":
        plain = parts.plain.get("evaluation")
        if not isinstance(plain, dict):
            raise UnfitPartsError("The result has no evaluation.")
        prefix = "evaluation_"
        names = {name for name in parts.arrays if name.startswith(prefix)}
        arrays = {name.removeprefix(prefix): parts.arrays[name] for name in names}
        others = {name: parts.arrays[name] for name in parts.arrays if name not in names}
        trained = TrainedTask.from_parts(Parts(parts.plain, others), meta_variables, lasting_state)
        return cls(
            trained.meta_gradient,
            trained.metrics,
            trained.finite,
            trained.state,
            evaluation=GameEvaluation.from_parts(Parts(plain, arrays)),
        )


class AtariTaskRunner:
    """Trains agents on single games, from the encoder's present weights.

    A task is a `Game`; its steps are updates, each from an unroll of all copies.

    Args:
        encoder, inner_optimizer, learner, environment_pool, loss, unroll, value_gain: as for
            `AtariTrainer`.
        on_update: called after every update of `train`, on the thread that trains. An exception
            that it raises ends the task run.

    Attributes:
        meta_variables: the encoder's variables, then the learner's own.
        learner_variables: the learner's own variables.
        lasting_state: empty; the encoder has no non-trainable variables.

    Raises:
        TypeError: `unroll` is not an integer.
        ValueError: the learner does not work with games, `value_gain` is negative or `unroll` is
            below 1.
    """

    def __init__(
        self,
        encoder: keras.Model,
        inner_optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        environment_pool: EnvironmentPool,
        *,
        loss: ActorCriticLoss | None = None,
        unroll: int = 5,
        value_gain: float = 1.0,
        on_update: OnUpdate | None = None,
    ):
        _check_learner(learner)
        if not value_gain >= 0:
            raise ValueError(f"value_gain is a norm, at least 0, and is {value_gain}.")
        self.encoder = encoder
        self.environment_pool = environment_pool
        self.unroll = whole_number("unroll", unroll, 1)
        self.learner_variables = learner.build(list(encoder.trainable_variables))
        self.lasting_state: list[keras.Variable] = []
        self.meta_variables = [*encoder.trainable_variables, *self.learner_variables]
        self._optimizer = inner_optimizer
        self._learner = learner
        self._value_gain = value_gain
        self._loss = loss or ActorCriticLoss()
        self._on_update = on_update
        self._agents: dict[tuple[int, bool], TracedAgent] = {}
        self._building = threading.Lock()

    def train(self, seeded: SeededTask) -> TrainedGame:
        """Trains an agent, and returns the learner's meta-gradient and the evaluation."""
        agent, start, state, evaluation = self._run(
            seeded.task.name, seeded.seed, seeded.steps, on_update=self._on_update
        )
        end = TaskEnd(agent.meta_learned(start), agent.meta_learned(state.parameters), ())
        update = self._learner.end_task(state.memory, end)
        numbers = [evaluation.losses, *update.meta_gradient]
        return TrainedGame(
            meta_gradient=update.meta_gradient,
            metrics={
                "loss": float(evaluation.losses.mean()),
                "final_loss": float(evaluation.losses[-1]),
                "entropy": float(evaluation.entropies.mean()),
                "reward": evaluation.area_under_reward,
                "final_reward": evaluation.final_reward(),
                "gradient_steps": evaluation.updates,
                **{name: float(value) for name, value in update.metrics.items()},
            },
            finite=all(bool(np.all(np.isfinite(number))) for number in numbers),
            evaluation=evaluation,
        )

    def evaluate(self, seeded: SeededTask) -> GameEvaluation:
        """Trains an agent without a meta-gradient, and returns the evaluation."""
        return self.adapt(seeded.task.name, seeded.seed, seeded.steps)[0]

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

        Args:
            game: name of the game.
            seed: seed of the task run.
            steps: number of updates.
            learning: if False, the agent keeps its initial, nearly random policy: the control.
            encoder: initial values in place of the encoder's present ones.
            on_update: as in the constructor, for this task run.

        Returns:
            The evaluation, and the values of `trained_variables`, from which `trained_agent` builds
            a model.
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
        if encoder is None:
            encoder = [variable.value for variable in self.encoder.trainable_variables]
        learner_values = [tf.convert_to_tensor(each.value) for each in self.learner_variables]
        losses, entropies, rewards, raw_rewards = [], [], [], []
        with self.environment_pool.borrow(game, game_seed) as environments:
            agent = self._agent(environments[0].actions, evaluating)
            start = [
                *(tf.convert_to_tensor(value) for value in encoder),
                *fresh_heads(agent.model, head_seed, self._value_gain),
            ]
            copies = sum(environment.batch_size for environment in environments)
            frame_skip = environments[0].frame_skip
            frames_per_update = self.unroll * copies * frame_skip
            collector = UnrollCollector(environments, agent, self.unroll, action_seed)
            started = time.perf_counter()
            state = agent.start(start)
            for update in range(1, steps + 1):
                unroll, raw_reward = collector.collect(state.parameters)
                if learning:
                    state, loss = agent.update(state, learner_values, unroll)
                    losses.append(float(loss.total))
                    entropies.append(float(loss.entropy))
                rewards.append(float(unroll.rewards.mean()))
                raw_rewards.append(raw_reward)
                if on_update:
                    on_update(Progress(game, update, steps, update * frames_per_update))
            episodes = [episode for each in environments for episode in each.take_episodes()]
            seconds = time.perf_counter() - started
        evaluation = GameEvaluation(
            game=game,
            seed=seed,
            copies=copies,
            frames_per_update=frames_per_update,
            frame_skip=frame_skip,
            losses=np.array(losses, np.float32),
            entropies=np.array(entropies, np.float32),
            rewards=np.array(rewards, np.float32),
            raw_rewards=np.array(raw_rewards, np.float32),
            episodes=tuple(sorted(episodes, key=lambda episode: episode.steps)),
            seconds=seconds,
        )
        return agent, start, state, evaluation

    def _agent(self, actions: int, evaluating: bool) -> TracedAgent:
        with self._building:
            if (actions, evaluating) not in self._agents:
                model = actor_critic(self.encoder, actions)
                shared = range(len(self.encoder.trainable_variables))
                learner = Adaptation(self._learner, shared) if evaluating else self._learner
                observed = range(len(trained_variables(model))) if evaluating else shared
                self._agents[actions, evaluating] = TracedAgent(
                    model, self._optimizer, learner, observed, loss=self._loss
                )
            return self._agents[actions, evaluating]


def _check_learner(learner: Learner) -> None:
    name = type(learner).__name__
    if learner.query_batches or learner.second_order:
        raise ValueError(
            f"{name} needs query batches, which games do not have. Use Leap, Reptile, "
            "PlainTraining or another learner without query batches."
        )
    if type(learner).training_models is not Learner.training_models:
        raise ValueError(
            f"{name} trains models of its own, which cannot act in games. To finetune one encoder "
            "on game after game, use SequentialLearner with meta_optimizer=SGD(1.0) and "
            "meta_batch_size=1."
        )


class AtariTrainer(MetaLoop):
    """Meta-learns the encoder of actor-critic agents, and evaluates it.

    Args:
        encoder: a built Keras model from screens to [batch, features], without non-trainable
            variables.
        inner_optimizer: the Keras optimizer of an agent, in its initial state for every task run.
        meta_optimizer: the Keras optimizer that moves the encoder, not used before.
        environment_pool: lends the environments.
        learner: the meta-learner; `Leap()` by default.
        loss: weights of the agent's loss.
        steps_per_task: updates per task run.
        meta_batch_size: games per meta-step.
        parallel_games: number of games played at the same time; by default one more than there are
            cores, since a game sometimes waits for its emulator. Call
            `leap_tf.one_thread_per_task()` before anything else. Results do not depend on it.
        unroll: steps of each copy between two updates.
        value_gain: Euclidean norm of a fresh value head's weights, at least 0. In short task runs,
            the random values of fresh heads mainly teach the encoder to make its features small.
        report: called with the evaluation of every task run of training, in order.
        on_update: called after every update of training, on the thread that trains.
        seed: seed for all random numbers except the encoder's initial weights.
        tolerated_failures: fraction of a meta-batch that may raise. The meta-step continues without
            these games and counts them as `tasks_failed`. By default the first failure ends `fit`.
        pool: runs the tasks; by default `parallel_games` threads of this process.

    Raises:
        ValueError: the encoder, the learner, an optimizer or a number cannot be used.
    """

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
        parallel_games: int | None = None,
        unroll: int = 5,
        value_gain: float = 1.0,
        report: Reporter | None = None,
        on_update: OnUpdate | None = None,
        seed: int = 0,
        tolerated_failures: float = 0.0,
        pool: TaskPool | None = None,
    ):
        learner = copy.copy(learner) if learner else Leap()  # `build` changes it
        loss = loss or ActorCriticLoss()
        self.runner = AtariTaskRunner(
            encoder,
            inner_optimizer,
            learner,
            environment_pool,
            loss=loss,
            unroll=unroll,
            value_gain=value_gain,
            on_update=self._after_update,
        )
        self._on_update = on_update
        super().__init__(
            model=encoder,
            meta_optimizer=meta_optimizer,
            inner_optimizer=inner_optimizer,
            learner=learner,
            runner=self.runner,
            judge=self.runner,
            variables=self.runner.meta_variables,
            steps_per_task=steps_per_task,
            meta_batch_size=meta_batch_size,
            pool=pool
            or ThreadPool(available_cores() + 1 if parallel_games is None else parallel_games),
            stopping=None,
            settings={"loss": loss, "unroll": unroll, "value_gain": value_gain},
            seed=seed,
            tolerated_failures=tolerated_failures,
            report=report and (lambda trained: report(trained.evaluation)),
        )

    @property
    def learner_variables(self) -> list[keras.Variable]:
        return self.runner.learner_variables

    def summary(self, results: Sequence[GameEvaluation]) -> GameEvaluations:
        return GameEvaluations(tuple(results))

    def read_trained(self, parts: Parts) -> TrainedGame:
        return TrainedGame.from_parts(parts, self.meta_variables, self.runner.lasting_state)

    def read_judged(self, parts: Parts) -> GameEvaluation:
        return GameEvaluation.from_parts(parts)

    def _after_update(self, progress: Progress) -> None:
        if self._stop_requested:
            raise TaskRunStoppedError(progress.game, progress.update)
        if self._on_update:
            self._on_update(progress)
