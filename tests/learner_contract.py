"""The contract of learners, as a class of tests to inherit from, and small tasks."""

import keras
import numpy as np
import pytest

from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetaTrainer

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def blobs(number, classes=3):
    """Returns a task that linear models learn: one cloud of points for each class."""
    rng = np.random.default_rng(number)
    centres = rng.normal(size=(classes, 4))
    labels = np.tile(np.arange(classes), 20)
    points = (centres[labels] + 0.1 * rng.normal(size=(len(labels), 4))).astype("float32")
    train, test = (points[:45], labels[:45]), (points[45:], labels[45:])
    return ArrayTask(f"blobs {number}", train, test, batch_size=5)


def small_model():
    layers = [keras.layers.Dense(6, activation="tanh", name="body"), keras.layers.Dense(3)]
    layers[-1].name = "head"
    return keras.Sequential([keras.layers.Input((4,)), *layers])


def values(trainer):
    return [variable.numpy() for variable in trainer.variables]


class LearnerContract:
    """Every learner passes these tests."""

    task_layers: tuple[str, ...] = ()
    meta_rate = 0.1
    meta_batch_size = 4
    learns = True

    def learner(self):
        raise NotImplementedError

    def trainer(self, seed=0, **options):
        keras.utils.set_random_seed(seed)
        return MetaTrainer(
            small_model(),
            CROSS_ENTROPY,
            keras.optimizers.SGD(0.3),
            keras.optimizers.SGD(self.meta_rate),
            learner=self.learner(),
            steps_per_task=4,
            meta_batch_size=self.meta_batch_size,
            task_layers=self.task_layers,
            seed=seed,
            **options,
        )

    def tasks(self):
        return FiniteTasks([blobs(number) for number in range(6)])

    def train(self, trainer, meta_steps=4, **options):
        trainer.fit(self.tasks(), meta_steps, verbose=False, **options)
        return trainer

    @pytest.fixture(scope="class")
    def trained(self):
        """A trainer after four meta-steps on one thread, which evaluation does not change."""
        return self.train(self.trainer(pool=1))

    def test_the_initialization_moves_if_the_learner_learns(self, trained):
        before, after = values(self.trainer()), values(trained)
        moved = any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert moved == self.learns
        assert all(np.all(np.isfinite(value)) for value in after)

    def test_a_restarted_run_on_several_threads_has_the_bits_of_one(self, trained, tmp_path):
        self.train(self.trainer(pool=3), 2, checkpoint_dir=tmp_path)
        rest = self.train(self.trainer(pool=3), checkpoint_dir=tmp_path)
        for a, b in zip(values(trained), values(rest), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_evaluation_changes_nothing_and_repeats(self, trained):
        before = values(trained)
        first, again = (trained.evaluate([blobs(10), blobs(11)], steps=12) for _ in range(2))
        assert first.error == again.error
        np.testing.assert_array_equal(
            first.tasks[1].training_losses, again.tasks[1].training_losses
        )
        for a, b in zip(before, values(trained), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_evaluation_adapts_to_the_task(self, trained):
        task = trained.evaluate([blobs(10)], steps=60).tasks[0]
        assert task.training_losses[-5:].mean() < 0.8 * task.training_losses[:5].mean()
        assert task.path_length > 0

    def test_a_task_that_diverges_leaves_the_initialization_finite(self):
        broken = blobs(0)
        broken.train = (broken.train[0] * np.float32(np.inf), broken.train[1])

        class OneBroken:
            """Five good tasks and the broken one. Joint training makes one mixture of them."""

            def __init__(self):
                self.tasks = [broken, *(blobs(number) for number in range(1, 6))]

            def sample(self, count, rng):
                return self.tasks[:count]

        trainer, tasks = self.trainer(), OneBroken()
        trainer.problem.sampler.use_distribution(tasks)
        if len(trainer.problem.sampler.training_specs(0)) == 1:
            with pytest.raises(FloatingPointError, match="diverged"):
                trainer.fit(tasks, 1, verbose=False)
        else:
            history = trainer.fit(tasks, 1, verbose=False).history
            assert history["tasks_skipped"] == [1]
        assert all(np.all(np.isfinite(value)) for value in values(trainer))
