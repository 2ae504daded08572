"""Tasks that diverge or cannot be used, and arguments that are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
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
        (
            [0, 1, 2, 3],
            False,
            r"^Task 'labelled' has data .* loss cannot take: label 3 is outside \[0, 3\)\.",
        ),
        ([0, -1, 2], False, r"label -1 is outside \[0, 3\)\."),
        (["a", "b"], False, "Cast string to float is not supported. Number the labels: np.unique"),
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

    class Nothing:
        def sample(self, count, rng):
            return []

    with pytest.raises(ValueError, match="returned no tasks when asked for 5"):
        learner.fit(Nothing(), 1, verbose=False)
    wide = np.ones((8, 3), np.float32)
    message = r"^Task 'wide' cannot be trained on: Input 0 .* shape \(4, 3\)\."
    with pytest.raises(ValueError, match=message):
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


def test_a_label_outside_a_fresh_head_asks_for_the_number_of_classes():
    learner = trainer(
        model=leap_tf.mlp(outputs=3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        task_layers=["head"],
    )
    with pytest.raises(ValueError, match=r"label 3 is outside .* needs an attribute `classes`\.$"):
        learner.evaluate(classification([0, 3]).tasks)


def test_an_error_of_python_code_in_a_data_set_keeps_its_message():
    class Broken:
        name = "broken"

        def train_batches(self, seed):
            def read():
                raise RuntimeError("the file is gone")
                yield

            spec = tf.TensorSpec((None, 1), tf.float32)
            return tf.data.Dataset.from_generator(read, output_signature=(spec, spec))

        test_batches = held_out(1)[0].test_batches

    with pytest.raises(ValueError, match="^The data set of task 'broken' fails: RuntimeError: the"):
        trainer().evaluate([Broken()])
