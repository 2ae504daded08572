"""Exports give the numbers of the library in other processes, and refuse wrong requests."""

import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

import leap_tf
from leap_tf.array_tasks import pixels_to_floats
from leap_tf.serving import Limits
from tests.serving.exports import CROSS_ENTROPY, KINDS, STEPS, clouds, network, request
from tests.serving.exports import trainer as make_trainer

# A server has TensorFlow only. This process cannot import Keras or this library.
ELSEWHERE = """
import importlib
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *where):
        hidden = name.split(".")[0] in ("keras", "leap_tf")
        return None if hidden else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Hiding, sys.meta_path)
for name in ("keras", "leap_tf"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")
import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
for folder, signature in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    loaded = tf.saved_model.load(f"{folder}/saved_model")
    before = [variable.numpy() for variable in loaded.variables]
    request = {name: tf.constant(value) for name, value in np.load(f"{folder}/request.npz").items()}
    np.savez(f"{folder}/answers.npz", **loaded.signatures[signature](**request))
    assert before and all((a == b.numpy()).all() for a, b in zip(before, loaded.variables))
assert not {"keras", "leap_tf"} & set(sys.modules)
"""

_EXPORTS: dict[str, tuple] = {}


@pytest.fixture(scope="module", autouse=True)
def _seeded():
    """Seeds once: TensorFlow prepares all functions anew after that, and these tests share them."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns from a kind's name to its trainer, what makes its tasks, and the export's folder."""

    def export(kind):
        if kind not in _EXPORTS:
            trainer, make_task = KINDS[kind]()
            folder = tmp_path_factory.mktemp("exports") / kind
            leap_tf.export(trainer, folder, pixels_to_floats)
            _EXPORTS[kind] = trainer, make_task, folder
        return _EXPORTS[kind]

    return export


@pytest.fixture(scope="module")
def adapt(exported):
    """Returns the function behind a kind's signature `adapt`, on plain arrays."""
    loaded: dict[str, tf.Module] = {}

    def call(kind, signature="adapt", **inputs):
        if kind not in loaded:
            loaded[kind] = tf.saved_model.load(exported(kind)[2] / "saved_model")
        function = loaded[kind].signatures[signature]
        answers = function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in answers.items()}

    return call


def error_of(answers, targets):
    if "outputs" in answers:
        return np.mean((answers["outputs"] - targets) ** 2)
    return np.mean(answers["probabilities"].argmax(-1) != targets)


