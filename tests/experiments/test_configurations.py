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
