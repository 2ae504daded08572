"""What every pool keeps to, as a class of tests to inherit from."""

import pathlib

import pytest

from leap_tf.training import Job, TaskFailure, ThreadPool
from tests.cluster.studies import TroubledStudy, assert_same, hat, meta_sgd, weights


class PoolContract:
    """A pool passes this, wherever tasks run on it.

    Subclasses have a fixture `open_pool`: a function from a recipe to a pool for its study.
    """

    @pytest.fixture(scope="module")
    def study(self, tmp_path_factory):
        """One whose tasks behave, as long as no file in its folder tells them otherwise."""
        return TroubledStudy(str(tmp_path_factory.mktemp("trouble")))

    @pytest.fixture
    def trouble(self, study):
        """Makes such files, which are gone after the test."""
        folder = pathlib.Path(study.folder)
        yield lambda name: (folder / name).touch()
        for file in folder.iterdir():
            file.unlink()

    @pytest.mark.parametrize("learner", ["hat", "meta_sgd", "leap"])
    def test_meta_training_gives_the_bits_of_one_thread(self, open_pool, study, learner):
        study = {"leap": study, "hat": hat, "meta_sgd": meta_sgd}[learner]
        expected, replica = study(pool=ThreadPool(1)), study(pool=open_pool(study))
        histories = [
            each.trainer.fit(
                each.tasks.train, 3, each.tasks.validation, validation_freq=2, verbose=False
            ).history
            for each in (expected, replica)
        ]
        assert histories[0] == histories[1]
        assert_same(weights(replica), weights(expected))
        for split in ("test", "validation"):
            judged = [
                each.trainer.evaluate(getattr(each.tasks, split), 3, split)
                for each in (expected, replica)
            ]
            for task, other in zip(*(each.tasks for each in judged), strict=True):
                assert (task.name, task.error, task.loss) == (other.name, other.error, other.loss)
                assert_same(task.training_losses, other.training_losses)

    def test_what_is_done_is_told_before_its_turn_and_failures_are_not(
        self, open_pool, study, trouble
    ):
        trouble("raise3")
        replica = study(pool=open_pool(study))
        tasks = replica.trainer._draws.meta_batch(replica.tasks.train, 0)
        told = []
        job = Job(
            "train",
            replica.trainer._runner.train,
            replica.trainer.read_trained,
            done=lambda seeded, result: told.append((seeded.seed, result.metrics["loss"])),
        )
        yielded = []
        for result in replica.trainer.pool.map(job, replica.trainer.task_variables, tasks):
            yielded.append(result)
            finished = [each for each in yielded if not isinstance(each, TaskFailure)]
            assert {each.metrics["loss"] for each in finished} <= {loss for _, loss in told}
        assert len(yielded) == 6
        assert sorted(told) == sorted(
            (seeded.seed, result.metrics["loss"])
            for seeded, result in zip(tasks, yielded, strict=True)
            if not isinstance(result, TaskFailure)
        )

    def test_a_map_that_is_closed_early_leaves_a_pool_that_works(self, open_pool, study):
        replica = study(pool=open_pool(study))
        trainer = replica.trainer

        def stop(result):
            trainer.request_stop()

        trainer._report = stop
        trainer.fit(replica.tasks.train, 2, verbose=False)
        assert trainer.was_stopped
        assert trainer.meta_step == 0
        trainer._report = None
        trainer.fit(replica.tasks.train, 2, verbose=False)
        undisturbed = study(pool=ThreadPool(1))
        undisturbed.trainer.fit(undisturbed.tasks.train, 2, verbose=False)
        assert_same(weights(replica), weights(undisturbed))

    def test_a_task_that_raises_is_left_out_if_that_is_tolerated(self, open_pool, study, trouble):
        trouble("raise3")
        pool = open_pool(study)
        replica = study(pool=pool, tolerated_failures=0.2)
        history = replica.trainer.fit(replica.tasks.train, 2, verbose=False).history
        assert history["tasks_failed"] == [1, 1]
        one_thread = study(pool=ThreadPool(1), tolerated_failures=0.2)
        one_thread.trainer.fit(replica.tasks.train, 2, verbose=False)
        assert_same(weights(replica), weights(one_thread))
        strict = study(pool=pool)
        with pytest.raises(Exception, match="the disk of this task is on fire"):
            strict.trainer.fit(strict.tasks.train, 2, verbose=False)
        trouble("raise1")
        with pytest.raises(Exception, match="2 of the 6 tasks of meta-step 3 failed.*seed"):
            replica.trainer.fit(replica.tasks.train, 3, verbose=False)
