"""The outer loop over games: equal bits with any parallelism and after interruptions."""

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.atari.actor_critic import ActorCriticLoss
from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.problem import TrainedGame
from leap_tf.atari.study import AtariStudy
from leap_tf.cluster.worker import Reply, TaskWorker
from leap_tf.learners.sequential import SequentialLearner
from leap_tf.serialization import decode
from leap_tf.tasks import TaskSplits
from leap_tf.training import Study
from tests.atari.small import GAMES, assert_same, small_encoder, trainer


def test_results_do_not_depend_on_how_many_games_run_in_parallel():
    alone, together = trainer(pool=1), trainer(pool=3)
    histories = [each.fit(GAMES, 3, verbose=False).history for each in (alone, together)]
    assert histories[0] == histories[1]
    assert_same(alone.model.get_weights(), together.model.get_weights())
    assert set(histories[0]) >= {"loss", "reward", "final_reward", "entropy", "path_length"}


def test_a_restart_with_another_agent_is_refused(tmp_path):
    trainer().fit(GAMES, 1, checkpoint_dir=tmp_path, verbose=False)
    for change, message in (
        ({"unroll": 3}, "unroll: 5 then, 3 now"),
        ({"value_gain": 0.0}, "value_gain: 1.0 then, 0.0 now"),
        ({"loss": ActorCriticLoss(discount=0.9)}, "loss.discount: 0.99 then, 0.9 now"),
    ):
        with pytest.raises(leap_tf.CheckpointMismatchError, match=message):
            trainer(**change).fit(GAMES, 2, checkpoint_dir=tmp_path, verbose=False)


def test_optimizers_that_cannot_train_an_agent_are_refused_at_once():
    with pytest.raises(ValueError, match="inner_optimizer has use_ema=True"):
        trainer(inner_optimizer=keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="meta_optimizer has use_ema=True"):
        trainer(meta_optimizer=keras.optimizers.SGD(0.1, use_ema=True))


def test_adapting_a_keras_model_is_for_supervised_tasks():
    with pytest.raises(ValueError, match="For games, use problem.adapt"):
        trainer().adapt(GAMES.tasks[0])


def test_every_start_has_a_fresh_encoder_of_its_own():
    learned = trainer()
    learned.fit(GAMES, 1, verbose=False)
    study, untrained = (
        AtariStudy(each, TaskSplits(GAMES, (), ()), make_encoder=small_encoder)
        for each in (learned, trainer())
    )
    first, second = study.fresh_encoder(0), study.fresh_encoder(1)
    assert not np.array_equal(first[0], second[0])
    assert_same(first, untrained.fresh_encoder(0))  # nothing of what was learned is in it


def test_a_run_that_was_interrupted_ends_the_same(tmp_path):
    whole = trainer()
    whole.fit(GAMES, 4, verbose=False)
    trainer().fit(GAMES, 2, checkpoint_dir=tmp_path, verbose=False)
    rest = trainer()  # a new process would have new environments too
    rest.fit(GAMES, 4, checkpoint_dir=tmp_path, verbose=False)
    assert rest.meta_step == 4
    assert_same(whole.model.get_weights(), rest.model.get_weights())


@pytest.mark.parametrize(
    "learner", [leap_tf.Leap(), leap_tf.Leap(per_segment=True), leap_tf.Reptile()]
)
def test_meta_learners_move_the_encoder_and_no_meta_learning_does_not(learner):
    moving, still = trainer(learner=learner), trainer(learner=leap_tf.NoMetaLearning())
    before = moving.model.get_weights()
    moving.fit(GAMES, 1, verbose=False)
    still.fit(GAMES, 1, verbose=False)
    assert_same(before, still.model.get_weights())
    assert all(np.any(a != b) for a, b in zip(before, moving.model.get_weights()))


