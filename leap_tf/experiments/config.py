"""Configuration files: the names that gin files can use, and the functions that read them.

In the package only this module and its counterpart for Atari use gin. Configurations may come from
strangers, so a file can bind what is registered and nothing else: gin's own `import`, which would
run any module, is refused before gin reads the text.

Keras classes are registered as functions that call them. gin would otherwise subclass them, and
Keras saves and copies objects by their class.
"""

import functools
import inspect
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Sequence

import gin
import keras
from gin import config_parser

from leap_tf.datasets import alphabet_splits, multi_cv_splits
from leap_tf.errors import LeapError
from leap_tf.experiments.export import export_run
from leap_tf.experiments.study import evaluate, meta_train, study
from leap_tf.experiments.sweep import cells_of
from leap_tf.learners import (
    ANIL,
    FOMAML,
    HAT,
    MAML,
    JointTraining,
    Leap,
    MetaSGD,
    NoMetaLearning,
    ProgressiveNets,
    Reptile,
)
from leap_tf.models import conv_net, mlp
from leap_tf.tasks import sinusoid_splits
from leap_tf.training import EvaluationConfig, MetaTrainer, StopAtError, StopOnPlateau

# Errors that gin raises for text it cannot read. Deep nesting ends in one of the last two.
_UNREADABLE = (
    ValueError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    OSError,
    ImportError,
    RuntimeError,
    MemoryError,
)


class ConfigurationError(LeapError, ValueError):
    """A gin file or binding cannot be used."""


def calling(cls: type) -> Callable:
    """Returns a function that calls a class and has its name, docstring and signature."""

    def build(*args, **kwargs):
        return cls(*args, **kwargs)

    build.__name__ = cls.__name__
    build.__doc__ = cls.__doc__
    build.__signature__ = inspect.signature(cls)  # type: ignore[attr-defined]
    return build


def with_configuration_errors(configurable: Callable) -> Callable:
    """Returns the function; errors that a wrong value causes become a `ConfigurationError`.

    gin does not check values. A value of the wrong type fails where it is used, and a reference
    that leads back to itself ends in a RecursionError.
    """

    @functools.wraps(configurable)
    def build(*args, **kwargs):
        try:
            return configurable(*args, **kwargs)
        except (
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            AssertionError,
            RecursionError,
        ) as error:
            raise ConfigurationError(
                f"The study of this configuration cannot be built: {error}"
            ) from error

    return build


configured_study = with_configuration_errors(
    gin.external_configurable(study, "study", denylist=["data_dir", "pool"])
)
configured_meta_train = gin.external_configurable(
    meta_train, "meta_train", denylist=["study", "run"]
)
configured_evaluate = gin.external_configurable(
    evaluate, "evaluate", denylist=["study", "run", "overrides"]
)
configured_export = gin.external_configurable(
    export_run, "export", denylist=["study", "run", "path", "checkpoint"]
)
configured_cells = gin.external_configurable(cells_of, "sweep")

gin.external_configurable(conv_net, module="models")
gin.external_configurable(mlp, module="models")
gin.external_configurable(alphabet_splits, module="tasks", denylist=["seed", "data_dir"])
gin.external_configurable(multi_cv_splits, module="tasks", denylist=["seed", "data_dir"])
gin.external_configurable(sinusoid_splits, module="tasks", denylist=["seed", "data_dir"])
configured_evaluation = gin.external_configurable(
    calling(EvaluationConfig), "EvaluationConfig", module="training"
)


def configured_trainer(**kwargs) -> MetaTrainer:
    """Builds a trainer whose evaluation has the bindings of EvaluationConfig."""
    return MetaTrainer(**{"evaluation": configured_evaluation(), **kwargs})


configured_trainer.__signature__ = inspect.signature(MetaTrainer)  # type: ignore[attr-defined]
gin.external_configurable(configured_trainer, "MetaTrainer", denylist=["model", "seed"])
for _rule in (StopAtError, StopOnPlateau):
    gin.external_configurable(calling(_rule), _rule.__name__, module="training")
