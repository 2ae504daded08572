"""Adaptation of a learned initialization to new tasks, here or in an export.

An export has two forms that need neither this library nor Python code:

saved_model/   a SavedModel with the signatures `serving_default`, `adapt` and `adapt_weights`,
               see `leap_tf.serving.signatures`; for models of float images also each with the
               suffix `_uint8`, which takes pixels
model.keras    the Keras model at the initialization, for `keras.saving.load_model`; that of a
               subclassed model needs its class
MODEL_CARD.md, model_card.json    see `leap_tf.serving.model_card`
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import as_arrays, spec_of
from leap_tf.errors import whole_number
from leap_tf.functional import (
    ErrorFunction,
    UnsupportedModelError,
    copy_with_values,
    output_layer,
)
from leap_tf.learners import Leap, Reptile, TrainingSetup
from leap_tf.models import BatchNormalization, MaxPooling2D
from leap_tf.optimizer import LeapOptimizer
from leap_tf.serving.adapter import weight_names
from leap_tf.serving.model_card import describe_model, write_model_card
from leap_tf.serving.signatures import Limits, Prepare, Signatures
from leap_tf.tasks import Task
from leap_tf.training import EvaluationConfig, MetaTrainer, SupervisedProblem


def export(
    trained: MetaTrainer | keras.Model,
    path: str | os.PathLike,
    prepare_uint8: Prepare | None = None,
    query_batch_size: int = 500,
    *,
    inputs: Any = None,
    limits: Limits | None = None,
) -> None:
    """Writes a learned initialization as a SavedModel that predicts and adapts.

    Args:
        trained: a trainer, which holds the initialization and all settings of adaptation: model,
            loss, inner optimizer, task layers, batch-norm policy, and the learner's direction. Or a
            model that is compiled with the `LeapOptimizer` that meta-trained it, and a loss.
        path: the folder to write; it must not exist.
        prepare_uint8: from a batch of uint8 images to an input of the model, for example divided
            by 255. With it, signatures `…_uint8` are written too.
        query_batch_size: number of examples that are predicted together. In transductive mode
            these share their batch statistics.
        inputs: for a subclass of `keras.Model`, which does not know its inputs: a batch of them, as
            a task gives them. Shapes and dtypes are taken, any number of examples is served.
        limits: the largest numbers that a request may contain; `Limits()` by default.

    Raises:
        FileExistsError: `path` exists.
        ValueError: the trainer's problem is not supervised or its learner adapts a model of its
            own (HAT, Progressive Nets), a model is not compiled with a `LeapOptimizer` or not at
            its initialization, a subclassed model is given without `inputs`, or names of weights,
            inputs or outputs are not different.
        UnsupportedModelError: a layer assigns a trainable weight when it is called, or the model
            has no `get_config()`.

    Example:

        >>> import keras, leap_tf, os, tempfile
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", "sgd")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leap_tf.export(trainer, f"{folder}/sinusoids")
        ...     sorted(os.listdir(f"{folder}/sinusoids"))
        ['MODEL_CARD.md', 'model.keras', 'model_card.json', 'saved_model']
    """
    folder = pathlib.Path(path).expanduser()
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Give another path, or remove it first.")
    is_model = isinstance(trained, keras.Model)
    problem = _problem_of(trained) if is_model else trained.problem
    if not isinstance(problem, SupervisedProblem):
        raise ValueError(
            f"A {type(problem).__name__} cannot be exported. Only supervised problems can."
        )
    model = problem.model
    if model is not problem.setup.model:
        raise ValueError(
            f"{type(problem.learner).__name__} adapts a model of its own, which takes the number "
            "of a task with every input. It cannot be exported."
        )
    specs = _input_specs(model, inputs)
    weight_names(model)  # checks that they differ
    _check_can_be_read(model)
    whole_number("query_batch_size", query_batch_size, 1)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_variable_collection("learner", problem.learner_variables)
    variants = {"": (specs, lambda each: tf.nest.map_structure(tf.identity, each))}
    images = [spec.dtype.is_floating and spec.shape.rank == 4 for spec in tf.nest.flatten(specs)]
    if prepare_uint8 and any(images):
        variants["_uint8"] = _with_pixels(specs, images, prepare_uint8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        made = pathlib.Path(unfinished) / folder.name
        try:
            for suffix, variant in variants.items():
                signatures = Signatures(problem, *variant, query_batch_size, limits or Limits())
                for name in ("serving_default", "adapt", "adapt_weights"):
                    endpoint = getattr(signatures, name)
                    archive.add_endpoint(name + suffix, endpoint, signatures.specs(name))
            archive.write_out(made / "saved_model", verbose=False)
        except UnsupportedModelError as error:
            raise error.without_trace() from error
        _portable_model(model).save(made / "model.keras")
        meta_steps = problem.setup.meta_optimizer.iterations if is_model else trained.meta_step
        card = describe_model(problem, int(meta_steps), made)
        if is_model:
            card["method"] |= {"steps_per_task": None, "meta_batch_size": None}  # the user's loops
        write_model_card(card, made)
        made.rename(folder)


def _problem_of(model: keras.Model) -> SupervisedProblem:
    """Returns the problem of a model that a LeapOptimizer has meta-trained."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, LeapOptimizer):
        raise ValueError(
            f"{model.name!r} is compiled with a {type(optimizer).__name__}. Export the MetaTrainer "
            "that trained it, or compile it with the LeapOptimizer that did: "
            "model.compile(optimizer, loss)."
        )
    if not optimizer.holds_initialization:
        raise ValueError(
            f"{model.name!r} is not at an initialization that its LeapOptimizer has learned. Call "
            "optimizer.meta_update() after the last task, and export before further training."
        )
    setup = TrainingSetup(
        model=model,
        inner_optimizer=optimizer.inner_optimizer,
        meta_optimizer=optimizer.meta_optimizer,
        steps_per_task=2,
        meta_batch_size=1,
        task_layers=optimizer.task_layers,
        running_statistics=optimizer.running_statistics,
    )
    learner = Leap(**dataclasses.asdict(optimizer.geometry))
    return SupervisedProblem(setup, model.loss, learner, seed=optimizer.seed)


