"""Adaptation of a Keras model to a new task, without a trainer."""

import os
from collections.abc import Mapping, Sequence

import keras

from leap_tf.errors import whole_number
from leap_tf.functional import output_layer
from leap_tf.functional.model import ErrorFunction
from leap_tf.learners import NoMetaLearning, TrainingSetup
from leap_tf.tasks import Task
from leap_tf.training.supervised import EvaluationConfig, SupervisedProblem


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

    It makes the gradient steps of `MetaTrainer.adapt` for learners without learner variables, such
    as Leap, and needs only the initialization.

    Args:
        model: the initialization, or the path of its `.keras` file, such as the
            `initialization.keras` of a run. It is not changed.
        task: the new task; needs `train_batches` only.
        optimizer: the unused Keras optimizer of the adaptation, or its name.
        loss: the Keras loss of the task, its name, or a list or dictionary for several outputs.
        steps: gradient steps, fewer if the task's batches end before.
        task_layers: names of layers that get new initial values; name those of meta-training. By
            default it is the output layer if the task has a number of `classes` that differs from
            the model's outputs, else none.
        error_fn: see `EvaluationConfig`.
        seed: decides batches, new initial values and dropout.

    Returns:
        A compiled model with an output for each of the task's `classes`.

    Raises:
        ValueError: the model, the optimizer or the task cannot be used, or they do not fit.
        UnsupportedModelError: the model cannot be copied.

    Example:

        >>> import keras, leap_tf
        >>> initialization = leap_tf.mlp(hidden=[4])
        >>> task = leap_tf.sinusoid_splits().test[0]
        >>> model = leap_tf.adapt(initialization, task, keras.optimizers.SGD(0.01), "mse", steps=5)
        >>> model.fit(*task.train, verbose=0).params["epochs"]  # an ordinary Keras model
        1
    """
    if not isinstance(model, keras.Model):
        model = keras.saving.load_model(model, compile=False)
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    if task_layers is None:
        task_layers = _layers_of_other_width(model, task)
    setup = TrainingSetup(
        model=model,
        inner_optimizer=optimizer,
        meta_optimizer=keras.optimizers.SGD(),
        steps_per_task=whole_number("steps", steps, 1),
        meta_batch_size=1,
        task_layers=tuple(task_layers),
    )
    evaluation = EvaluationConfig(error_fn=error_fn)
    problem = SupervisedProblem(setup, loss, NoMetaLearning(), evaluation=evaluation)
    return problem.adapt(task, whole_number("seed", seed, 0), steps)


def _layers_of_other_width(model, task):
    classes, head = getattr(task, "classes", None), output_layer(model)
    if classes is None or head is None or classes == model.output_shape[-1]:
        return ()
    return (head.name,)
