"""Tests that every shipped gin file can be read and builds its trainer."""

import pathlib

import gin
import keras
import pytest

from leap_tf.experiments import config
from leap_tf.experiments.config import ConfigurationError, read_configuration
from leap_tf.training import StopAtError

GIN_CONFIGS = pathlib.Path(__file__).parents[2] / "gin_configs"
CONFIGURATIONS = sorted(
    path
    for path in [*GIN_CONFIGS.glob("*.gin"), *GIN_CONFIGS.glob("*/cell_*.gin")]
    if not path.stem.startswith("atari")  # those are built in tests/atari, by a process that can
)
SWEEPS = sorted(path for path in GIN_CONFIGS.glob("*/*.gin") if "sweep.grids" in path.read_text())


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_shipped_configurations_build_their_trainer(path):
    text = read_configuration([path], ["study.seed = 7"])
    assert "study.seed = 7" in text
    seed, trainer, model = (
        gin.query_parameter(f"study.{name}") for name in ("seed", "trainer", "model")
    )
    built = trainer.scoped_configurable_fn(model=model.scoped_configurable_fn(), seed=seed)
    assert built.problem.sampler.seed == 7
    assert built.meta_optimizer.built


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_cell_of_a_shipped_sweep_builds_its_trainer(path):
    read_configuration([path])
    files, cells = config.configured_cells()
    files = [path.parent / file for file in files]
    built = set()
    for cell in cells:
        read_configuration(files, cell.bindings)
        kind = tuple(value for axis, value in cell.values.items() if axis == "method")
        if kind in built:
            continue  # seeds and sizes build the same
        built.add(kind)
        trainer, model = (gin.query_parameter(f"study.{name}") for name in ("trainer", "model"))
        trainer.scoped_configurable_fn(model=model.scoped_configurable_fn(), seed=0)


def test_hat_looks_at_validation_images_where_its_attention_is_hard():
    """The paper's protocol stops HAT only at the ends of its epochs."""
    path = GIN_CONFIGS / "multi_cv" / "table3_paper.gin"
    read_configuration([path])
    files, cells = config.configured_cells()
    hat = next(cell for cell in cells if cell.values["method"] == "hat")
    read_configuration([path.parent / file for file in files], hat.bindings)
    learner = gin.query_parameter("MetaTrainer.learner").scoped_configurable_fn()
    for owner in ("MetaTrainer", "EvaluationConfig"):
        rule = gin.query_parameter(f"{owner}.stopping").scoped_configurable_fn()
        assert rule.every % learner.steps_per_epoch == 0
        assert rule.batch_size == 500  # the rest is what all methods have


def test_keras_objects_stay_kerass_own_classes():
    read_configuration([CONFIGURATIONS[0]], ["inner/SGD.learning_rate = 0.5"])
    optimizer = gin.get_configurable("inner/SGD")()
    assert type(optimizer) is keras.optimizers.SGD
    assert float(optimizer.learning_rate.numpy()) == 0.5


def test_bindings_of_evaluation_config_reach_the_trainer():
    read_configuration(
        [CONFIGURATIONS[0]],
        [
            "EvaluationConfig.optimizer = @evaluation/SGD()",
            "evaluation/SGD.learning_rate = 0.5",
            "EvaluationConfig.stopping = @StopAtError()",
            "EvaluationConfig.transductive = True",
            "MetaTrainer.pool = 3",
        ],
    )
    trainer, model = (gin.query_parameter(f"study.{name}") for name in ("trainer", "model"))
    built = trainer.scoped_configurable_fn(model=model.scoped_configurable_fn(), seed=0)
    assert float(built.problem.evaluation_optimizer.learning_rate) == 0.5
    assert float(built.problem.setup.inner_optimizer.learning_rate) != 0.5
    assert isinstance(built.problem.evaluation.stopping, StopAtError)
    assert built.problem.evaluation.transductive
    assert built.pool.threads == 3


@pytest.mark.parametrize("binding", ["mlp.hidden = 3", "study.seed = 'x'", "study.model = 3"])
def test_a_value_of_the_wrong_type_is_an_error_of_the_configuration(binding):
    read_configuration([GIN_CONFIGS / "sinusoid.gin"], [binding])
    with pytest.raises((ConfigurationError, ValueError)):
        config.configured_study()


def test_later_bindings_win():
    text = read_configuration([CONFIGURATIONS[0]], ["study.seed = 1", "study.seed = 2"])
    assert "study.seed = 2" in text


def test_data_and_run_directories_cannot_be_bound():
    assert config.configured_study
    with pytest.raises(ConfigurationError, match="data_dir"):
        read_configuration([CONFIGURATIONS[0]], ["study.data_dir = 'x'"])


@pytest.mark.parametrize(
    "binding",
    [
        "meta_train.meta_steps = 'x'",
        "meta_train.meta_steps = 2.5",
        "meta_train.meta_steps = True",
        "meta_train.patience = [1]",
        "meta_train.verbose = 'no'",
        "evaluate.target_error = 'x'",
        "evaluate.steps = %steps\nsteps = 'x'",
        "export.requests = None",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_as_it_is_read(binding):
    name, expected = binding.split(" = ")[0], r" must be of type .*\. Received: "
    with pytest.raises(ConfigurationError, match=name + expected):
        read_configuration([GIN_CONFIGS / "sinusoid.gin"], [binding])


def test_a_whole_number_may_stand_for_a_float():
    read_configuration(
        [GIN_CONFIGS / "sinusoid.gin"],
        [
            "meta_train.checkpoint_seconds = 5",
            "evaluate.steps = None",
            "evaluate.steps = %steps",
            "steps = 3",
        ],
    )


def test_cells_of_the_wrong_type_are_an_error_of_the_configuration():
    read_configuration([GIN_CONFIGS / "omniglot" / "table1_cpu.gin"], ["sweep.grids = 3"])
    with pytest.raises(ConfigurationError, match="cannot be built"):
        config.configured_cells()


def test_byte_order_marks_and_line_ends_of_windows_are_skipped(tmp_path):
    text = (GIN_CONFIGS / "sinusoid.gin").read_bytes()
    (tmp_path / "windows.gin").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    expected = read_configuration([GIN_CONFIGS / "sinusoid.gin"])
    assert read_configuration([tmp_path / "windows.gin"]) == expected


def test_shipped_configurations_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("unicode_cpu.gin", "omniglot/cell_cpu.gin"):
        assert config.configuration_file(name) == GIN_CONFIGS / name
    (tmp_path / "unicode_cpu.gin").write_text("study.seed = 3")
    assert read_configuration(["unicode_cpu.gin"]).strip().endswith("study.seed = 3")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.configuration_file("~/unicode_cpu.gin") == tmp_path / "unicode_cpu.gin"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("unicode_cpu", r"Shipped are unicode_cpu\.gin"),
        ("gin_configs/unicode_cpu.gin", r"Shipped are unicode_cpu\.gin"),
        ("cell_cpu.gin", r"omniglot/cell_cpu\.gin"),
        ("qqq", r"atari_cpu\.gin.*unicode_cpu\.gin"),
    ],
)
def test_the_error_for_an_unknown_name_lists_similar_ones(tmp_path, monkeypatch, name, near):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"No such gin file: {name}. .*{near}"):
        read_configuration([name])