def _input_specs(model: keras.Model, inputs: Any) -> Any:
    """Returns shapes and dtypes of a model's inputs, for any number of examples."""
    if isinstance(model, keras.Sequential):
        known = model.inputs[0]
    elif getattr(model, "inputs", None):
        known = model.input
    elif inputs is not None:
        known = as_arrays(inputs)
    else:
        raise ValueError(
            f"{model.name!r} is a {type(model).__name__}, which does not know the shapes of its "
            "inputs. Pass a batch of them: leap_tf.export(..., inputs=batch)."
        )
    specs = spec_of(known).element_spec
    is_list = isinstance(specs, (list, tuple)) and len(specs) == 1
    return specs[0] if is_list else specs


def _check_can_be_read(model: keras.Model) -> None:
    try:
        model.get_config()
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no get_config(), so model.keras could not be read again. "
            "Define it: it returns the arguments of __init__ by name."
        ) from error


def _with_pixels(specs, images, prepare_uint8):
    """Returns the inputs with images in uint8, and what prepares them."""

    def prepare(inputs):
        flat = zip(images, tf.nest.flatten(inputs), strict=True)
        prepared = [
            prepare_uint8(each) if is_image else tf.identity(each) for is_image, each in flat
        ]
        return tf.nest.pack_sequence_as(specs, prepared)

    flat = zip(images, tf.nest.flatten(specs), strict=True)
    pixels = [tf.TensorSpec(spec.shape, tf.uint8) if image else spec for image, spec in flat]
    return tf.nest.pack_sequence_as(specs, pixels), prepare


