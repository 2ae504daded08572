"""One visit to a game, from its seed to what a meta-learner makes of it.

The encoder is the initialization: every visit starts from its present values, with new heads, and
changes nothing, so any number of threads can use one runner.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from leap_tf.atari.arcade import Arcade
from leap_tf.atari.encoder import actor_critic, fresh_heads, trained_variables
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.loss import ActorCriticLoss
from leap_tf.atari.traced_agent import TracedAgent
from leap_tf.atari.visit import visit
from leap_tf.errors import whole_number
from leap_tf.learners import Adaptation, Learner, TaskEnd
from leap_tf.serialization import Parts, UnfitPartsError
from leap_tf.training import SeededTask, TrainedTask

Watch = Callable[[SeededTask, int, int], None]


@dataclasses.dataclass(frozen=True)
class TrainedGame(TrainedTask):
    """What came of a visit, and how it went.

    Attributes:
        visit: the visit.
    """

    visit: GameEvaluation = dataclasses.field(kw_only=True)

    def parts(self) -> Parts:
        trained, visit = super().parts(), self.visit.parts()
        arrays = {f"visit_{name}": array for name, array in visit.arrays.items()}
        return Parts({**trained.plain, "visit": visit.plain}, {**trained.arrays, **arrays})

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        meta_variables: Sequence[keras.Variable],
        lasting_state: Sequence[keras.Variable],
    ) -> "TrainedGame":
        plain = parts.plain.get("visit")
        if not isinstance(plain, dict):
            raise UnfitPartsError("A result says nothing of the visit.")
        of_visit = {name for name in parts.arrays if name.startswith("visit_")}
        visit = Parts(plain, {name.removeprefix("visit_"): parts.arrays[name] for name in of_visit})
        others = {name: parts.arrays[name] for name in parts.arrays if name not in of_visit}
        trained = TrainedTask.from_parts(Parts(parts.plain, others), meta_variables, lasting_state)
        return cls(
            trained.meta_gradient,
            trained.metrics,
            trained.finite,
            trained.state,
            visit=GameEvaluation.from_parts(visit),
        )


class AtariTaskRunner:
    """Trains and evaluates on single games, from the encoder's present weights.

    A task is a `Game`; its steps are updates, each of `unroll` steps of all copies.

    Args:
        encoder: a built Keras model from screens to [batch, features].
        inner_optimizer: the optimizer of the agent, fresh on every visit.
        learner: the meta-learner that watches the encoder.
        arcade: where the games are.
        loss: weights of the agent's loss.
        unroll: steps between updates.
        value_gain: Euclidean norm of a fresh value head's weights, at least 0. Where visits are
            short, random values of fresh heads teach the encoder mostly to be silent.
        watch: called after every update of `train`, by whichever thread plays, as
            watch(seeded, frames_per_update, updates). What it raises ends the visit.

    Attributes:
        meta_variables: the encoder's variables, then the learner's own.
        own_variables: the learner's own variables.
        lasting_state: empty; the encoder has no state that is not trained.

    Raises:
        TypeError: `unroll` is no whole number.
        ValueError: the learner cannot work with games, the gain is negative, or an unroll has no
            steps.
    """

    def __init__(
        self,
        encoder: keras.Model,
        inner_optimizer: keras.optimizers.Optimizer,
        learner: Learner,
        arcade: Arcade,
        loss: ActorCriticLoss | None = None,
        unroll: int = 5,
        value_gain: float = 1.0,
        watch: Watch | None = None,
    ):
        _refuse_unsuitable(learner)
        if not value_gain >= 0:
            raise ValueError(f"value_gain is a norm, at least 0, and is {value_gain}.")
        self.encoder = encoder
        self.unroll = whole_number("unroll", unroll, 1)
        self.own_variables = learner.build(list(encoder.trainable_variables))
        self.lasting_state: list[keras.Variable] = []
        self.meta_variables = [*encoder.trainable_variables, *self.own_variables]
        self._optimizer = inner_optimizer
        self._learner = learner
        self.arcade = arcade
        self._value_gain = value_gain
        self._loss = loss or ActorCriticLoss()
        self._watch = watch
        self._agents: dict[tuple[int, bool], TracedAgent] = {}
        self._building = threading.Lock()

    def train(self, seeded: SeededTask) -> TrainedGame:
        """Plays and learns, and returns what the learner makes of it."""
        agent, start, state, evaluation = self._visit(seeded, watch=self._watch)
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
            visit=evaluation,
        )

    def evaluate(self, seeded: SeededTask) -> GameEvaluation:
        """Plays and learns without a meta-learner, and returns how well that went."""
        return self.adapt(seeded)[0]

    def adapt(
        self,
        seeded: SeededTask,
        learning: bool = True,
        encoder: Sequence[np.ndarray] | None = None,
        watch: Watch | None = None,
    ) -> tuple[GameEvaluation, list[tf.Tensor]]:
        """As `evaluate`, and returns the trained agent too.

        Args:
            seeded: the game, the seed of the visit, and its updates.
            learning: if not, the policy stays as it is: nearly random play, the control.
            encoder: what to start from in place of the encoder's present values.
            watch: as that of training.

        Returns:
            How it went, and the values of `trained_variables`, from which `agent_of` makes a model.
        """
        _, _, state, evaluation = self._visit(seeded, True, learning, encoder, watch)
        path = {
            "path_length": float(state.memory.length),
            "path_energy": float(state.memory.energy),
        }
        return dataclasses.replace(evaluation, **path), state.parameters

    def _visit(self, seeded, judged=False, learning=True, encoder=None, watch=None):
        game_seed, head_seed, action_seed = (
            int(seed) for seed in np.random.default_rng(seeded.seed).integers(2**30, size=3)
        )
        if encoder is None:
            encoder = [variable.value for variable in self.encoder.trainable_variables]
        own = [tf.convert_to_tensor(variable.value) for variable in self.own_variables]
        with self.arcade.visit(seeded.task.name, game_seed) as environments:
            agent = self._agent(environments[0].actions, judged)
            start = [
                *(tf.convert_to_tensor(value) for value in encoder),
                *fresh_heads(agent.model, head_seed, self._value_gain),
            ]
            copies = sum(environment.batch_size for environment in environments)
            frame_skip = environments[0].frame_skip
            frames_per_update = self.unroll * copies * frame_skip
            played = visit(
                environments,
                agent,
                start,
                own,
                seeded.steps,
                self.unroll,
                action_seed,
                learning,
                watch and functools.partial(watch, seeded, frames_per_update),
            )
        evaluation = GameEvaluation(
            game=seeded.task.name,
            seed=seeded.seed,
            copies=copies,
            frames_per_update=frames_per_update,
            frame_skip=frame_skip,
            losses=played.losses,
            entropies=played.entropies,
            rewards=played.rewards,
            raw_rewards=played.raw_rewards,
            episodes=tuple(played.episodes),
            seconds=played.seconds,
        )
        return agent, start, played.state, evaluation

    def _agent(self, actions: int, judged: bool) -> TracedAgent:
        with self._building:
            if (actions, judged) not in self._agents:
                model = actor_critic(self.encoder, actions)
                shared = range(len(self.encoder.trainable_variables))
                learner = Adaptation(self._learner, shared) if judged else self._learner
                seen = range(len(trained_variables(model))) if judged else shared
                self._agents[actions, judged] = TracedAgent(
                    model, self._optimizer, learner, seen, self._loss
                )
            return self._agents[actions, judged]


def _refuse_unsuitable(learner: Learner) -> None:
    name = type(learner).__name__
    if learner.query_batches or learner.second_order:
        raise ValueError(
            f"{name} needs batches to query, and a game has none. Use Leap, Reptile, "
            "PlainTraining or another learner without query batches."
        )
    if type(learner).training_models is not Learner.training_models:
        raise ValueError(
            f"{name} trains models of its own making, and an agent on a game is none of them. To "
            "finetune one encoder on game after game, use SequentialLearner with "
            "meta_optimizer=SGD(1.0) and meta_batch_size=1."
        )
