"""MAML and its relatives: move the initialization so that a few steps from it generalise.

The objective is the loss after K steps on the query batches:

    min over θ⁰ of  E_τ f_τ(θᴷ(θ⁰); query batches)

In few-shot tasks the task provides them, and the steps have not seen them. Others may repeat
training examples, see `Learner.query_batches`. The original Leap code adds the last training loss
to this objective by mistake; this one does not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from leap_tf.errors import names, whole_number
from leap_tf.geometry import Tensors
from leap_tf.learners.base import (
    Directions,
    StatelessLearner,
    TaskEnd,
    TaskUpdate,
    TrainingPlan,
    TrainingSetup,
)


class MAML(StatelessLearner):
    """Model-agnostic meta-learning, with second derivatives.

    The meta-gradient of a task is d f(θᴷ) / dθ⁰. All steps are recorded for it, so time and
    memory grow with their number; five to ten steps are usual. For long or unstable training there
    are three remedies of Antoniou et al. 2019 ("MAML++"):

    `multi_step_until` = M: in meta-step m < M (from 0) the objective has the query losses after all
    K steps, and the weight of the last grows to 1,

        Σ vᵢ f(θⁱ),  vᵢ = (1 − m/M) / K for i < K,  vᴷ = 1 − Σ_{i<K} vᵢ.

    `first_order_until`: these first meta-steps use ∇f(θᴷ) as `FOMAML` does, which is cheaper.

    `learned_rates`: factors αₖ on the inner learning rate are meta-learned for every step k and
    every tensor of the model, starting at 1. Steps after the K-th use the factors of the K-th.

    Sources: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", ICML 2017. Antoniou, Edwards and Storkey, "How to train your MAML", ICLR 2019.

    Args:
        query_batches: number of batches over which f is averaged.
        multi_step_until, first_order_until, learned_rates: see above. In first-order meta-steps the
            objective is the last loss alone, and factors are not learned.

    Raises:
        TypeError: a number is not a whole number.
        ValueError: `query_batches` is below 1, or another number below 0.

    Example (`FOMAML`, `ANIL` and `MetaSGD` are used in the same way):

        >>> import keras, leap_tf
        >>> inner, meta = keras.optimizers.SGD(0.01), keras.optimizers.Adam(0.001)
        >>> trainer = leap_tf.MetaTrainer(
        ...     leap_tf.mlp(), "mse", inner, meta, learner=leap_tf.MAML(), steps_per_task=5
        ... )
    """

    second_order = True

    def __init__(
        self,
        query_batches: int = 1,
        *,
        multi_step_until: int = 0,
        first_order_until: int = 0,
        learned_rates: bool = False,
    ):
        self.query_batches = whole_number("query_batches", query_batches, 1)
        self.multi_step_until = whole_number("multi_step_until", multi_step_until, 0)
        self.first_order_until = whole_number("first_order_until", first_order_until, 0)
        self.learned_rates = learned_rates
        self._steps = 1

    def get_config(self) -> dict[str, Any]:
        # Remedies that are not used are left out, so that older checkpoints stay comparable.
        remedies = {"multi_step_until", "first_order_until", "learned_rates"}
        config = super().get_config()
        return {name: each for name, each in config.items() if each or name not in remedies}

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        self._steps = setup.steps_per_task
        return dataclasses.replace(
            super().plan(setup),
            first_order_until=self.first_order_until,
            multi_step_until=self.multi_step_until,
        )

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        if not self.learned_rates:
            return []
        return [
            keras.Variable(tf.ones([self._steps], each.dtype), name=f"rates_of_{each.name}")
            for each in variables
        ]

    def direction(self, gradients: Tensors, learner_values: Tensors, step: tf.Tensor) -> Directions:
        if not self.learned_rates:
            return list(gradients)
        step = tf.minimum(step, self._steps - 1)
        return [rates[step] * each for rates, each in zip(learner_values, gradients, strict=True)]

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(end.query_gradient, metrics={})


class FOMAML(MAML):
    """First-order MAML: the meta-gradient is ∇f(θᴷ), without derivatives of the steps.

    Source: Finn, Abbeel and Levine, 2017, section 5.2.

    Args:
        query_batches: see `MAML`.

    Example:

        >>> import leap_tf
        >>> leap_tf.FOMAML(query_batches=2).get_config()
        {'query_batches': 2}
    """

    second_order = False

    def __init__(self, query_batches: int = 1):
        super().__init__(query_batches)


class ANIL(MAML):
    """MAML whose inner loop trains only some layers, "almost no inner loop".

    The weights of all other layers are meta-learned and do not change during a task, in evaluation
    either, except for running statistics. Layers in `task_layers` are always trained.

    Source: Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness
    of MAML", ICLR 2020.

    Args:
        adapted_layers: names of the layers that the inner loop trains.
        query_batches: see `MAML`.

    Raises:
        ValueError: `query_batches` is below 1. Later, when a trainer is made: the model does not
            have one meta-learned layer of each name in `adapted_layers`.

    Example:

        >>> import leap_tf
        >>> leap_tf.ANIL(adapted_layers=["head"]).adapted_layers
        ('head',)
    """

    def __init__(self, adapted_layers: Sequence[str] = ("head",), query_batches: int = 1):
        super().__init__(query_batches)
        self.adapted_layers = names(adapted_layers)
        self._adapted: list[bool] = []

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        layers = [variable.path.split("/")[:-1] for variable in variables]
        for name in self.adapted_layers:
            found = {tuple(path[: path.index(name) + 1]) for path in layers if name in path}
            if len(found) > 1:
                raise ValueError(f"{name!r} is the name of several layers: {sorted(found)}.")
            if not found:
                raise ValueError(
                    f"The model has no meta-learned layer {name!r} for ANIL to adapt; it has "
                    f"{sorted({part for path in layers for part in path})}. Layers in task_layers "
                    "are always adapted: leave them out of adapted_layers."
                )
        self._adapted = [bool(set(path) & set(self.adapted_layers)) for path in layers]
        return []

    def direction(self, gradients: Tensors, learner_values: Tensors, step: tf.Tensor) -> Directions:
        return [
            gradient if adapted else None
            for gradient, adapted in zip(gradients, self._adapted, strict=True)
        ]


class MetaSGD(MAML):
    """MAML that also learns a factor on the inner learning rate of every parameter.

        θ ← θ − λ α ∘ ∇f(θ),  meta-learned: θ⁰ and α

    The inner optimizer receives α ∘ ∇f. With SGD of rate λ, the rate of a parameter is λα. Use
    SGD: Adam and similar optimizers, and clipping by norm, cancel most of α. All α start at 1 and
    may become negative, as in the paper. The meta-gradient has two parts, for θ⁰ and for α.

    Source: Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
    2017.

    Args:
        query_batches: see `MAML`.

    Example:

        >>> import keras, leap_tf
        >>> [rate] = leap_tf.MetaSGD().build([keras.Variable([1.0, 2.0], name="bias")])
        >>> rate.numpy().tolist()
        [1.0, 1.0]
    """

    def __init__(self, query_batches: int = 1):
        super().__init__(query_batches)

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [
            keras.Variable(tf.ones(variable.shape, variable.dtype), name=f"rate_of_{variable.name}")
            for variable in variables
        ]

    def direction(self, gradients: Tensors, learner_values: Tensors, step: tf.Tensor) -> Directions:
        return [rate * gradient for rate, gradient in zip(learner_values, gradients, strict=True)]
