"""The outer loop: meta-training, evaluation, and what results depend on."""

import concurrent.futures

import keras
import numpy as np
import pytest

import leap_tf
from leap_tf.tasks import ArrayTask, FiniteTasks
from tests import golden
from tests.training.sinusoids import assert_same, held_out, trainer, weights


class RecordedTask:
    """A task recorded from the original code."""

    def __init__(self, number):
        self.number = number
        self.name = f"recorded {number}"

    def train_batches(self, seed):
        return golden.task_dataset(self.number)

    def test_batches(self):
        return golden.task_dataset(self.number)


def test_a_meta_step_descends_on_the_originals_meta_gradient():
    model = golden.build_model()
    before = model.get_weights()
    learner = leap_tf.MetaTrainer(
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.5),
        meta_batch_size=2,
    )
    learner.fit(FiniteTasks([RecordedTask(0), RecordedTask(1)]), 1, verbose=False)
    moved = [(a - b) / 0.5 for a, b in zip(before, model.get_weights())]
    expected = golden.to_keras(golden.meta_gradient("a_sgd_lr0.1", "float32", golden.SWITCHES[0]))
    assert golden.relative_error(moved, expected) < 1e-5


def test_meta_training_makes_new_tasks_easier():
    learner = trainer()
    before = learner.evaluate(held_out())
    history = learner.fit(leap_tf.Sinusoids(), 40, verbose=False)
    after = learner.evaluate(held_out())
    assert after.error < 0.7 * before.error
    assert after.area_under_error < 0.7 * before.area_under_error
    assert len(history.history["loss"]) == 40
    assert history.history["path_length"][-1] < history.history["path_length"][0]


def test_evaluation_changes_nothing_and_repeats():
    learner = trainer()
    start = weights(learner)
    first, again = learner.evaluate(held_out()), learner.evaluate(held_out())
    assert_same(weights(learner), start)
    for a, b in zip(first.tasks, again.tasks):
        assert (a.name, a.error, a.loss) == (b.name, b.error, b.loss)
        np.testing.assert_array_equal(a.training_errors, b.training_errors)
    assert len(learner.evaluate(held_out(), steps=3).tasks[0].training_errors) == 3


@pytest.mark.parametrize("threads", [1, np.int64(3)])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    ends = []
    for pool in (2, threads):
        learner = trainer(pool=pool)
        learner.fit(leap_tf.Sinusoids(), 4, verbose=False)
        ends.append(weights(learner))
    assert_same(*ends)


def test_the_seed_decides_everything():
    ends = []
    for seed in (1, 1, 2):
        learner = trainer(seed)
        learner.fit(leap_tf.Sinusoids(), 3, verbose=False)
        ends.append(weights(learner))
    assert_same(ends[0], ends[1])
    assert not np.array_equal(ends[0][0], ends[2][0])


def test_task_layers_are_reinitialized_for_each_task_and_not_meta_learned():
    model = leap_tf.mlp()
    head = [array.copy() for array in model.get_layer("head").get_weights()]
    encoder = model.layers[0].get_weights()[0].copy()
    learner = trainer(model=model, task_layers=["head"])
    learner.fit(leap_tf.Sinusoids(), 2, verbose=False)
    assert_same(model.get_layer("head").get_weights(), head)
    assert not np.array_equal(model.layers[0].get_weights()[0], encoder)
    first = learner.evaluate(held_out(2), steps=1)
    assert len({task.training_errors[0] for task in first.tasks}) == 2


