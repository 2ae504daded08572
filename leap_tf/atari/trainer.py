"""The trainer of games: an encoder in, a learned encoder out."""

import copy
from collections.abc import Sequence

import keras

from leap_tf.atari.arcade import Arcade
from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations
from leap_tf.atari.loss import ActorCriticLoss
from leap_tf.atari.task_runner import AtariTaskRunner, Reporter
from leap_tf.learners import Leap, Learner
from leap_tf.training import MetaLoop, ThreadPool, available_cores


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
        parallel_games: games played at the same time, by default one per core. Call
            `leap_tf.one_thread_per_task()` first of all. Results do not depend on it.
        unroll: steps of each copy between two updates.
        report: called after every visit of training, from the thread it ran on.
        seed: decides everything random.

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
        report: Reporter | None = None,
        seed: int = 0,
    ):
        learner = copy.copy(learner) if learner else Leap()  # it will know this encoder's variables
        self.runner = AtariTaskRunner(
            encoder, inner_optimizer, learner, arcade, loss, unroll, report
        )
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
            ThreadPool(available_cores() if parallel_games is None else parallel_games),
            None,
            seed,
        )

    @property
    def learner_variables(self) -> list[keras.Variable]:
        return self.runner.own_variables

    def summary(self, results: Sequence[GameEvaluation]) -> GameEvaluations:
        return GameEvaluations(tuple(results))
