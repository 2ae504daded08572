"""Export of a learned initialization, in two forms that need neither this library nor Python code.

saved_model/   a SavedModel with the signatures `serving_default`, `adapt` and `adapt_weights`,
               see `leap_tf.serving.signatures`; for models of float images also each with the
               suffix `_uint8`, which takes pixels
model.keras    the Keras model at the initialization, for `keras.saving.load_model`
"""

import os
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import pixels_to_floats
from leap_tf.functional import UnsupportedModelError, copy_with_values
from leap_tf.models import BatchNormalization
from leap_tf.serving.signatures import Limits, Prepare, Signatures
from leap_tf.training import MetaTrainer, SupervisedProblem


def export(
    trainer: MetaTrainer,
    path: str | os.PathLike,
    prepare_uint8: Prepare = pixels_to_floats,
    query_batch_size: int = 500,
    *,
    limits: Limits | None = None,
) -> None:
    """Writes the learned initialization of a trainer as a SavedModel that predicts and adapts.

    Args:
        trainer: holds the initialization and all settings of adaptation: model, loss, inner
            optimizer, task layers, batch-norm policy, and the learner's direction.
        path: the folder to write; it must not exist.
        prepare_uint8: from a batch of uint8 images to inputs of the model, for models of images.
        query_batch_size: number of examples that are predicted together. In transductive mode
            these share their batch statistics.
        limits: the largest numbers that a request may contain; `Limits()` by default.

    Raises:
        FileExistsError: `path` exists.
        ValueError: the trainer's problem is not supervised, the model has several inputs or
            outputs or is a subclass without them, or two of its weights have the same path.
        UnsupportedModelError: a layer assigns a trainable weight when it is called.

    Example:

        >>> import keras, leap_tf, os, tempfile
        >>> sgd = keras.optimizers.SGD
        >>> trainer = leap_tf.MetaTrainer(leap_tf.mlp(hidden=[4]), "mse", sgd(0.01), sgd(0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leap_tf.export(trainer, f"{folder}/sinusoids")
        ...     sorted(os.listdir(f"{folder}/sinusoids"))
        ['model.keras', 'saved_model']
    """
    folder = pathlib.Path(path).expanduser()
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Give another path, or remove it first.")
    problem = trainer.problem
    if not isinstance(problem, SupervisedProblem):
        raise ValueError(
            f"A {type(problem).__name__} cannot be exported. Only supervised problems can."
        )
    inputs = _input_spec(trainer.model)
    archive = keras.export.ExportArchive()
    archive.track(trainer.model)
    archive.add_variable_collection("learner", trainer.learner_variables)
    variants = {"": (inputs, tf.identity)}
    if inputs.dtype.is_floating and inputs.shape.rank == 4:
        variants["_uint8"] = (tf.TensorSpec(inputs.shape, tf.uint8), prepare_uint8)
    for suffix, (spec, prepare) in variants.items():
        signatures = Signatures(problem, spec, prepare, query_batch_size, limits or Limits())
        for name in ("serving_default", "adapt", "adapt_weights"):
            archive.add_endpoint(name + suffix, getattr(signatures, name), signatures.specs(name))
    try:
        archive.write_out(folder / "saved_model", verbose=False)
    except UnsupportedModelError as error:
        raise error.without_trace() from error
    _portable_model(trainer.model).save(folder / "model.keras")


def adapted_model(model: keras.Model, weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns a copy of a Keras model with the weights that `adapt_weights` returned.

    A Dense layer gets the number of units of its returned kernel.

    Args:
        model: the exported model, read by `keras.saving.load_model`; it is not changed.
        weights: the outputs of `adapt_weights`: weights by the paths of the variables. Other
            outputs, such as "losses", are ignored.

    Raises:
        ValueError: a weight of the model is missing or has another shape.

    Example:

        >>> import leap_tf
        >>> model = leap_tf.mlp(hidden=[4])
        >>> weights = {each.path: each.numpy() + 1.0 for each in model.weights}
        >>> leap_tf.adapted_model(model, weights).get_layer("head").bias.numpy().tolist()
        [1.0]
    """
    missing = {variable.path for variable in model.weights} - set(weights)
    if missing:
        raise ValueError(
            f"There are no weights for {sorted(missing)}. Pass the outputs of adapt_weights of "
            "this model."
        )

    return copy_with_values(model, {id(each): weights[each.path] for each in model.weights})


def _portable_model(model: keras.Model) -> keras.Model:
    """Returns the model, with layers of this library replaced by those of Keras.

    `leap_tf.models.BatchNormalization` gives the same outputs as Keras's layer in inference.
    """
    if not any(isinstance(layer, BatchNormalization) for layer in model._flatten_layers()):
        return model

    def clone(layer):
        is_ours = isinstance(layer, BatchNormalization)
        cls = keras.layers.BatchNormalization if is_ours else type(layer)
        return cls.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _input_spec(model: keras.Model) -> tf.TensorSpec:
    """Returns the shape and dtype of the model's input, after checking that it can be served."""
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Only functional or sequential models with one input and one output can be exported; "
            f"{model.name!r} is a {type(model).__name__} with {len(inputs)} inputs. Wrap it in "
            "keras.Model(inputs, outputs)."
        )
    paths = [variable.path for variable in model.weights]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"Some weights of {model.name!r} have the same path, and adapt_weights returns weights "
            "by path. Give the layers different names."
        )
    return tf.TensorSpec(inputs[0].shape, inputs[0].dtype)
