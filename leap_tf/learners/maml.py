"""MAML: move the initialization so that a few steps from it generalise.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
2017, and its first-order approximation. The objective is the loss, after K steps, on other
batches, see `Learner.query_batches`. For few-shot tasks, whose examples fit into a batch or two,
give the task a `query_batches(seed)`:

    min over θ⁰ of  E_τ f_τ(θᴷ(θ⁰); query batches)

MAML's gradient goes through all K steps, Hessians included; FOMAML takes the gradient at θᴷ for
it. (The original Leap code adds the last inner training loss to the objective, by mistake.)

ANIL: MAML whose inner loop trains the head only.

Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of
MAML", 2020. The body is meta-learned through the outer gradient and stays as it is on every
task, held-out ones included.

Meta-SGD: MAML that also learns a learning rate for every parameter.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

    θ ← θ − α ∘ ∇f(θ),  meta-learned: θ⁰ and α
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.learners.base import StatelessLearner, TaskEnd, TaskUpdate


class MAML(StatelessLearner):
    """Meta-gradient d f(θᴷ) / d θ⁰, with second derivatives.

    The steps are recorded, so use few: five to ten.

    Args:
        query_batches: batches after the last step on which f(θᴷ) is taken.

    Raises:
        ValueError: `query_batches` is not positive.
    """

    second_order = True

    def __init__(self, query_batches: int = 1):
        if query_batches < 1:
            raise ValueError(f"query_batches must be at least 1, and is {query_batches}.")
        self.query_batches = query_batches

    def end_task(self, state: tuple[()], end: TaskEnd) -> TaskUpdate:
        return TaskUpdate(end.query_gradient, metrics={})


class FOMAML(MAML):
    """First-order MAML: meta-gradient ∇f(θᴷ), no derivative of the steps.

    Args:
        query_batches: batches after the last step on which f(θᴷ) is taken.

    Raises:
        ValueError: `query_batches` is not positive.
    """

    second_order = False


class ANIL(MAML):
    """MAML with all but the named layers at rest during adaptation.

    Layers that start fresh on every task (`task_layers`) are always trained.

    Args:
        adapted_layers: names of the layers that are trained on a task.
        query_batches: as for `MAML`.

    Raises:
        ValueError: `query_batches` is not positive.
    """

    def __init__(self, adapted_layers: Sequence[str] = ("head",), query_batches: int = 1):
        super().__init__(query_batches)
        self.adapted_layers = tuple(adapted_layers)
        self._adapted: list[bool] = []

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        layers = [variable.path.split("/")[:-1] for variable in variables]
        for name in self.adapted_layers:
            if not any(name in path for path in layers):
                raise ValueError(
                    f"There is no meta-learned layer {name!r} for ANIL to adapt; there are "
                    f"{sorted({part for path in layers for part in path})}. If it starts fresh on "
                    "every task, leave it out of adapted_layers."
                )
        self._adapted = [bool(set(path) & set(self.adapted_layers)) for path in layers]
        return []

    def direction(
        self, gradients: Sequence[tf.Tensor], learner_values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        return [
            gradient if adapted else None
            for gradient, adapted in zip(gradients, self._adapted, strict=True)
        ]


class MetaSGD(MAML):
    """MAML over the initialization and over factors on the inner learning rate.

    The inner optimizer is given α ∘ ∇f, so with SGD of rate λ the rate of a parameter is λα. Adam
    and its like, and clipping by norm, divide most of α out again: take SGD inside.
    All α start at 1; they may become negative, as in the paper. The meta-gradient has two
    parts, with respect to θ⁰ and to α.

    Args:
        query_batches: as for `MAML`.

    Raises:
        ValueError: `query_batches` is not positive.
    """

    def build(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [
            keras.Variable(tf.ones(variable.shape, variable.dtype), name=f"rate_of_{variable.name}")
            for variable in variables
        ]

    def direction(
        self, gradients: Sequence[tf.Tensor], learner_values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        return [rate * gradient for rate, gradient in zip(learner_values, gradients, strict=True)]