for _class in (
    Leap,
    Reptile,
    FOMAML,
    MAML,
    ANIL,
    MetaSGD,
    JointTraining,
    HAT,
    ProgressiveNets,
    NoMetaLearning,
):
    gin.external_configurable(calling(_class), _class.__name__, module="learners")
for _class in (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.RMSprop,
):
    gin.external_configurable(calling(_class), _class.__name__, module="keras.optimizers")
for _class in (
    keras.optimizers.schedules.CosineDecay,
    keras.optimizers.schedules.ExponentialDecay,
):
    gin.external_configurable(calling(_class), _class.__name__, module="keras.schedules")
for _class in (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.MeanSquaredError,
):
    gin.external_configurable(calling(_class), _class.__name__, module="keras.losses")


def read_configuration(files: Sequence[str | os.PathLike], bindings: Sequence[str] = ()) -> str:
    """Reads gin files and bindings, later ones over earlier ones.

    Args:
        files: at least one gin file.
        bindings: bindings over the files, such as "meta_train.meta_steps = 10".

    Returns:
        The whole configuration as text, with bindings in gin's order.

    Raises:
        ConfigurationError: a file is missing, cannot be read, names something that is not
            registered, or has an import or include statement.
    """
    missing = [str(file) for file in files if not pathlib.Path(file).is_file()]
    if missing:
        raise ConfigurationError(
            f"No such gin file: {', '.join(missing)}. The project's own are in gin_configs/."
        )
    return _parsed(
        {
            str(file): functools.partial(pathlib.Path(file).read_text, encoding="utf-8")
            for file in files
        }
        | {"bindings": lambda: "\n".join(bindings)}
    )


def parse_configuration(text: str) -> None:
    """Makes text that `read_configuration` returned the present configuration.

    Raises:
        ConfigurationError: the text cannot be read, or names something that is not registered.
    """
    _parsed({"configuration": lambda: text})


def operative_configuration() -> str:
    """Returns the bindings that have been used so far, defaults included, as text."""
    return gin.operative_config_str()


def _parsed(texts):
    """Returns the configuration that results from texts; a function reads each of them."""
    gin.clear_config()
    for name, read in texts.items():
        _parse(name, read)
    gin.finalize()
    whole = gin.config_str()
    _check_scopes(whole)
    return whole


def _parse(name, read):
    try:
        text = read()
        _check_no_imports(name, text)
        gin.parse_config(text)
    except ConfigurationError:
        raise
    except _UNREADABLE as error:
        raise ConfigurationError(
            f"The configuration cannot be read: {name}: {error or type(error).__name__}"
        ) from error


class _NoReferences(config_parser.ParserDelegate):
    """Lets gin's parser read a text without resolving any name."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, scoped_name):
        return scoped_name


def _check_no_imports(name, text):
    """Raises ConfigurationError for an import, or an include, whose file could have one."""
    for statement in config_parser.ConfigParser(text, _NoReferences()):
        if isinstance(statement, config_parser.ImportStatement | config_parser.IncludeStatement):
            kind = "import" if isinstance(statement, config_parser.ImportStatement) else "include"
            raise ConfigurationError(
                f"{name}, line {statement.location.line_num}: {kind!r} is not allowed. A "
                "configuration can only bind what this library registers. Remove the statement, "
                "and give several files by several --gin_file."
            )


def _check_scopes(text):
    """Raises ConfigurationError for a scope that nothing refers to; gin would ignore it."""
    bound = set(re.findall(r"^([\w/]+)/[\w.]+ =", text, flags=re.MULTILINE))
    used = set(re.findall(r"@([\w/]+)/[\w.]+", text))
    if bound - used:
        raise ConfigurationError(
            f"Nothing refers to the scopes {sorted(bound - used)}. The scopes in use are "
            f"{sorted(used)}."
        )
