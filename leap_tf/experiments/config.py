"""Configuration files: the names that gin files can use, and the functions that read them.

In the package only this module and its counterpart for Atari use gin. Configurations may come from
strangers, so a file can bind what is registered and nothing else: gin's own `import`, which would
run any module, is refused before gin reads the text. Modules of the user register what they offer
with `leap_tf.configurable`.

Keras classes are registered as functions that call them. gin would otherwise subclass them, and
Keras saves and copies objects by their class.
"""

import difflib
import functools
import inspect
import os
import pathlib
import re
import sys
import tokenize
import types
import typing
from collections.abc import Callable, Sequence

import gin
import keras
from gin import config_parser

from leap_tf import learners, training
from leap_tf.comparison import Comparison, compare
from leap_tf.datasets import alphabet_splits, episode_splits, multi_cv_splits
from leap_tf.errors import LeapError
from leap_tf.experiments import user_modules
from leap_tf.experiments.export import export_run
from leap_tf.experiments.run_directory import bindings_of
from leap_tf.experiments.study import check_evaluation, evaluate, meta_train, study
from leap_tf.experiments.sweep import cells_of
from leap_tf.models import conv_net, mlp
from leap_tf.tasks import sinusoid_splits
from leap_tf.training import EvaluationConfig, MetaTrainer, Study

# Errors that gin raises for text it cannot read. Deep nesting ends in one of the last two.
_UNREADABLE = (ValueError, TypeError, SyntaxError, tokenize.TokenError, OSError, ImportError,
               RuntimeError, MemoryError)  # fmt: skip
# Errors that a value of the wrong type causes where it is used.
_UNBUILDABLE = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError,
                RecursionError)  # fmt: skip


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

    gin does not check values, and a reference that leads back to itself is a RecursionError.
    """

    @functools.wraps(configurable)
    def build(*args, **kwargs):
        try:
            return configurable(*args, **kwargs)
        except _UNBUILDABLE as error:
            raise ConfigurationError(
                f"The study of this configuration cannot be built: {error}"
            ) from error

    return build


# The types of the arguments of each function that a program calls, by the function's name in gin.
_TYPES: dict[str, dict[str, typing.Any]] = {}


def of_a_program(function: Callable, name: str, denylist: Sequence[str]) -> Callable:
    """Registers a function that a program calls; `read_configuration` checks its values' types."""
    _TYPES[name] = typing.get_type_hints(function)
    return gin.external_configurable(function, name, denylist=denylist)


configured_study = with_configuration_errors(
    gin.external_configurable(study, "study", denylist=["data_dir", "pool"])
)
configured_meta_train = of_a_program(meta_train, "meta_train", ["study", "run"])
configured_evaluate = of_a_program(evaluate, "evaluate", ["study", "run", "overrides"])
configured_export = of_a_program(export_run, "export", ["study", "run", "path", "checkpoint"])
configured_cells = with_configuration_errors(gin.external_configurable(cells_of, "sweep"))

_configured_comparison = gin.external_configurable(
    compare, "compare", denylist=["tasks", "model", "directory", "trainer", "verbose"]
)


def check_configured_evaluation(study: Study) -> None:
    """Checks the bindings of `evaluate`; raises ValueError, see `check_evaluation`."""
    bound = gin.get_bindings("evaluate")
    check_evaluation(study, bound.get("split", "test"), bound.get("steps"))


