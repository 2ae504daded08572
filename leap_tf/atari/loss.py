"""The loss of an advantage actor-critic on one unroll."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from leap_tf.atari.returns import bootstrapped_returns, transition_mask

REDUCTIONS = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class ActorCriticLoss:
    """What is weighed how.

    Appendix H gives discount and entropy cost, and neither the weight of the critic nor whether
    the loss is a mean or a sum. The default is the mean: Leap's path has the loss for a coordinate,
    which then does not depend on how many environments there are.

    Args:
        discount: γ.
        entropy_cost: weight of the policy's entropy, which is rewarded.
        value_cost: weight of the critic's loss, half its squared error.
        reduction: "mean" or "sum" over the transitions of an unroll, boundaries left out.

    Raises:
        ValueError: `reduction` is unknown.
    """

    discount: float = 0.99
    entropy_cost: float = 0.01
    value_cost: float = 1.0
    reduction: str = "mean"

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, and is {self.reduction!r}.")


class LossParts(NamedTuple):
    """The loss and what it is made of; all scalars, reduced in the same way."""

    total: tf.Tensor
    policy: tf.Tensor
    value: tf.Tensor
    entropy: tf.Tensor


def actor_critic_loss(
    logits: tf.Tensor,
    values: tf.Tensor,
    actions: tf.Tensor,
    rewards: tf.Tensor,
    discounts: tf.Tensor,
    is_last: tf.Tensor,
    settings: ActorCriticLoss,
) -> LossParts:
    """Returns the loss of an unroll,

        L = Σ m_t (− A_t log π(a_t|s_t) + c_v ½ (R_t − V_t)² − c_e H(π(·|s_t)))

    with A_t = R_t − V_t as a constant, R from `bootstrapped_returns` with γ · discounts, and m the
    mask of boundaries; divided by Σ m for the mean.

    Args:
        logits: [T, B, actions] float32, of the policy.
        values: [T + 1, B] float32; the last only bootstraps.
        actions: [T, B] integers.
        rewards: [T, B] float32, that followed.
        discounts: [T, B] float32, the environment's: 0 where the episode ended, else 1.
        is_last: [T + 1, B] bool.
        settings: the weights.
    """
    mask = transition_mask(is_last)
    returns = bootstrapped_returns(
        rewards, settings.discount * discounts, tf.stop_gradient(values), is_last
    )
    errors = returns - values[:-1]
    log_policy = tf.nn.log_softmax(logits)
    log_taken = tf.gather(log_policy, actions, batch_dims=2)
    scale = 1.0
    if settings.reduction == "mean":
        scale = 1.0 / tf.maximum(tf.reduce_sum(mask), 1.0)
    policy = -scale * tf.reduce_sum(mask * tf.stop_gradient(errors) * log_taken)
    value = scale * tf.reduce_sum(mask * 0.5 * tf.square(errors))
    entropy = -scale * tf.reduce_sum(mask[..., None] * tf.exp(log_policy) * log_policy)
    total = policy + settings.value_cost * value - settings.entropy_cost * entropy
    return LossParts(total, policy, value, entropy)