@pytest.fixture(scope="module")
def answered_elsewhere(exported):
    """Returns from a kind's name to the answers of a process without the library."""
    arguments = []
    for kind in KINDS:
        trainer, make_task, folder = exported(kind)
        task = make_task(number=4)
        np.savez(folder / "request.npz", **request(trainer, task, trainer.evaluation_seed(0)))
        pixels = task.train[0].dtype == np.uint8
        arguments += [str(folder), "adapt_uint8" if pixels else "adapt"]
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return {kind: dict(np.load(exported(kind)[2] / "answers.npz")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_the_library_gets_the_numbers_of_the_library(
    exported, answered_elsewhere, kind
):
    trainer, make_task, _ = exported(kind)
    task, answers = make_task(number=4), answered_elsewhere[kind]
    (evaluated,) = trainer.evaluate([task]).tasks
    assert evaluated.seed == trainer.evaluation_seed(0)
    np.testing.assert_allclose(answers["losses"], evaluated.training_losses, rtol=1e-5, atol=1e-7)
    assert error_of(answers, task.test[1]) == pytest.approx(evaluated.error, rel=1e-5)
    if "logits" in answers:
        loss = CROSS_ENTROPY(task.test[1], answers["logits"])
        assert float(loss) == pytest.approx(evaluated.loss, rel=1e-5)
        np.testing.assert_allclose(answers["probabilities"].sum(-1), 1.0, rtol=1e-5)


def test_floats_and_pixels_give_the_same(exported, adapt):
    trainer, make_task, _ = exported("convolutional")
    made = request(trainer, make_task())
    floats = made | {name: made[name] / np.float32(255) for name in ("support_x", "query_x")}
    a, b = adapt("convolutional", "adapt_uint8", **made), adapt("convolutional", **floats)
    np.testing.assert_array_equal(a["logits"], b["logits"])
    inputs = made["query_x"]
    predicted = adapt("convolutional", "serving_default_uint8", inputs=inputs)
    expected = trainer.model(inputs / np.float32(255), training=False)
    np.testing.assert_allclose(predicted["logits"], expected, rtol=1e-5, atol=1e-6)


def test_two_hundred_requests_at_the_same_time_get_the_answers_of_single_ones(exported, adapt):
    trainer, make_task, _ = exported("convolutional")
    requests = [request(trainer, make_task(number), seed=number) for number in range(200)]

    def answer(made):
        return adapt("convolutional", "adapt_uint8", **made)

    alone = [answer(made) for made in requests]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(answer, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["logits"], other["logits"])
        np.testing.assert_array_equal(one["losses"], other["losses"])
    assert len({one["losses"].tobytes() for one in alone}) == 200


def test_adapted_weights_fit_into_the_keras_model(exported, adapt):
    trainer, make_task, folder = exported("convolutional")
    for classes in (3, 5):  # that of the model, and another
        made = request(trainer, make_task(1, classes), seed=3)
        answers = adapt("convolutional", "adapt_uint8", **made)
        inputs = made.pop("query_x")
        weights = adapt("convolutional", "adapt_weights_uint8", **made)
        np.testing.assert_array_equal(weights["losses"], answers["losses"])
        assert weights["support_accuracy"] == answers["support_accuracy"]
        model = leap_tf.adapted_model(keras.saving.load_model(folder / "model.keras"), weights)
        logits = model(inputs / np.float32(255), training=False)
        assert logits.shape == (len(inputs), classes)
        np.testing.assert_allclose(logits, answers["logits"], rtol=1e-4, atol=1e-5)
    del weights["head/bias"]
    with pytest.raises(ValueError, match=r"head/bias.*Received: .*all outputs"):
        leap_tf.adapted_model(trainer.model, weights)


def test_keras_alone_reads_the_model(exported):
    trainer, _, folder = exported("convolutional")
    script = (
        "import sys\nsys.modules['leap_tf'] = None\nimport keras, numpy as np\n"
        f"model = keras.saving.load_model({str(folder / 'model.keras')!r}, safe_mode=True)\n"
        f"np.save({str(folder / 'predictions.npy')!r}, model(np.ones((2, 8, 8, 1)) / 2))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = trainer.model(np.ones((2, 8, 8, 1)) / 2)
    np.testing.assert_allclose(np.load(folder / "predictions.npy"), expected, rtol=1e-5, atol=1e-6)


def test_saved_model_cli_runs_a_signature(exported, adapt, tmp_path):
    trainer, make_task, folder = exported("convolutional")
    made = request(trainer, make_task(2))
    np.savez(tmp_path / "request.npz", **made)
    result = subprocess.run(
        [
            *(pathlib.Path(sys.executable).with_name("saved_model_cli"), "run"),
            *("--dir", folder / "saved_model", "--tag_set", "serve"),
            *("--signature_def", "adapt_uint8", "--outdir", tmp_path, "--inputs"),
            ";".join(f"{name}={tmp_path}/request.npz[{name}]" for name in made),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = adapt("convolutional", "adapt_uint8", **made)["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)


def refused(adapt, made, name, **changes):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        adapt("convolutional", **(made | changes))
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "1,000,000 epochs",
            lambda r: (
                {name: r[name][:1] for name in ("support_x", "support_y")}
                | {"steps": np.int32(10_000), "batch_size": np.int32(1024)}
            ),
        ),
        ("support_x", lambda r: {"support_x": r["support_x"][:, :4]}),
        ("support_x", lambda r: {"support_x": r["support_x"][..., 0]}),
        ("support_x", lambda r: {"support_x": np.repeat(r["support_x"], 3, axis=-1)}),
        ("support_x", lambda r: {"support_x": r["support_x"].reshape(-1, 4, 16, 1)}),
        ("support_x", lambda r: {"support_x": r["support_x"][:0], "support_y": r["support_y"][:0]}),
        ("support_x", lambda r: {"support_x": r["support_x"] * np.float32("nan")}),
        ("support_y", lambda r: {"support_y": r["support_y"][:5]}),
        ("support_y", lambda r: {"support_y": r["support_y"][:, None]}),
        ("support_y", lambda r: {"support_y": r["support_y"] - 1}),
        ("support_y", lambda r: {"support_y": r["support_y"] + 1}),
        ("query_x", lambda r: {"query_x": r["query_x"][:0]}),
        ("query_x", lambda r: {"query_x": r["query_x"][:, 1:]}),
        ("query_x", lambda r: {"query_x": r["query_x"] + np.float32("inf")}),
        ("steps", lambda r: {"steps": np.int32(-1)}),
        ("steps", lambda r: {"steps": np.int32(Limits().steps + 1)}),
        ("steps", lambda r: {"steps": np.array([3, 4], np.int32)}),
        ("batch_size", lambda r: {"batch_size": np.int32(0)}),
        ("batch_size", lambda r: {"batch_size": np.int32(Limits().batch_size + 1)}),
        ("learning_rate", lambda r: {"learning_rate": np.float32(-0.1)}),
        ("learning_rate", lambda r: {"learning_rate": np.float32(0)}),
        ("learning_rate", lambda r: {"learning_rate": np.float32("nan")}),
        ("seed", lambda r: {"seed": np.array([1], np.int64)}),
        ("num_classes", lambda r: {"num_classes": np.int32(0)}),
        ("num_classes", lambda r: {"num_classes": np.int32(Limits().classes + 1)}),
        ("support_y", lambda r: {"num_classes": np.int32(2)}),
    ],
)
def test_wrong_requests_are_refused_by_the_name_of_the_input(exported, adapt, name, change):
    trainer, make_task, _ = exported("convolutional")
    made = request(trainer, make_task())
    made |= {part: made[part] / np.float32(255) for part in ("support_x", "query_x")}
    refused(adapt, made, name, **change(made))


@hypothesis.given(
    strategies.integers(0, 19),
    strategies.integers(-(2**31), 2**31 - 1).filter(lambda label: not 0 <= label < 3),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_one_label_out_of_range_is_found_wherever_it_is(exported, adapt, place, label):
    trainer, make_task, _ = exported("convolutional")
    made = request(trainer, make_task(), steps=0)
    made |= {part: made[part] / np.float32(255) for part in ("support_x", "query_x")}
    labels = made["support_y"].copy()
    labels[place] = label
    refused(adapt, made, "support_y", support_y=labels)


def test_diverged_training_is_an_error(exported, adapt):
    trainer, make_task, _ = exported("regression")
    made = request(trainer, make_task(), steps=200, learning_rate=np.float32(1e30))
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate: training diverged"):
        adapt("regression", **made)


def test_learners_with_variables_for_the_head_serve_its_classes_only(exported, adapt):
    trainer, make_task, _ = exported("meta_sgd")
    with pytest.raises(tf.errors.InvalidArgumentError, match="num_classes: must be at least 3"):
        adapt("meta_sgd", **request(trainer, make_task(classes=4)))


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_fresh_heads_have_as_many_rows_as_the_task(exported, adapt, classes):
    """A reinitialized head is drawn and trained as in evaluation."""
    trainer, make_task, _ = exported("fresh_head_dropout_adam")
    task = make_task(1, classes)
    (evaluated,) = trainer.evaluate([task], steps=30).tasks
    made = request(trainer, task, trainer.evaluation_seed(0), steps=30)
    answers = adapt("fresh_head_dropout_adam", **made)
    assert answers["logits"].shape == (len(task.test[1]), classes)
    np.testing.assert_allclose(answers["losses"], evaluated.training_losses, rtol=1e-5)
    assert error_of(answers, task.test[1]) == pytest.approx(evaluated.error)


def test_a_learned_head_serves_tasks_with_its_number_of_classes(exported, adapt):
    trainer, make_task, _ = exported("convolutional")
    task = make_task(1)
    made = request(trainer, task, steps=0)
    learned = [
        adapt("convolutional", "adapt_uint8", **(made | {"seed": np.int64(s)})) for s in (1, 2)
    ]
    np.testing.assert_array_equal(learned[0]["logits"], learned[1]["logits"])
    expected = trainer.model(task.test[0] / np.float32(255), training=False)
    np.testing.assert_allclose(learned[0]["logits"], expected, rtol=1e-5, atol=1e-6)
    made["num_classes"] = np.int32(4)
    fresh = [
        adapt("convolutional", "adapt_uint8", **(made | {"seed": np.int64(s)})) for s in (1, 2)
    ]
    assert fresh[0]["logits"].shape == (len(task.test[1]), 4)
    assert not np.allclose(fresh[0]["logits"], fresh[1]["logits"])


@pytest.mark.parametrize("kind", ["fresh_head_dropout_adam", "anil"])
def test_the_learning_rate_is_the_requests(exported, adapt, kind):
    """The rate of a request is the first one of a schedule."""
    trainer, make_task, _ = exported(kind)
    setup = trainer.problem.setup
    rate = 3 * float(setup.inner_optimizer.learning_rate)
    schedule = keras.optimizers.schedules.CosineDecay(rate, STEPS)
    configuration = setup.inner_optimizer.get_config()
    configuration["learning_rate"] = rate if kind == "anil" else schedule
    faster = make_trainer(
        trainer.model,
        trainer.problem.loss,
        type(setup.inner_optimizer)(**configuration),
        trainer.learner,
        task_layers=setup.task_layers,
    )
    task = make_task(1)
    (evaluated,) = faster.evaluate([task]).tasks
    made = request(trainer, task, faster.evaluation_seed(0), learning_rate=np.float32(rate))
    np.testing.assert_allclose(adapt(kind, **made)["losses"], evaluated.training_losses, rtol=1e-5)


def test_a_layer_that_assigns_its_weight_is_refused_by_name_everywhere(tmp_path):
    """Its assignments would be lost, in meta-training, in evaluation and in a served `adapt`."""
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="spectral")
    trainer, task = make_trainer(network(spectral)), clouds()
    for use in (
        lambda: trainer.fit(leap_tf.FiniteTasks([task]), 1, verbose=False),
        lambda: trainer.evaluate([task]),
        lambda: leap_tf.export(trainer, tmp_path / "export"),
    ):
        with pytest.raises(leap_tf.UnsupportedModelError, match="^The layer 'spectral' assigns"):
            use()


def test_a_path_that_exists_is_refused(tmp_path):
    (tmp_path / "precious").mkdir()
    with pytest.raises(FileExistsError, match="Give another path"):
        leap_tf.export(make_trainer(network(keras.layers.Dense(3))), tmp_path / "precious")
