"""A model that Keras reads without this library.

A Keras model with the weights that a server has adapted.

A learned initialization as an artefact that any TensorFlow runtime serves.

saved_model/   signatures serving_default, adapt and adapt_weights (see `signatures.py`), and
               each again with `_uint8` behind its name, where inputs are images
model.keras    the Keras model, which `keras.saving.load_model` alone reads
"""

import os
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from leap_tf.models import BatchNormalization
from leap_tf.serving.request_checks import Limits
from leap_tf.serving.signatures import Prepare, Signatures
from leap_tf.tasks import pixels_to_floats
from leap_tf.training import MetaTrainer, SupervisedProblem


def portable_model(model: keras.Model) -> keras.Model:
    """Returns a copy in which this library's layers are Keras's own, with the same weights.

    `leap_tf.models.BatchNormalization` differs from Keras's in training only, by a faster kernel
    and an unbiased running variance.

    Args:
        model: a built functional or sequential model, which is not changed.
    """
    if not any(isinstance(layer, BatchNormalization) for layer in model._flatten_layers()):
        return model
    copy = keras.models.clone_model(model, clone_function=_as_keras_layer, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _as_keras_layer(layer):
    cls = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else type(layer)
    return cls.from_config(layer.get_config())


def adapted_model(model: keras.Model, weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns a copy of a model with what the signature `adapt_weights` returned.

    The weights go by the variables' paths. A Dense layer that came back with another number of
    units gets that number.

    Args:
        model: the exported Keras model, as `keras.saving.load_model` reads it; not changed.
        weights: outputs of `adapt_weights`. What is no weight, such as "losses", is passed over.

    Raises:
        ValueError: a weight of the model is missing, or has another shape.
    """
    missing = {variable.path for variable in model.weights} - set(weights)
    if missing:
        raise ValueError(f"There are no weights for {sorted(missing)}; are they of this model?")

    def clone(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Dense):
            settings["units"] = int(np.shape(weights[layer.kernel.path])[-1])
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for old, new in zip(model.weights, copy.weights, strict=True):
        new.assign(weights[old.path])
    return copy


FUNCTIONS = ("serving_default", "adapt", "adapt_weights")


def export(
    trainer: MetaTrainer,
    path: str | os.PathLike,
    prepare_uint8: Prepare = pixels_to_floats,
    query_batch_size: int = 500,
    limits: Limits | None = None,
) -> None:
    """Writes the learned initialization of a trainer as a SavedModel that predicts and adapts.

    Args:
        trainer: holds the learned initialization, and how tasks are trained on: the model, loss,
            inner optimizer, fresh task layers, batch-norm policy, and the learner's direction.
        path: the folder to write; it must not exist.
        prepare_uint8: from a batch of uint8 images to what the model takes, for models of images.
        query_batch_size: examples that are judged at a time. With transductive batch norm, those
            that share their statistics.
        limits: the largest numbers a request may have; `Limits()` by default.

    Raises:
        FileExistsError: there is something at `path`.
        ValueError: the model cannot be served, and why.
    """
    folder = pathlib.Path(path)
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Give another path, or remove it first.")
    problem = trainer.problem
    if not isinstance(problem, SupervisedProblem):
        raise ValueError(f"A {type(problem).__name__} cannot be exported, only supervised tasks.")
    inputs = _input_spec(trainer.model)
    archive = keras.export.ExportArchive()
    archive.track(trainer.model)
    archive.add_variable_collection("learner", trainer.learner_variables)
    variants = {"": Signatures(problem, inputs, tf.identity, query_batch_size, limits or Limits())}
    if inputs.dtype.is_floating and inputs.shape.rank == 4:
        pixels = tf.TensorSpec(inputs.shape, tf.uint8)
        variants["_uint8"] = Signatures(
            problem, pixels, prepare_uint8, query_batch_size, limits or Limits()
        )
    for suffix, signatures in variants.items():
        for name in FUNCTIONS:
            function = getattr(signatures, name)
            archive.add_endpoint(name + suffix, function, signatures.specs(name))
    archive.write_out(folder / "saved_model", verbose=False)
    portable_model(trainer.model).save(folder / "model.keras")


def _input_spec(model: keras.Model) -> tf.TensorSpec:
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "An exported model is functional or sequential, with one input and one output, and "
            f"{model.name!r} is a {type(model).__name__} with {len(inputs)} inputs. Wrap it in "
            "keras.Model(inputs, outputs)."
        )
    paths = [variable.path for variable in model.weights]
    if len(set(paths)) < len(paths):
        raise ValueError(
            "Adapted weights are returned by the variables' paths, and some of "
            f"{model.name!r} are the same. Give its layers names of their own."
        )
    return tf.TensorSpec(inputs[0].shape, inputs[0].dtype)
