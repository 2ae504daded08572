"""`MetaTrainer.adapt` and `leap_tf.adapt`: a new task arrives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import leap_tf

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def labelled_task(classes, name="blobs", weights=False, seed=0):
    rng = np.random.default_rng([seed, classes])
    centres = rng.normal(size=(classes, 4)).astype(np.float32)

    def examples(count):
        labels = rng.integers(classes, size=count)
        inputs = centres[labels] + rng.normal(size=(count, 4)).astype(np.float32)
        extra = (rng.uniform(size=count).astype(np.float32),) if weights else ()
        return (inputs, labels, *extra)

    return leap_tf.ArrayTask(name, examples(40), examples(33), batch_size=8, classes=classes)


def model_with_head(classes=3):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(8, name="body"),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(classes, name="head"),
        ]
    )


def trainer_of(model, loss=CROSS_ENTROPY, **options):
    return leap_tf.MetaTrainer(
        model,
        loss,
        keras.optimizers.Adam(0.05),
        keras.optimizers.SGD(0.1),
        steps_per_task=6,
        meta_batch_size=2,
        **options,
    )


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    ("classes", "task_layers"), [(3, ()), (3, ["head"]), (5, ["head"]), (2, ["head"])]
)
def test_the_adapted_model_has_the_error_and_loss_of_evaluate(classes, task_layers, weights):
    trainer = trainer_of(model_with_head(), task_layers=task_layers)
    trainer.fit([labelled_task(3, "a"), labelled_task(3, "b", seed=1)], 2, verbose=False)
    before = trainer.model.get_weights()
    task = labelled_task(classes, weights=weights, seed=7)
    model = trainer.adapt(task, steps=11)
    assert model.output_shape == (None, classes)
    expected = trainer.evaluate([task], steps=11).tasks[0]
    found = model.evaluate(task.test_batches(), verbose=0, return_dict=True)
    assert 1.0 - found["accuracy"] == pytest.approx(expected.error, abs=1e-6)
    if not weights:  # Keras's metric of the loss weighs the examples otherwise than their mean
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    for now, then in zip(trainer.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_adapted_model_is_an_ordinary_keras_model(tmp_path):
    trainer = trainer_of(model_with_head(), task_layers=["head"])
    task = labelled_task(4)
    model = trainer.adapt(task)
    start = model.evaluate(task.train_batches(0).take(5), verbose=0)[0]
    model.fit(*task.train, epochs=30, verbose=0)
    assert model.evaluate(*task.train, verbose=0)[0] < start
    model.save(tmp_path / "adapted.keras")
    loaded = keras.saving.load_model(tmp_path / "adapted.keras")
    np.testing.assert_array_equal(
        loaded.predict(task.test[0], verbose=0), model.predict(task.test[0], verbose=0)
    )


def test_an_error_function_is_a_metric_of_the_adapted_model():
    def worst(targets, outputs):
        return tf.reduce_max(tf.abs(targets - outputs), axis=-1)

    keras.utils.set_random_seed(0)
    evaluation = leap_tf.EvaluationConfig(error_fn=worst)
    trainer = trainer_of(leap_tf.mlp(hidden=[5]), "mse", evaluation=evaluation)
    task = leap_tf.sinusoid_splits(test_tasks=1).test[0]
    found = trainer.adapt(task).evaluate(task.test_batches(), verbose=0, return_dict=True)
    assert found["error"] == pytest.approx(trainer.evaluate(task).error, rel=1e-6)


def test_adapt_from_a_file_makes_the_steps_of_the_trainer(tmp_path):
    trainer = trainer_of(model_with_head(), task_layers=["head"], learner=leap_tf.Reptile())
    trainer.fit([labelled_task(3)], 1, verbose=False)
    trainer.model.save(tmp_path / "initialization.keras")
    task = labelled_task(5)
    model = leap_tf.adapt(
        tmp_path / "initialization.keras",
        task,
        keras.optimizers.Adam(0.05),
        CROSS_ENTROPY,
        steps=6,
        seed=trainer.evaluation_seed(0),
    )
    for ours, trainers in zip(model.get_weights(), trainer.adapt(task).get_weights(), strict=True):
        np.testing.assert_array_equal(ours, trainers)


def test_adapt_keeps_a_head_of_the_right_width_unless_it_is_a_task_layer():
    initialization = model_with_head(3)
    task = labelled_task(3)
    options = {"optimizer": keras.optimizers.SGD(1e-9), "loss": CROSS_ENTROPY, "steps": 1}
    kept = leap_tf.adapt(initialization, task, **options)
    options["optimizer"] = keras.optimizers.SGD(1e-9)
    drawn = leap_tf.adapt(initialization, task, task_layers=("head",), **options)
    head = initialization.get_layer("head").kernel.numpy()
    np.testing.assert_allclose(kept.get_layer("head").kernel, head, atol=1e-6)
    assert np.abs(drawn.get_layer("head").kernel - head).max() > 0.1


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.body = keras.layers.Dense(units, activation="relu")
        self.head = keras.layers.Dense(1)

    def build(self, input_shape):
        self.body.build(input_shape)
        self.head.build((*input_shape[:-1], self.units))
        self.built = True

    def call(self, inputs):
        return self.head(self.body(inputs))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_subclassed_models_train_on_labels():
    model = keras.Sequential([keras.layers.Dense(3)])
    subclass = type(
        "Wrapping", (keras.Model,), {"call": lambda self, inputs: self.inside(inputs)}
    )()
    subclass.inside = model
    subclass(np.zeros((1, 4), np.float32))
    evaluation = trainer_of(subclass).evaluate(labelled_task(3))
    functional = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    functional.set_weights(subclass.get_weights())
    assert evaluation.error == trainer_of(functional).evaluate(labelled_task(3)).error


class WithoutConfig(Subclassed):
    def get_config(self):
        raise NotImplementedError("no configuration")


def test_subclassed_models_adapt_if_they_can_be_copied():
    task = leap_tf.sinusoid_splits(test_tasks=1).test[0]
    for cls in (Subclassed, WithoutConfig):
        model = cls(6)
        model(np.zeros((1, 1), np.float32))
        trainer = trainer_of(model, "mse")
        if cls is Subclassed:
            found = trainer.adapt(task).evaluate(task.test_batches(), verbose=0)
            assert found == pytest.approx(trainer.evaluate(task).loss, rel=1e-5)
        else:
            with pytest.raises(leap_tf.UnsupportedModelError, match="get_config"):
                trainer.adapt(task)


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ValueError, match="HAT adapts a model of its own"):
        trainer = leap_tf.MetaTrainer(
            keras.Sequential(
                [
                    keras.layers.Input((4,)),
                    keras.layers.Dense(4),
                    keras.layers.Dense(3, name="head"),
                ]
            ),
            CROSS_ENTROPY,
            keras.optimizers.SGD(0.1),
            keras.optimizers.SGD(1.0),
            learner=leap_tf.HAT(),
            meta_batch_size=1,
            task_layers=["head"],
        )
        trainer.adapt(labelled_task(3))
    trainer = trainer_of(model_with_head())
    with pytest.raises(ValueError, match="5 classes, and the model 3 outputs"):
        trainer.adapt(labelled_task(5))
    with pytest.raises(ValueError, match="steps"):
        trainer.adapt(labelled_task(3), steps=0)


def binary_task(weights=False):
    rng = np.random.default_rng(3)

    def examples(count):
        inputs = rng.normal(size=(count, 4)).astype(np.float32)
        labels = (inputs.sum(-1, keepdims=True) + rng.normal(size=(count, 1)) > 0).astype(
            np.float32
        )
        return (inputs, labels, *((rng.uniform(size=count).astype(np.float32),) if weights else ()))

    return leap_tf.ArrayTask("halves", examples(40), examples(33), batch_size=8, test_batch_size=10)


@pytest.mark.parametrize("weights", [False, True])
def test_metrics_of_evaluation_are_those_of_keras(weights):
    metrics = [
        keras.metrics.AUC(name="roc_auc", from_logits=True),
        keras.metrics.Precision(name="precision", thresholds=0.0),
        keras.metrics.MeanAbsoluteError(name="mae"),
    ]
    trainer = trainer_of(
        model_with_head(1),
        keras.losses.BinaryCrossentropy(from_logits=True),
        evaluation=leap_tf.EvaluationConfig(metrics=metrics),
    )
    task = binary_task(weights)
    evaluation = trainer.evaluate([task])
    found = evaluation.tasks[0].metrics
    keras_found = trainer.adapt(task).evaluate(task.test_batches(), verbose=0, return_dict=True)
    assert set(found) == {"roc_auc", "precision", "mae"}
    for name, value in found.items():
        assert value == pytest.approx(keras_found[name], rel=1e-5)
        assert evaluation.metrics()[name] == value
    history = trainer.fit([task], 1, validation_tasks=[task], verbose=False).history
    assert 0.0 < history["val_roc_auc"][0] <= 1.0
    assert all(float(np.sum(each.numpy())) == 0.0 for each in metrics[1].variables)


def test_metrics_with_a_taken_name_or_without_one_number_are_refused():
    with pytest.raises(ValueError, match=r"\['auc'\]"):
        leap_tf.EvaluationConfig(metrics=[keras.metrics.AUC(name="auc")])
    with pytest.raises(ValueError, match=r"\['a'\]"):
        leap_tf.EvaluationConfig(
            metrics=[keras.metrics.Mean(name="a"), keras.metrics.Sum(name="a")]
        )
    f1 = keras.metrics.F1Score(name="f1")
    with pytest.raises(ValueError, match="'f1' makes its variables at its first batch"):
        leap_tf.EvaluationConfig(metrics=[f1])
    f1.update_state(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    f1.reset_state()
    evaluation = leap_tf.EvaluationConfig(metrics=[f1])
    trainer = trainer_of(model_with_head(3), "categorical_crossentropy", evaluation=evaluation)
    rng = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[rng.integers(3, size=16)]
    examples = rng.normal(size=(16, 4)).astype(np.float32), labels
    with pytest.raises(ValueError, match="'f1' has several values.*average='macro'"):
        trainer.evaluate([leap_tf.ArrayTask("one-hot", examples, examples)])


def two_outputs(as_dictionary):
    keras.utils.set_random_seed(0)
    inputs = {"left": keras.Input((2,), name="left"), "right": keras.Input((2,), name="right")}
    body = keras.layers.Dense(6, activation="relu")(keras.layers.Concatenate()([*inputs.values()]))
    outputs = {
        "label": keras.layers.Dense(3, name="label")(body),
        "value": keras.layers.Dense(1, name="value")(body),
    }
    return keras.Model(inputs, outputs if as_dictionary else list(outputs.values()))


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_several_inputs_and_outputs(as_dictionary):
    """The loss is the sum over the outputs and the error their mean, as Keras computes them."""
    rng = np.random.default_rng(0)

    def examples(count):
        inputs = {
            name: rng.normal(size=(count, 2)).astype(np.float32) for name in ("left", "right")
        }
        label = rng.integers(3, size=count)
        value = inputs["left"][:, :1] + inputs["right"][:, 1:]
        return inputs, ({"label": label, "value": value} if as_dictionary else (label, value))

    task = leap_tf.ArrayTask("both", examples(40), examples(20), batch_size=10)
    loss = {"label": CROSS_ENTROPY, "value": "mse"}
    trainer = trainer_of(two_outputs(as_dictionary), loss if as_dictionary else [*loss.values()])
    trainer.fit([task], 2, verbose=False)
    expected = trainer.evaluate(task, steps=8)
    found = trainer.adapt(task, steps=8).evaluate(task.test_batches(), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    value_loss = found["value_loss"]
    assert (1.0 - found["label_accuracy"] + value_loss) / 2 == pytest.approx(
        expected.error, rel=1e-5
    )
    untrained = trainer_of(two_outputs(as_dictionary), loss if as_dictionary else [*loss.values()])
    assert expected.loss < untrained.evaluate(task, steps=1).loss


def test_losses_that_do_not_fit_the_outputs_are_refused():
    with pytest.raises(ValueError, match="2 outputs.*loss for each"):
        trainer_of(two_outputs(False), "mse")
    task = leap_tf.ArrayTask(
        "one", *[({"left": np.ones((4, 2)), "right": np.ones((4, 2))}, np.ones(4))] * 2
    )
    with pytest.raises(ValueError, match="loss must have an entry for every output.*'value'"):
        trainer_of(two_outputs(True), {"label": CROSS_ENTROPY}).evaluate(task)


def test_preprocessing_layers_keep_what_they_learned(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 3.0, size=(40, 3)).astype(np.float32)
    codes = rng.integers(10, 13, size=(40, 1))
    targets = values.sum(axis=1, keepdims=True) + codes
    normalization, lookup = keras.layers.Normalization(), keras.layers.IntegerLookup()
    normalization.adapt(values)
    lookup.adapt(codes)
    inputs = [keras.Input((3,)), keras.Input((1,), dtype="int64")]
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(lookup(inputs[1])))
    joined = keras.layers.Concatenate()([normalization(inputs[0]), embedded])
    body = leap_tf.models.BatchNormalization()(keras.layers.Dense(4)(joined))
    model = keras.Model(inputs, keras.layers.Dense(1)(body))
    examples = (values, codes), targets.astype(np.float32)
    task = leap_tf.ArrayTask("coded", examples, examples, batch_size=8)
    trainer = trainer_of(model, loss="mse")
    trainer.fit([task, task], 1, verbose=False)
    expected = trainer.evaluate([task]).loss
    assert trainer.adapt(task).evaluate(*examples, verbose=0) == pytest.approx(expected, rel=1e-5)
    leap_tf.export(trainer, tmp_path / "export")
    read = keras.saving.load_model(tmp_path / "export" / "model.keras")
    np.testing.assert_allclose(read(list(examples[0])), model(list(examples[0])), rtol=1e-5)


def test_an_adaptation_that_diverges_is_an_error():
    inputs = np.ones((8, 4), np.float32)
    task = leap_tf.ArrayTask("huge", (1e30 * inputs, inputs[:, :1]), (inputs, inputs[:, :1]), 4)
    with pytest.raises(FloatingPointError, match="Training on 'huge' diverged"):
        leap_tf.adapt(leap_tf.mlp(4), task, "sgd", "mse", steps=3)
