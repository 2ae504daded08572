"""n-step returns of an unroll, bootstrapped from the critic, right across the ends of episodes.

An unroll has T transitions. Arrays are time-major, [T, B] for B environments:

    step type      S_t        is_last[t]: the observation s_t is the last one of its episode
    action         a_t        taken at s_t; ignored by the environment where s_t is last
    reward         r_{t+1}    what followed, `rewards[t]`
    discount       γ_{t+1}    γ, or 0 if s_{t+1} is terminal, `discounts[t]`
    value          V_t        the critic's of s_t, t = 0 … T

After a LAST step comes the FIRST one of the next episode, and the transition between them is
none of the game's: it is masked. An episode that was cut off by a time limit ends in a LAST
step too, but its discount stays γ: the return then continues with the critic's value of that
last observation, since the game would have gone on.
"""

import tensorflow as tf


def transition_mask(is_last: tf.Tensor) -> tf.Tensor:
    """Returns 1 for transitions within an episode and 0 for those from one to the next.

    Args:
        is_last: [T + 1, B] bool.

    Returns:
        [T, B] float32.
    """
    return 1.0 - tf.cast(is_last[:-1], tf.float32)


def bootstrapped_returns(
    rewards: tf.Tensor, discounts: tf.Tensor, values: tf.Tensor, is_last: tf.Tensor
) -> tf.Tensor:
    """Returns the discounted reward to the end of the unroll or episode, then the critic's value.

        R_T = V_T,    R_t = r_{t+1} + γ_{t+1} R_{t+1},    and R_t = V_t where s_t is last.

    The last rule stops the recursion at a boundary: what comes before bootstraps from V_t if
    it was cut off, and from nothing if it ended, because then its discount is 0. The returns at
    boundaries themselves mean nothing; `transition_mask` is 0 there.

    Args:
        rewards: [T, B] float32, T known when the graph is built.
        discounts: [T, B] float32, with γ in it.
        values: [T + 1, B] float32.
        is_last: [T + 1, B] bool.

    Returns:
        [T, B] float32, through which no gradient flows.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016,
    algorithm S3.
    """
    following = values[-1]
    returns = []
    for t in reversed(range(rewards.shape[0])):
        following = tf.where(is_last[t], values[t], rewards[t] + discounts[t] * following)
        returns.append(following)
    return tf.stop_gradient(tf.stack(returns[::-1]))