def configured_comparison(
    directory: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> Comparison:
    """Compares methods on the tasks, the model and the trainer's settings of the study.

    Raises:
        ConfigurationError: the configuration has no study with tasks and a model.
    """
    of_study = gin.get_bindings("study")
    if missing := {"tasks", "model"} - of_study.keys():
        raise ConfigurationError(f"The configuration does not bind study.{min(missing)}.")
    tasks = functools.partial(of_study["tasks"], data_dir=data_dir)
    trainer = of_study.get("trainer", configured_trainer)
    return with_configuration_errors(_configured_comparison)(
        tasks=tasks, model=of_study["model"], directory=directory, trainer=trainer
    )


gin.external_configurable(conv_net, module="models")
gin.external_configurable(mlp, module="models")
for _splits in (alphabet_splits, episode_splits, multi_cv_splits, sinusoid_splits):
    gin.external_configurable(_splits, module="tasks", denylist=["seed", "data_dir"])
configured_evaluation = gin.external_configurable(
    calling(EvaluationConfig), "EvaluationConfig", module="training"
)


def configured_trainer(**kwargs) -> MetaTrainer:
    """Builds a trainer whose evaluation has the bindings of EvaluationConfig."""
    return MetaTrainer(**{"evaluation": configured_evaluation(), **kwargs})


configured_trainer.__signature__ = inspect.signature(MetaTrainer)  # type: ignore[attr-defined]
gin.external_configurable(configured_trainer, "MetaTrainer", denylist=["model", "seed"])
for _module, _owner, _names in (
    ("training", training, "StopAtError StopOnPlateau"),
    ("learners", learners, "Leap Reptile FOMAML MAML ANIL MetaSGD NoMetaLearning"),
    ("learners", learners, "JointTraining HAT ProgressiveNets"),
    ("keras.optimizers", keras.optimizers, "SGD Adam AdamW RMSprop"),
    ("keras.schedules", keras.optimizers.schedules, "CosineDecay ExponentialDecay PolynomialDecay"),
    ("keras.losses", keras.losses, "SparseCategoricalCrossentropy CategoricalCrossentropy"),
    ("keras.losses", keras.losses, "BinaryCrossentropy MeanSquaredError"),
):
    for _name in _names.split():
        gin.external_configurable(calling(getattr(_owner, _name)), _name, module=_module)


def register_recorded() -> None:
    """Registers what `leap_tf.configurable` has recorded since the last call.

    Raises:
        ConfigurationError: gin cannot take a name, or has it already.
    """
    while user_modules.RECORDED:
        target, name, module = user_modules.RECORDED.pop(0)
        target = calling(target) if isinstance(target, type) else target
        try:
            # `study` passes these two to the builder of its tasks, so that they cannot be bound.
            given = {"seed", "data_dir"}
            denied = sorted(given) if given <= {*inspect.signature(target).parameters} else None
            gin.external_configurable(target, name, module=module, denylist=denied)
        except ValueError as error:
            raise ConfigurationError(f"{name} cannot be registered: {error}") from error


_INSTALLED = pathlib.Path(__file__).parents[1] / "gin_configs"  # or those of a checkout
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "gin_configs"


def configuration_file(name: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a gin file: a path as it is, or the name of one in `SHIPPED`.

    Raises:
        ConfigurationError: there is no such file. The message lists shipped ones of similar names.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return path
    if (SHIPPED / path).is_file():
        return SHIPPED / path
    shipped = sorted(each.relative_to(SHIPPED).as_posix() for each in SHIPPED.rglob("*.gin"))
    near = difflib.get_close_matches(str(name), shipped) or shipped
    raise ConfigurationError(f"No such gin file: {name}. Shipped are {', '.join(near)}.")


def read_configuration(files: Sequence[str | os.PathLike], bindings: Sequence[str] = ()) -> str:
    """Reads gin files and bindings. Later ones override earlier ones.

    `files` are at least one, each as for `configuration_file`. Returns the whole configuration as
    text, with bindings in gin's order.

    Raises:
        ConfigurationError: a file is missing, cannot be read, names something that is not
            registered, has an import or include statement, or a value has the wrong type.
    """
    read = functools.partial(pathlib.Path.read_text, encoding="utf-8-sig")  # without a BOM
    return _parsed(
        {str(file): functools.partial(read, configuration_file(file)) for file in files}
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


def report_bindings_without_effect(configuration: str) -> None:
    """Prints which bindings are of functions that nothing refers to, since gin ignores them."""
    programs = {*_TYPES, "study", "compare", "atari_study", "MetaTrainer", "EvaluationConfig"}
    parts = re.compile(r"(?:([\w/]+)/)?(?:\w+\.)*(\w+)")  # scope and function
    referred = {parts.findall(each)[0] for each in re.findall(r"@([\w/.]+)", configuration)}
    used = referred | {("", name) for name in {name for _, name in referred} | programs}
    for name in bindings_of(configuration):
        if "." in name and parts.findall(name.rpartition(".")[0])[0] not in used:
            print(f"{name} has no effect: nothing refers to its function.", file=sys.stderr)


def _parsed(texts):
    """Returns the configuration that results from texts; a function reads each of them."""
    register_recorded()
    gin.clear_config()
    for name, read in texts.items():
        try:
            text = read()
            _check_no_imports(name, text)
            gin.parse_config(text)
        except ConfigurationError:
            raise
        except _UNREADABLE as error:
            why = f"{error or type(error).__name__}"
            if "No configurable matching" in why:
                why += "\nIf it is your own, name its module with --module."
            raise ConfigurationError(f"The configuration cannot be read: {name}: {why}") from error
    gin.finalize()
    whole = gin.config_str()
    _check_scopes(whole)
    for name, hints in _TYPES.items():
        for parameter, value in gin.get_bindings(name).items():
            _check_type(f"{name}.{parameter}", value, hints[parameter])
    return whole


class _NoReferences(config_parser.ParserDelegate):
    """Lets gin's parser read a text without resolving any name."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, scoped_name):
        return scoped_name


def _check_no_imports(name, text):
    """Raises ConfigurationError for an import, or an include, whose file could have one."""
    kinds = {config_parser.ImportStatement: "import", config_parser.IncludeStatement: "include"}
    for statement in config_parser.ConfigParser(text, _NoReferences()):
        if kind := kinds.get(type(statement)):
            raise ConfigurationError(
                f"{name}, line {statement.location.line_num}: {kind!r} is not allowed. A "
                "configuration can only bind what this library registers. Remove the statement, "
                "and pass every file with a --gin_file of its own."
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


def _check_type(name, value, hint):
    """Raises ConfigurationError if a value does not have its annotated type, if that is plain."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = set(typing.get_args(hint)) if is_union else {hint}
    if float in allowed:
        allowed.add(int)
    if allowed <= {bool, int, float, str, types.NoneType} and type(value) not in allowed:
        wanted = getattr(hint, "__name__", None) or str(hint)
        raise ConfigurationError(f"{name} must be of type {wanted}. Received: {value!r}.")