def adapt(
    model: keras.Model | str | os.PathLike,
    task: Task,
    optimizer: keras.optimizers.Optimizer | str,
    loss: "keras.losses.Loss | str | Sequence | Mapping",
    steps: int = 100,
    *,
    task_layers: tuple[str, ...] | None = None,
    error_fn: ErrorFunction | None = None,
    seed: int = 0,
) -> keras.Model:
    """Adapts a learned initialization to a task and returns the adapted Keras model.

    This is `MetaTrainer.adapt` without a trainer, for learners that leave the steps on a task to
    the optimizer: not for ANIL, MetaSGD or learned rates of MAML.

    Args:
        model: the initialization, or the path of its `.keras` file, such as the
            `initialization.keras` of a run. It is not changed.
        task: the new task; needs `train_batches` only.
        optimizer: the unused Keras optimizer of the adaptation, or its name.
        loss: as for `MetaTrainer`.
        steps: gradient steps, fewer if the task's batches end before.
        task_layers: names of layers that get new initial values, as in meta-training. By default
            the output layer, if the task's number of `classes` differs from the model's outputs.
        error_fn: see `EvaluationConfig`.
        seed: decides batches, new initial values and dropout.

    Returns:
        A compiled model with an output for each of the task's `classes`.

    Raises:
        ValueError: the model, the optimizer or the task cannot be used, or they do not fit.
        UnsupportedModelError: the model cannot be copied.
        FloatingPointError: training diverged.

    Example:

        >>> import leap_tf
        >>> task = leap_tf.sinusoid_splits().test[0]
        >>> model = leap_tf.adapt(leap_tf.mlp(hidden=[4]), task, "sgd", "mse", steps=5)
        >>> model.fit(*task.train, verbose=0).params["epochs"]  # an ordinary Keras model
        1
    """
    if not isinstance(model, keras.Model):
        model = keras.saving.load_model(model, compile=False)
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    if task_layers is None:
        classes, head = getattr(task, "classes", None), output_layer(model)
        task_layers = ()
        if head is not None and classes not in (None, model.output_shape[-1]):
            task_layers = (head.name,)
    setup = TrainingSetup(
        model=model,
        inner_optimizer=optimizer,
        meta_optimizer=keras.optimizers.SGD(),
        steps_per_task=whole_number("steps", steps, 1),
        meta_batch_size=1,
        task_layers=tuple(task_layers),
    )
    config = EvaluationConfig(error_fn=error_fn)
    problem = SupervisedProblem(setup, loss, Reptile(), evaluation=config)
    return problem.adapt(task, whole_number("seed", seed, 0), steps)


def adapted_model(model: keras.Model, weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns a copy of a Keras model with the weights that `adapt_weights` returned.

    A Dense layer gets the number of units of its returned kernel.

    Args:
        model: the exported model, read by `keras.saving.load_model`; it is not changed.
        weights: the outputs of `adapt_weights`: weights by layer and name, such as "head/kernel",
            and their "order", since layers that Keras names itself get other names when a model is
            read. Without "order" the names are those of `model`. Other outputs are ignored.

    Raises:
        ValueError: a weight of the model is missing or has another name or shape.

    Example:

        >>> import leap_tf
        >>> model = leap_tf.mlp(hidden=[4])
        >>> weights = {"dense/kernel": np.zeros((1, 4)), "dense/bias": np.ones(4),
        ...            "head/kernel": np.ones((4, 2)), "head/bias": np.zeros(2)}
        >>> leap_tf.adapted_model(model, weights)(np.zeros((1, 1))).numpy().tolist()
        [[4.0, 4.0]]
    """
    if "order" in weights:
        names = sorted(set(weights) - {"order", "losses", "support_accuracy", "support_error"})
        names = [name for _, name in sorted(zip(np.asarray(weights["order"]).tolist(), names))]
    else:
        names = list(weight_names(model).values())
    found = [name.rsplit("/", 1)[-1] for name in names if name in weights]
    if found != [variable.name for variable in model.weights]:
        raise ValueError(
            f"{model.name!r} has the weights {list(weight_names(model).values())}. Received: "
            f"{sorted(weights)}. Pass all outputs of adapt_weights of this model."
        )
    values = zip(model.weights, names, strict=True)
    return copy_with_values(model, {id(variable): weights[name] for variable, name in values})


def _portable_model(model: keras.Model) -> keras.Model:
    """Returns the model, with layers of this library replaced by those of Keras.

    Those of `leap_tf.models` give the same outputs as their base classes in inference. Subclassed
    models are returned as they are, since reading them needs their class anyway.
    """
    ours = (BatchNormalization, MaxPooling2D)
    has_ours = any(isinstance(layer, ours) for layer in model._flatten_layers())
    if not has_ours or not getattr(model, "inputs", None):
        return model

    def clone(layer):
        if hasattr(layer, "adapt"):  # preprocessing, whose weights are not all of its state
            return layer
        cls = next(each for each in type(layer).__mro__ if not issubclass(each, ours))
        return cls.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy
