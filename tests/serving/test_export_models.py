"""Exports of models of every form agree with the library; each has a card; others are refused."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import leap_tf
from leap_tf.array_tasks import pixels_to_floats
from leap_tf.serving.adapter import weight_names
from leap_tf.serving.signatures import names_of
from tests.serving.exports import CROSS_ENTROPY, clouds, dense, network
from tests.serving.exports import trainer as make_trainer

STEPS, BATCH = 7, 6
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def task_of(inputs, targets, **options):
    """Returns a task that is evaluated on its training examples."""
    return leap_tf.ArrayTask("task", (inputs, targets), (inputs, targets), BATCH, **options)


def several(as_dictionary):
    """A trainer of a model with two inputs, an image and a vector, and two outputs."""
    keras.utils.set_random_seed(0)
    inputs = {"image": keras.Input((6, 6, 1), name="image"), "age": keras.Input((2,), name="age")}
    pixels = layers.Flatten()(layers.Conv2D(2, 3)(inputs["image"]))
    body = layers.Dense(5, activation="tanh")(layers.Concatenate()([pixels, inputs["age"]]))
    body = layers.BatchNormalization(momentum=0.5)(body)
    outputs = {"label": layers.Dense(3)(body), "size": layers.Dense(1)(body)}
    loss = {"label": CROSS_ENTROPY, "size": "mse"}
    values = {"image": normal(20, 6, 6, 1), "age": normal(20, 2)}
    targets = {"label": rng.integers(3, size=20), "size": normal(20, 1)}
    forms = [inputs, outputs, loss, values, targets]
    if not as_dictionary:
        forms = [list(form.values()) for form in forms]
    inputs, outputs, loss, values, targets = forms
    model = keras.Model(inputs, outputs)
    if not as_dictionary:
        values, targets = tuple(values), tuple(targets)
    return make_trainer(model, loss, keras.optimizers.Adam(0.02)), task_of(values, targets), None


@keras.saving.register_keras_serializable("tests.serving")
class Subclassed(keras.Model):
    def __init__(self, units=5, **options):
        super().__init__(**options)
        self.units = units
        self.hidden = layers.Dense(units, activation="tanh")
        self.norm = layers.BatchNormalization(momentum=0.5)
        self.dropout = layers.Dropout(0.3)
        self.head = layers.Dense(3)

    def call(self, inputs, training=False):
        hidden = self.norm(self.hidden(inputs), training=training)
        return self.head(self.dropout(hidden, training=training))

    def get_config(self):
        return {"units": self.units, "name": self.name}


class WithoutConfig(Subclassed):
    def get_config(self):
        raise NotImplementedError("no configuration")


def subclassed(cls=Subclassed):
    keras.utils.set_random_seed(0)
    model, task = cls(), clouds()
    model(task.train[0])
    return make_trainer(model), task_of(*task.train), task.train[0][:1]


class SubclassedOfSeveral(keras.Model):
    """Takes a dictionary with integers and returns one."""

    def __init__(self, name="of_several"):
        super().__init__(name=name)
        self.words = layers.Embedding(7, 3)
        self.mean = layers.GlobalAveragePooling1D()
        self.first, self.second = layers.Dense(2), layers.Dense(1)

    def call(self, inputs):
        words = self.mean(self.words(inputs["words"]))
        return {"a": self.first(inputs["x"] + words), "b": self.second(words)}

    def get_config(self):
        return {"name": self.name}


def subclassed_of_several():
    keras.utils.set_random_seed(0)
    inputs = {"words": rng.integers(7, size=(20, 4)).astype(np.int32), "x": normal(20, 3)}
    model = SubclassedOfSeveral()
    model(inputs)
    targets = {"a": normal(20, 2), "b": normal(20, 1)}
    return make_trainer(model, {"a": "mse", "b": "mae"}), task_of(inputs, targets), inputs


def masked():
    """Outputs for every step of sequences, some steps of which are masked."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 2))
    steps = layers.LSTM(3, return_sequences=True)(layers.Masking()(inputs))
    values = normal(20, 4, 2) * (rng.uniform(size=(20, 4, 1)) < 0.6)
    model = keras.Model(inputs, layers.Dense(1)(steps))
    return make_trainer(model, "mse"), task_of(values.astype("float32"), normal(20, 4, 1)), None