def test_finetuning_goes_on_from_where_the_last_game_ended():
    runs = []
    finetuning = trainer(
        learner=SequentialLearner(),
        meta_optimizer=keras.optimizers.SGD(1.0),
        meta_batch_size=1,
        on_result=lambda trained: runs.append(trained.evaluation),
    )
    for meta_step in (1, 2, 3):
        before = [weights.copy() for weights in finetuning.model.get_weights()]
        finetuning.fit(GAMES, meta_step, verbose=False)
        after = [weights.copy() for weights in finetuning.model.get_weights()]
        finetuning.model.set_weights(before)
        _, trained = finetuning.problem.adapt(runs[-1].game, runs[-1].seed, 4)
        for actual, expected in zip(after, trained):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
        assert any(np.any(a != b) for a, b in zip(after, before))
        finetuning.model.set_weights(after)
    assert [run.game for run in runs] == ["bandit2", "bandit3", "bandit4"]
    evaluated = finetuning.evaluate(GAMES.tasks, steps=2)
    assert [game.game for game in evaluated.games] == ["bandit2", "bandit3", "bandit4"]


def test_evaluation_changes_nothing():
    evaluated = trainer()
    before = evaluated.model.get_weights()
    result = evaluated.evaluate(GAMES.tasks, steps=2)
    assert [game.game for game in result.games] == ["bandit2", "bandit3", "bandit4"]
    assert all(game.updates == 2 and game.path_length > 0 for game in result.games)
    assert_same(before, evaluated.model.get_weights())
    history = evaluated.fit(GAMES, 1, validation_tasks=GAMES.tasks[:1], verbose=False).history
    assert set(history) >= {"val_loss", "val_reward", "val_final_reward"}


def test_the_trainer_leaves_the_learner_alone():
    learner = leap_tf.Leap()
    assert trainer(learner=learner).learner is not learner


def test_every_task_run_is_reported_in_order():
    runs = []
    reported = trainer(on_result=lambda trained: runs.append(trained.evaluation))
    reported.fit(GAMES, 2, validation_tasks=GAMES.tasks[:1], verbose=False)
    sampler = reported.problem.sampler
    assert [(run.game, run.seed) for run in runs] == [
        (sampler.resolve(spec).name, spec.seed)
        for meta_step in (0, 1)
        for spec in sampler.training_specs(meta_step)
    ]


def test_a_stop_ends_the_current_task_runs(tmp_path):
    def stop(progress):
        if stopped.meta_step == 1 and progress.update == 2:
            stopped.request_stop()
            stops.append(progress.update)

    stops = []
    stopped = trainer(on_update=stop, steps_per_task=30, pool=1)
    short = trainer(steps_per_task=30, pool=1)
    short.fit(GAMES, 1, checkpoint_dir=tmp_path, verbose=False)
    stopped.fit(GAMES, 3, checkpoint_dir=tmp_path, verbose=False)
    assert stopped.was_stopped
    assert stops == [2]  # no other task run got that far
    assert stopped.meta_step == 1
    assert_same(stopped.model.get_weights(), short.model.get_weights())


def study():
    return Study(trainer(), TaskSplits(GAMES, (), GAMES.tasks))


def test_a_worker_in_another_process_plays_the_same_game():
    driver, worker = study().trainer.problem, TaskWorker(study, own_process=False)
    assert decode(worker.start(), Reply).failure is None
    worker.load([variable.numpy() for variable in driver.variables], version=1)
    spec = driver.sampler.training_specs(0)[1]
    expected = driver.train(spec)
    for _ in range(2):  # the second time in environments that have been used
        reply = decode(worker.run("train", 1, spec), Reply)
        assert reply.task == driver.sampler.resolve(spec).name
        played = decode(reply.result, TrainedGame)
        assert_same(played.meta_gradient, expected.meta_gradient)
        assert_same([played.evaluation.rewards], [expected.evaluation.rewards])
    spec = driver.sampler.evaluation_specs("test", count=3, steps=2)[2]
    found = decode(decode(worker.run("evaluate", 1, spec), Reply).result, GameEvaluation)
    assert found.path_length == driver.evaluate(spec).path_length
