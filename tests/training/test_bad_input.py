"""Tasks that diverge or cannot be used, and arguments that are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.functional.checks import check_labels
from leap_tf.tasks import ArrayTask, FiniteTasks
from tests.training.sinusoids import assert_same, constant_task, held_out, trainer, weights


def test_diverging_tasks_are_left_out_and_counted():
    good, bad = constant_task("good", 1.0), constant_task("bad", np.nan)
    mixed = trainer(meta_batch_size=2)
    history = mixed.fit(FiniteTasks([bad, good]), 1, verbose=False)
    assert history.history["tasks_skipped"] == [1]
    assert np.isfinite(history.history["loss"][0])
    alone = trainer(meta_batch_size=1)
    alone.fit(FiniteTasks([good]), 1, verbose=False)
    assert_same(weights(mixed), weights(alone))


def test_diverged_held_out_tasks_are_named_and_left_out_of_means():
    learner = trainer()
    tasks = held_out(2)
    result = learner.evaluate([tasks[0], constant_task("bad", np.nan), tasks[1]])
    assert result.diverged == ("bad",)
    finite = [task.error for task in result.tasks if task.name != "bad"]
    assert result.error == pytest.approx(np.mean(finite))
    assert learner.evaluate([constant_task("bad", np.nan)]).error == np.inf


def classification(labels, empty=False):
    class Labelled:
        name = "labelled"

        def train_batches(self, seed):
            inputs = np.ones((len(labels), 1), np.float32)
            batches = tf.data.Dataset.from_tensor_slices((inputs, np.array(labels))).batch(2)
            return batches.take(0) if empty else batches

        def test_batches(self):
            return self.train_batches(0)

    return FiniteTasks([Labelled()])


def test_bad_tasks_are_named():
    classifier = trainer(
        model=leap_tf.mlp(outputs=3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for labels, empty, message in (
        ([0, 1, 2, 3], False, "'labelled', a (training|held-out) batch.*: label 3 is outside"),
        ([0, 1], True, "^Task 'labelled' gave no training batch"),
    ):
        tasks = classification(labels, empty)
        with pytest.raises(ValueError, match=message):
            classifier.fit(tasks, 1, verbose=False)
        with pytest.raises(ValueError, match=message):
            classifier.evaluate(tasks.tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_task": 0}, "steps_per_task must be at least 1"),
        ({"meta_batch_size": 0}, "meta_batch_size must be at least 1"),
        ({"pool": -1}, "pool must be at least 1"),
        ({"pool": 0}, "pool must be at least 1"),
        (
            {"steps_per_task": 1},
            "steps_per_task must be at least 2 for Leap",
        ),  # one point, no segment
        ({"task_layers": ["nose"]}, "no layer named"),
        ({"meta_optimizer": keras.optimizers.SGD(loss_scale_factor=8.0)}, "unscaled"),
        ({"meta_optimizer": keras.optimizers.SGD(use_ema=True)}, "meta_optimizer has use_ema"),
        (
            {"inner_optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)},
            "larger batches",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


def test_calls_with_arguments_out_of_range_are_refused():
    learner = trainer()
    with pytest.raises(ValueError, match="validation_freq must be at least 1"):
        learner.fit(leap_tf.Sinusoids(), 1, validation_freq=0, verbose=False)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        learner.evaluate(held_out(1), steps=0)
    with pytest.raises(ValueError, match="no tasks to evaluate"):
        learner.evaluate([])

    class Own:
        tasks = 100  # not a list of tasks

        def __init__(self, found):
            self.found = found

        def sample(self, count, rng):
            return self.found

    for found in ([], None, held_out(1)[0], iter(held_out(2))):
        with pytest.raises(ValueError, match=r"returned .*Its sample\(\) must return"):
            learner.fit(Own(found), 1, verbose=False)
    learner.fit(Own(held_out(2)), 1, verbose=False)
    with pytest.raises(ValueError, match="fewer than count=3 tasks"):
        learner.evaluate(FiniteTasks(held_out(2)), count=3)
    wide = np.ones((8, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"'wide': .*shape \(4, 3\), and the model takes \(None, 1\)"
    ):
        learner.evaluate([ArrayTask("wide", (wide, wide), (wide, wide), batch_size=4)])


def test_tasks_that_end_too_soon_or_never_are_refused():
    class Short:
        name = "short"

        def train_batches(self, seed):
            return held_out(1)[0].train_batches(seed).take(1)

    with pytest.raises(
        ValueError, match="'short' gave 1 training batches, and Leap needs at least 2"
    ):
        trainer().fit(leap_tf.FiniteTasks([Short()]), 1, verbose=False)

    class Endless:
        name = "endless"

        def test_batches(self):
            return held_out(1)[0].test_batches().repeat()

    with pytest.raises(ValueError, match=r"test_batches\(\) of task 'endless' never end"):
        trainer().evaluate([Endless()])


def test_a_model_of_task_layers_only_is_refused():
    model = leap_tf.mlp()
    with pytest.raises(ValueError, match="nothing is left to meta-learn"):
        trainer(model=model, task_layers=[layer.name for layer in model.layers])


def test_a_used_meta_optimizer_is_refused():
    used = trainer().meta_optimizer
    with pytest.raises(ValueError, match="has been used already"):
        trainer(meta_optimizer=used)


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Piped:
    """A task of data sets: examples of which a function makes inputs and targets."""

    name = "piped"

    def __init__(self, inputs, targets, change=lambda *example: example):
        self._examples = tf.data.Dataset.from_tensor_slices((inputs, targets)).map(change)

    def train_batches(self, seed):
        return self._examples.batch(4)

    test_batches = property(lambda self: lambda: self._examples.batch(4))


def classifier(model=None, **options):
    return trainer(model=model or leap_tf.mlp(outputs=3), **{"loss": SPARSE} | options)


def arrays(labels):
    return np.ones((len(labels), 1), np.float32), np.array(labels)


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        ([0, 1, 3], [0, 1], {}, r"training example 2: label 3 is outside \[0, 3\)"),
        ([0, 1], [2, -1], {}, r"held-out example 1: label -1 is outside \[0, 3\)"),
        ([0, 5], [0], {"classes": 5}, r"training example 1: .*\[0, 5\)\. The task has classes=5"),
        ([0, 3], [0], {"head": True}, r".* label 3 .* 3 outputs.*task_layers and .* `classes`"),
    ],
)
def test_the_labels_of_arrays_are_checked_before_training(train, test, options, message):
    fresh = {"task_layers": ["head"]} if options.pop("head", "classes" in options) else {}
    task = ArrayTask("mine", arrays(train), arrays(test), **options)
    with pytest.raises(ValueError, match=f"^Task 'mine', {message}"):
        classifier(**fresh).evaluate([task])


def test_targets_of_a_binary_cross_entropy_are_probabilities():
    task = ArrayTask("signs", arrays([[1.0], [-1.0]]), arrays([[1.0]]), batch_size=2)
    binary = trainer(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"'signs' has targets from -1.0 to 1.0, and Binary"):
        binary.fit([task], 1, verbose=False)


def test_an_error_after_steps_that_were_not_made_is_refused():
    config = leap_tf.EvaluationConfig(held_out_steps=[6])
    task = constant_task("short", 1.0)
    batches = task.train_batches(0).take(4)
    task.train_batches, task.few_batches = lambda seed: batches, lambda seed, count: None
    with pytest.raises(ValueError, match="held_out_steps has 6; 'short' gave 4 batches"):
        trainer(evaluation=config).evaluate([task], steps=8)


def test_a_class_that_the_loss_ignores_is_no_label():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    task = ArrayTask("mine", arrays([0, 1, 2, 0]), arrays([0, -1]))
    with pytest.raises(ValueError, match="held-out example 1: label -1"):
        classifier().evaluate([task])
    check_labels(task, 3, ignored=loss.get_config()["ignore_class"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y: (x, y + 1), r"with the labels 1 2 3: label 3 is outside \[0, 3\)\."),
        (lambda x, y: (tf.gather(x, [y]), y), r"fails on its data: indices\[0\] = 1 is not in"),
        (lambda x, y: (tf.as_string(x), y), "Cast string to float is not supported$"),
        (
            lambda x, y: (tf.ensure_shape(tf.numpy_function(fail, [x], tf.float32), [1]), y),
            "fails on its data: ZeroDivisionError: by design$",
        ),
    ],
)
def test_the_reason_of_tensorflow_is_found(change, reason):
    tasks = [Piped(*arrays([0, 1, 2]), change)]
    with pytest.raises(ValueError, match=f"^Task 'piped', a training batch.*{reason}") as raised:
        classifier().evaluate(tasks)
    assert "\n" not in str(raised.value)


def fail(*_):
    raise ZeroDivisionError("by design")


def test_other_errors_of_tensorflow_keep_their_type():
    def read(x, y):
        return tf.reshape(tf.strings.to_number(tf.io.read_file("/no/file")), [1]), y

    with pytest.raises(tf.errors.NotFoundError, match="Task 'piped', a .*/no/file; No"):
        classifier().evaluate([Piped(*arrays([0, 1]), read)])


def test_targets_of_text_and_several_outputs_are_refused():
    inputs, labels = arrays([0, 1])
    with pytest.raises(ValueError, match="Task 'mine': test has targets that are text. Number"):
        ArrayTask("mine", (inputs, labels), (inputs, labels.astype(str)))
    text = Piped(inputs, labels, lambda x, y: (x, tf.as_string(y)))
    with pytest.raises(ValueError, match=r"'piped', test_batches\(\) has targets that are text"):
        classifier().evaluate([text])
    one = keras.Input((1,))
    heads = [keras.layers.Dense(2, name=name)(one) for name in ("left", "right")]
    with pytest.raises(ValueError, match=r"2 outputs \['left', 'right'\]"):
        classifier(model=keras.Model(one, heads))


def test_one_optimizer_has_one_role():
    one = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="Pass two optimizers"):
        trainer(inner_optimizer=one, meta_optimizer=one)
    with pytest.raises(ValueError, match="Pass two optimizers"):
        trainer(meta_optimizer=one, evaluation=leap_tf.EvaluationConfig(optimizer=one))


@pytest.mark.parametrize("learner", [leap_tf.JointTraining(1), leap_tf.HAT(1, steps_per_epoch=2)])
def test_labels_outside_the_classes_of_a_task_are_refused_by_learners_with_heads(learner):
    x, labels = np.ones((6, 4), np.float32), np.array([1, 2, 3, 1, 2, 3])
    task = leap_tf.ArrayTask("one-based", (x, labels), (x, labels), classes=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = leap_tf.MetaTrainer(
        leap_tf.mlp(inputs=4, outputs=5, hidden=[3]),
        loss,
        "sgd",
        learner=learner,
        steps_per_task=2,
        meta_batch_size=1,
        task_layers=["head"],
    )
    with pytest.raises(ValueError, match=r"one-based.*label 3 is outside \[0, 3\)"):
        trainer.fit([task], 1, verbose=False)


def test_transductive_is_a_bool_or_both():
    with pytest.raises(ValueError, match=r'True, False or "both". Received: 1'):
        leap_tf.EvaluationConfig(transductive=1)
