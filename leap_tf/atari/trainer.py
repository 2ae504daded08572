"""The trainer of games: an encoder in, a learned encoder out."""

import copy
from collections.abc import Callable, Sequence

import keras

from leap_tf.atari.arcade import Arcade
from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations
from leap_tf.atari.loss import ActorCriticLoss
from leap_tf.atari.task_runner import AtariTaskRunner, TrainedGame, Watch
from leap_tf.atari.visit import VisitStoppedError
from leap_tf.learners import Leap, Learner
from leap_tf.serialization import Parts
from leap_tf.training import MetaLoop, SeededTask, TaskPool, ThreadPool, available_cores

Reporter = Callable[[GameEvaluation], None]


class AtariTrainer(MetaLoop):
    """Meta-learns the encoder of actor-critic agents, and judges it.

    Checkpoints hold nothing of the environments: every visit to a game starts with a seeded reset,
    and the meta-step under way when a run was killed is made again, with the same results.

    Args:
        encoder: a built Keras model from screens to [batch, features], without other state.
        inner_optimizer: the Keras optimizer of an agent, fresh on every visit.
        meta_optimizer: the unused Keras optimizer that moves the encoder.
        arcade: where the games are.
        learner: the meta-learner; `Leap()` by default.
        loss: weights of the agent's loss.
        steps_per_task: updates on a visit.
        meta_batch_size: games in a meta-step.
        parallel_games: games played at the same time, by default one more than there are cores:
            a game waits for its emulator's thread now and then. Call
            `leap_tf.one_thread_per_task()` first of all. Results do not depend on it.
        unroll: steps of each copy between two updates.
        value_gain: Euclidean norm of a fresh value head's weights; see `AtariTaskRunner`.
        report: called with every visit of training, in order.
        watch: called after every update of training, as watch(seeded, frames_per_update, updates),
            by whichever thread plays.
        seed: decides everything random but the encoder's initial weights.
        tolerated_failures: the share of a meta-batch that may raise; a meta-step goes on without
            such games and counts them as `tasks_failed`. By default the first one ends `fit`.
        pool: where games are played; by default `parallel_games` threads of this process.

    Raises:
        ValueError: the encoder, the learner, an optimizer or a number cannot be used, and why.
    """

    def __init__(
        self,
        encoder: keras.Model,
        inner_optimizer: keras.optimizers.Optimizer,
        meta_optimizer: keras.optimizers.Optimizer,
        arcade: Arcade,
        learner: Learner | None = None,
        loss: ActorCriticLoss | None = None,
        steps_per_task: int = 600,
        meta_batch_size: int = 4,
        parallel_games: int | None = None,
        unroll: int = 5,
        value_gain: float = 1.0,
        report: Reporter | None = None,
        watch: Watch | None = None,
        seed: int = 0,
        tolerated_failures: float = 0.0,
        pool: TaskPool | None = None,
    ):
        learner = copy.copy(learner) if learner else Leap()  # it will know this encoder's variables
        loss = loss or ActorCriticLoss()
        self.runner = AtariTaskRunner(
            encoder, inner_optimizer, learner, arcade, loss, unroll, value_gain, self._look_on
        )
        self._watch = watch
        super().__init__(
            encoder,
            meta_optimizer,
            inner_optimizer,
            learner,
            self.runner,
            self.runner,
            self.runner.meta_variables,
            steps_per_task,
            meta_batch_size,
            pool or ThreadPool(available_cores() + 1 if parallel_games is None else parallel_games),
            None,
            {"loss": loss, "unroll": unroll, "value_gain": value_gain},
            seed,
            tolerated_failures,
            report and (lambda trained: report(trained.visit)),
        )

    @property
    def learner_variables(self) -> list[keras.Variable]:
        return self.runner.own_variables

    def summary(self, results: Sequence[GameEvaluation]) -> GameEvaluations:
        return GameEvaluations(tuple(results))

    def read_trained(self, parts: Parts) -> TrainedGame:
        return TrainedGame.from_parts(parts, self.meta_variables, self.runner.lasting_state)

    def read_judged(self, parts: Parts) -> GameEvaluation:
        return GameEvaluation.from_parts(parts)

    def _look_on(self, seeded: SeededTask, frames_per_update: int, updates: int) -> None:
        if self._stop_requested:
            raise VisitStoppedError(seeded.task.name, updates)
        if self._watch:
            self._watch(seeded, frames_per_update, updates)
