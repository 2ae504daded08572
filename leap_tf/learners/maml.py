"""MAML: move the initialization so that a few steps from it generalise.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
2017, and its first-order approximation. The objective is the loss, after K steps, on other
batches, see `Learner.query_batches`. For few-shot tasks, whose examples fit into a batch or two,
give the task a `query_batches(seed)`:

    min over θ⁰ of  E_τ f_τ(θᴷ(θ⁰); query batches)

MAML's gradient goes through all K steps, Hessians included; FOMAML takes the gradient at θᴷ for
it. (The original Leap code adds the last inner training loss to the objective, by mistake.)
"""

from leap_tf.learners.learner import StatelessLearner, TaskEnd, TaskUpdate


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