def nested():
    """Two sequential models in one, whose layers have the same names."""
    keras.utils.set_random_seed(0)
    parts = [
        keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")], name=name)
        for name in ("first", "second")
    ]
    model = keras.Sequential([keras.Input((4,)), parts[0], layers.Dense(4), parts[1]])
    return make_trainer(model), task_of(*clouds().train), None


KINDS = {
    "nested": nested,
    "dictionaries": lambda: several(True),
    "lists": lambda: several(False),
    "subclassed": subclassed,
    "subclassed of several": subclassed_of_several,
    "masked": masked,
}


def named(name, nest):
    return dict(zip(names_of(name, nest), tf.nest.flatten(nest), strict=True))


def call(folder, name, **request):
    signature = tf.saved_model.load(folder / "saved_model").signatures[name]
    answers = signature(**{name: tf.constant(value) for name, value in request.items()})
    return {name: value.numpy() for name, value in answers.items()}


def support(trainer, task, seed):
    targets = named("support_y", task.train[1])
    labels = {k: each.astype(np.int32) for k, each in targets.items() if each.dtype.kind == "i"}
    rate = float(trainer.problem.setup.inner_optimizer.learning_rate)
    settings = {"steps": np.int32(STEPS), "batch_size": np.int32(BATCH), "seed": np.int64(seed)}
    request = named("support_x", task.train[0]) | targets | labels | settings
    return request | {"learning_rate": np.float32(rate)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_adapt_is_that_of_the_library(kind, tmp_path):
    trainer, task, inputs = KINDS[kind]()
    trainer.fit([task], 1, verbose=False)
    leap_tf.export(trainer, tmp_path / "export", inputs=inputs)
    request = support(trainer, task, trainer.evaluation_seed(0))
    if trainer.problem.loss is CROSS_ENTROPY:
        request["num_classes"] = np.int32(3)
    answers = call(tmp_path / "export", "adapt", **named("query_x", task.train[0]), **request)
    evaluated = trainer.evaluate([task], steps=STEPS).tasks[0]
    np.testing.assert_allclose(answers["losses"], evaluated.training_losses, rtol=1e-5)
    error = answers.get("support_error", 1.0 - answers.get("support_accuracy", 0.0))
    assert error == pytest.approx(evaluated.error, rel=1e-5)
    adapted = trainer.adapt(task, STEPS)
    expected = named("", adapted(task.train[0], training=False))
    for suffix, value in expected.items():
        answer = answers.get(f"logits{suffix}", answers.get(f"outputs{suffix}"))
        np.testing.assert_allclose(answer, value, rtol=1e-5, atol=1e-6)
    weights = call(tmp_path / "export", "adapt_weights", **request)
    names = weight_names(trainer.model)
    for old, new in zip(trainer.model.weights, adapted.weights, strict=True):
        np.testing.assert_allclose(weights[names[id(old)]], new, rtol=1e-5, atol=1e-6)
    known_classes = {cls.__name__: cls for cls in (Subclassed, SubclassedOfSeveral)}
    read = keras.saving.load_model(tmp_path / "export" / "model.keras", known_classes)
    mine = leap_tf.adapted_model(read, weights)
    for new, known in zip(mine.weights, adapted.weights, strict=True):
        np.testing.assert_allclose(new, known, rtol=1e-5, atol=1e-6)
    initial = call(tmp_path / "export", "serving_default", **named("inputs", task.train[0]))
    for suffix, value in named("", trainer.model(task.train[0], training=False)).items():
        answer = initial.get(f"logits{suffix}", initial.get(f"outputs{suffix}"))
        np.testing.assert_allclose(answer, value, rtol=1e-5, atol=1e-6)


def test_docs_serving_md_keeps_adapted_weights_without_the_library(tmp_path):
    trainer, task, inputs = subclassed()
    leap_tf.export(trainer, tmp_path / "export", inputs=inputs)
    request = support(trainer, task, 3) | {"num_classes": np.int32(3)}
    weights = call(tmp_path / "export", "adapt_weights", **request)
    answers = call(tmp_path / "export", "adapt", **named("query_x", task.train[0]), **request)
    model = keras.saving.load_model(tmp_path / "export" / "model.keras")
    names = sorted(set(weights) - {"order", "losses", "support_accuracy", "support_error"})
    for position, name in zip(weights["order"], names, strict=True):
        model.weights[position].assign(weights[name])
    np.testing.assert_allclose(
        model(task.train[0], training=False), answers["logits"], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="Received: .*all outputs of adapt_weights"):
        leap_tf.adapted_model(leap_tf.mlp(hidden=[4, 4, 4]), weights)


def test_inputs_and_outputs_have_the_names_of_their_keys(tmp_path):
    trainer, task, _ = several(True)
    leap_tf.export(trainer, tmp_path / "export", pixels_to_floats)
    card = json.loads((tmp_path / "export" / "model_card.json").read_text())
    adapt = card["signatures"]["adapt"]
    settings = {"steps", "batch_size", "learning_rate", "seed"}
    assert set(adapt["inputs"]) - settings == {
        *("support_x_age", "support_x_image", "support_y_label", "support_y_size"),
        *("query_x_age", "query_x_image"),
    }
    assert set(adapt["outputs"]) == {
        *("logits_label", "probabilities_label", "outputs_size", "losses", "support_error"),
    }
    assert adapt["inputs"]["support_y_label"] == {"shape": [None], "dtype": "int32"}
    pixels = card["signatures"]["adapt_uint8"]["inputs"]
    assert pixels["query_x_image"] == {"shape": [None, 6, 6, 1], "dtype": "uint8"}
    assert pixels["query_x_age"] == {"shape": [None, 2], "dtype": "float32"}
    image = rng.integers(256, size=(5, 6, 6, 1), dtype=np.uint8)
    answers = call(
        tmp_path / "export", "serving_default_uint8", inputs_image=image, inputs_age=normal(5, 2)
    )
    assert answers["probabilities_label"].shape == (5, 3)
    request = support(trainer, task, 0) | named("query_x", task.train[0])
    for changes in (
        {"support_x_image": request["support_x_image"][:3]},
        {"support_y_size": request["support_y_size"][:3]},
        {"support_y_label": request["support_y_label"] + 1},
        {"query_x_image": request["query_x_image"][:3]},
        {"query_x_age": request["query_x_age"] * np.float32("nan")},
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            call(tmp_path / "export", "adapt", **(request | changes))
        assert next(iter(changes)) in caught.value.message


def momentum():
    """Not Adam: the gradient of a bias before batch norm is rounding, which Adam enlarges."""
    return keras.optimizers.SGD(0.05, momentum=0.9)


def trained_by_optimizer(inner, running="learned", task_layers=()):
    model = network(
        dense(8, "body"), layers.BatchNormalization(momentum=0.8), layers.Dense(3, name="head")
    )
    optimizer = leap_tf.LeapOptimizer(
        inner, running_statistics=running, task_layers=task_layers, seed=4
    )
    model.compile(optimizer, CROSS_ENTROPY)
    for number in range(2):
        with optimizer.task(model):
            model.fit(clouds(number).train_batches(number).take(5), verbose=0)
    return model, optimizer


@pytest.mark.filterwarnings("ignore:.*input ran out of data", "ignore:.*shuffle=True")
@pytest.mark.parametrize(("running", "task_layers"), [("learned", ()), ("fresh", ("head",))])
def test_a_model_of_a_leap_optimizer_adapts_as_under_fit(running, task_layers, tmp_path):
    model, optimizer = trained_by_optimizer(momentum(), running, task_layers)
    with pytest.raises(ValueError, match="not at an initialization.*meta_update"):
        leap_tf.export(model, tmp_path / "export")
    optimizer.meta_update()
    leap_tf.export(model, tmp_path / "export")
    task = clouds(5)
    request = {
        "support_x": task.train[0],
        "support_y": task.train[1].astype(np.int32),
        "steps": np.int32(STEPS),
        "batch_size": np.int32(task.batch_size),
        "learning_rate": np.float32(0.05),
        "seed": np.int64(9),
        "num_classes": np.int32(3),
    }
    weights = call(tmp_path / "export", "adapt_weights", **request)
    adapted = leap_tf.adapt(
        *(model, task, momentum(), CROSS_ENTROPY, STEPS),
        task_layers=task_layers,
        seed=9,
    )
    names = weight_names(model)
    for old, new in zip(model.weights, adapted.weights, strict=True):
        np.testing.assert_allclose(weights[names[id(old)]], new, rtol=1e-5, atol=1e-6)
    with optimizer.task(model):
        if task_layers:  # under fit, another seed draws them
            drawn = call(tmp_path / "export", "adapt_weights", **(request | {"steps": np.int32(0)}))
            for weight in model.get_layer("head").weights:
                weight.assign(drawn[names[id(weight)]])
        model.fit(task.train_batches(9).take(STEPS), verbose=0)
    for weight in model.weights:
        np.testing.assert_allclose(weights[names[id(weight)]], weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="not at an initialization"):
        leap_tf.export(model, tmp_path / "trained further")
    card = json.loads((tmp_path / "export" / "model_card.json").read_text())
    assert card["method"]["learner"] == "Leap"
    assert card["method"]["meta_steps"] == 1
    assert card["method"]["steps_per_task"] is None
    assert card["method"]["running_statistics"]["policy"] == running
    assert card["method"]["running_statistics"]["momentum"] == pytest.approx(0.8)


def card_of(folder, **options):
    trainer = make_trainer(
        network(layers.Dense(3), layers.BatchNormalization(momentum=0.8)), **options
    )
    leap_tf.export(trainer, folder)
    return (folder / "MODEL_CARD.md").read_text()


def test_the_card_says_where_running_statistics_start_and_what_steps_leave(tmp_path):
    learned = card_of(tmp_path / "learned")
    assert "| running statistics | learned |" in learned
    assert "start from the mean of where the training tasks left them" in learned
    assert "leaves at most 80 % after 1, 33 % after 5, 1 % after 20, 0 % after 100" in learned
    fresh = card_of(tmp_path / "fresh", running_statistics="fresh")
    assert "| running statistics | fresh |" in fresh
    assert "start from those of the untrained model" in fresh
    assert "With few steps, answers are normalized by statistics that fit no task." in fresh
    transductive = leap_tf.EvaluationConfig(transductive=True)
    text = card_of(tmp_path / "transductive", evaluation=transductive)
    assert "an answer depends on the other queries" in text
    assert "Running statistics of normalization" not in text
    leap_tf.export(make_trainer(network(layers.Dense(3))), tmp_path / "none")
    assert "| running statistics | none |" in (tmp_path / "none" / "MODEL_CARD.md").read_text()


def test_what_cannot_be_exported_is_refused(tmp_path):
    path = tmp_path / "export"
    trainer, _, inputs = subclassed()
    with pytest.raises(ValueError, match="does not know the shapes.*inputs=batch"):
        leap_tf.export(trainer, path)
    with pytest.raises(leap_tf.UnsupportedModelError, match="no get_config"):
        leap_tf.export(subclassed(WithoutConfig)[0], path, inputs=inputs)
    model = network(layers.Dense(3))
    with pytest.raises(ValueError, match="compiled with a NoneType.*LeapOptimizer"):
        leap_tf.export(model, path)
    model.compile(leap_tf.LeapOptimizer(keras.optimizers.SGD(0.1)), CROSS_ENTROPY)
    with pytest.raises(ValueError, match="not at an initialization"):
        leap_tf.export(model, path)
    sgd, model = keras.optimizers.SGD, network(dense(4, "body"), layers.Dense(3, name="head"))
    hat = leap_tf.MetaTrainer(
        *(model, CROSS_ENTROPY, sgd(0.1), sgd(1.0)),
        learner=leap_tf.HAT(),
        task_layers=["head"],
        meta_batch_size=1,
    )
    with pytest.raises(ValueError, match="HAT adapts a model of its own"):
        leap_tf.export(hat, path)
    twins = {"a-b": keras.Input((2,), name="a-b"), "a_b": keras.Input((2,), name="a_b")}
    model = keras.Model(twins, layers.Dense(3)(layers.Concatenate()([*twins.values()])))
    with pytest.raises(ValueError, match="differ in case or punctuation only"):
        leap_tf.export(make_trainer(model), path)
    one_loss = SubclassedOfSeveral()
    inputs = {"words": np.zeros((2, 4), np.int32), "x": normal(2, 3)}
    one_loss(inputs)
    with pytest.raises(ValueError, match="2 outputs, and 1 losses"):
        leap_tf.export(make_trainer(one_loss, "mse"), path, inputs=inputs)
    assert not path.exists()