def test_statistics_of_task_layers_are_reinitialized_too():
    model = keras.Sequential(
        [
            keras.layers.Input((1,)),
            keras.layers.Dense(4, name="encoder"),
            keras.layers.BatchNormalization(momentum=0.999999, name="norm"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    learner = trainer(model=model, task_layers=["norm", "head"])
    clean = learner.evaluate(held_out(1)).loss
    model.get_layer("norm").moving_mean.assign(np.full(4, 1e3))
    assert learner.evaluate(held_out(1)).loss == clean


def figures(evaluation):
    return [(task.name, task.seed, task.error, task.loss) for task in evaluation.tasks]


def renamed(tasks, names):
    """Returns the tasks under other names."""
    return [
        ArrayTask(name, task.train, task.test, batch_size=task.batch_size)
        for task, name in zip(tasks, names, strict=True)
    ]


class NoPool:
    """A pool in other processes that fails the test if it is used."""

    remote = True

    def map(self, job, specs):
        raise AssertionError("These tasks do not belong to the study.")


@pytest.mark.parametrize("pool", [2, NoPool()])
def test_tasks_with_the_names_of_the_study_and_other_data_are_evaluated_as_given(pool):
    splits = leap_tf.sinusoid_splits(validation_tasks=3, test_tasks=3)
    study = leap_tf.Study(trainer(pool=pool), splits)
    for of_study in (splits.validation, splits.test):
        others = renamed(held_out(3), [task.name for task in of_study])
        expected = trainer().evaluate(others)
        assert figures(study.trainer.evaluate(others)) == figures(expected)
        assert figures(expected) != figures(trainer().evaluate(of_study))


def test_evaluations_may_overlap():
    shared = trainer(pool=2)
    lists = [held_out(4), held_out(8)[4:]]
    expected = [figures(shared.evaluate(tasks)) for tasks in lists]
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        for _ in range(5):
            assert [figures(each) for each in executor.map(shared.evaluate, lists)] == expected


def test_a_remote_pool_trains_on_the_distribution_of_the_study_only():
    study = leap_tf.Study(trainer(pool=NoPool()), leap_tf.sinusoid_splits())
    with pytest.raises(ValueError, match="This pool trains in other processes.*tasks.train"):
        study.trainer.fit(leap_tf.Sinusoids(), 1, verbose=False)


class WithoutAttribute(leap_tf.Reptile):
    """A learner whose configuration is not known."""

    def __init__(self, momentum=0.5):
        self._momentum = momentum


class Configured(WithoutAttribute):
    def get_config(self):
        return {"momentum": self._momentum}


def test_settings_that_cannot_be_compared_at_a_restart_are_refused(tmp_path):
    with pytest.raises(NotImplementedError, match=r"WithoutAttribute has no attributes \['mom"):
        trainer(learner=WithoutAttribute())
    trainer(learner=Configured(0.5)).fit(
        leap_tf.Sinusoids(), 1, checkpoint_dir=tmp_path, verbose=False
    )
    with pytest.raises(leap_tf.CheckpointMismatchError, match="momentum: 0.5 then, 0.9 now"):
        trainer(learner=Configured(0.9)).fit(
            leap_tf.Sinusoids(), 2, checkpoint_dir=tmp_path, verbose=False
        )


class Unconfigured:
    """Another object without its `get_config`."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    def __getattr__(self, name):
        if name in ("get_config", "_wrapped"):
            raise AttributeError(name)
        return getattr(self._wrapped, name)


@pytest.mark.parametrize(
    "options",
    [{"learner": Unconfigured(leap_tf.Leap())}, {"stopping": Unconfigured(leap_tf.StopAtError())}],
    ids=["learner", "stopping"],
)
def test_learners_and_stop_rules_without_get_config_are_refused(options):
    with pytest.raises(TypeError, match=r"Unconfigured has no get_config\(\)"):
        trainer(**options)


def test_a_repr_is_one_readable_line():
    tasks = FiniteTasks(
        [ArrayTask(name, *2 * [(np.ones((8, 1)), np.ones(8))], 4) for name in "abcd"]
    )
    learner = trainer(model=leap_tf.mlp(), learner=leap_tf.FOMAML(query_batches=2))
    evaluation = learner.evaluate(tasks.tasks[:2], steps=2)

    class Unconfigured(leap_tf.Reptile):
        def __init__(self, strength=1.0):
            pass

    assert repr(tasks.tasks[0]) == (
        "<ArrayTask 'a': 8 training and 8 held-out examples, batch_size=4>"
    )
    assert repr(tasks) == "<FiniteTasks: 4 tasks, 'a', 'b', 'c', ...>"
    assert repr(learner.learner) == "FOMAML(query_batches=2)"
    assert repr(learner) == (
        f"<MetaTrainer of {learner.model.name!r} by FOMAML at meta-step 0: 5 tasks of 8 steps>"
    )
    assert repr(evaluation) == f"<Evaluation of 2 tasks: error {evaluation.error:.4g}>"
    assert repr(evaluation.tasks[0]).startswith("TaskEvaluation(name='a', error=")
    assert "array" not in repr(evaluation.tasks[0])
    assert "Unconfigured object" in repr(Unconfigured())


def test_a_model_of_two_precisions_is_meta_trained():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, dtype="float64"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    task = ArrayTask("sums", (inputs, inputs.sum(1)), (inputs, inputs.sum(1)), batch_size=5)
    learner = leap_tf.MetaTrainer(model, "mse", "sgd", steps_per_task=3, meta_batch_size=2)
    before = model.get_weights()
    history = learner.fit([task], 2, verbose=False).history
    assert [weight.dtype for weight in model.get_weights()] == ["float64"] * 2 + ["float32"] * 2
    assert all(np.any(new != old) for new, old in zip(model.get_weights(), before))
    assert np.isfinite(history["meta_gradient_norm"]).all()
