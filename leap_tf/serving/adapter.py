"""Training on a support set in the graph, with the inner loop of the library."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.array_tasks import OrderedBatches
from leap_tf.functional import (
    FunctionalModel,
    FunctionalOptimizer,
    TaskLayers,
    meta_learned_indices,
    output_layer,
)
from leap_tf.functional.task_layers import check_resizable
from leap_tf.learners.base import Adaptation
from leap_tf.training import InnerLoop, InnerLoopResult, SupervisedProblem


class Adapter:
    """Adapts a model to tasks as `MetaTrainer.evaluate` does, but ignores a stop rule.

    The problem holds the initialization and the settings of adaptation. The layers named by
    `task_layers` are reinitialized for every request. Among them, `head` gets as many units as the
    task has classes; it is None if every task has the units of the model.
    """

    def __init__(
        self,
        problem: SupervisedProblem,
        model: FunctionalModel,
        task_layers: Sequence[str],
        head: str | None,
    ):
        self._model = model
        self._head = head
        self._learner_variables = problem.learner_variables
        self._task_layers = TaskLayers(problem.model, task_layers)
        indices = range(len(model.variables))
        outside_head = meta_learned_indices(problem.model, [head] if head else [])
        learned = meta_learned_indices(problem.model, problem.evaluation_task_layers)
        self._loop = InnerLoop(
            model,
            FunctionalOptimizer(problem.evaluation_optimizer, model.variables),
            Adaptation(problem.learner, learned),
            indices,
            resizable=sorted({*indices} - {*outside_head}),
        )

    def train(
        self,
        batches: OrderedBatches,
        steps: tf.Tensor,
        *,
        learning_rate: tf.Tensor,
        seed: tf.Tensor,
        num_classes: tf.Tensor | None,
    ) -> InnerLoopResult:
        """Trains from the learned initialization, on one batch more than the int32 `steps`.

        The float32 `learning_rate` is that of the first step. The int64 seed decides the values of
        task layers and dropout. `num_classes`, int32, are the units of the `head`, if there is one.

        Raises:
            InvalidArgumentError: in the graph, if the batches do not fit the model.
        """
        units = {self._head: num_classes} if self._head else {}
        parameters, state = self._model.initial_values(seed, self._task_layers.draw(seed, units))
        return self._loop.train(
            batches,
            steps,
            parameters,
            state,
            learner_values=[tf.convert_to_tensor(each.value) for each in self._learner_variables],
            learning_rate=learning_rate,
        )


def resizable_head(problem: SupervisedProblem) -> str | None:
    """Returns the name of the output layer if tasks may have any number of classes, else None.

    It must be a Dense layer whose initializers and optimizer slots do not need the number of units
    in advance, without learner variables of its own, such as the rates of Meta-SGD.
    """
    head = output_layer(problem.model)
    if not isinstance(head, keras.layers.Dense):
        return None
    if problem.learner_variables and head.name not in problem.evaluation_task_layers:
        return None
    variables = problem.model.trainable_variables
    if not FunctionalOptimizer(problem.evaluation_optimizer, variables).resizes:
        return None
    try:
        for initializer in (head.kernel_initializer, head.bias_initializer):
            check_resizable(initializer, head.name)
    except ValueError:
        return None
    return head.name


def weight_names(model: keras.Model) -> dict[int, str]:
    """Returns the names of a model's weights, such as "encoder/dense/kernel", by their ids.

    A name has the layers from the model down, and the variable's own name. The names are in the
    order of `model.weights`. Unlike `keras.Variable.path`, they are the same for a model that was
    read from its file, except for layers that a subclass makes without a name.

    Raises:
        ValueError: two weights have the same name.
    """
    names: dict[int, str] = {}

    def visit(layer, prefix):
        for variable in [*layer._trainable_variables, *layer._non_trainable_variables]:
            names.setdefault(id(variable), f"{prefix}{variable.name}")
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            visit(inner, f"{prefix}{inner.name}/")

    visit(model, "")
    found = {id(variable): names[id(variable)] for variable in model.weights}
    twice = {name for name in found.values() if list(found.values()).count(name) > 1}
    if twice:
        raise ValueError(
            f"Several weights of {model.name!r} are {min(twice)!r}. Give the layers different "
            "names: adapt_weights returns weights by name."
        )
    return found
