"""Network, loss and optimizer of an advantage actor-critic.

The encoder of Mnih et al. 2013 is meta-learned and shared by all games. The heads "policy" and
"value" belong to one game, since games differ in their number of actions. The loss is that of one
unroll of T transitions. Arrays are time-major, [T, B] for B copies of a game:

    is_last[t]      whether the observation s_t is the last one of its episode
    actions[t]      a_t, taken at s_t; ignored by the environment if s_t is last
    rewards[t]      r_{t+1}, of the transition
    discounts[t]    γ_{t+1}, 0 if s_{t+1} is terminal
    values[t]       V_t, the critic's value of s_t, t = 0 … T

The transition from a LAST step to the FIRST step of the next episode is not part of a game and is
masked. An episode that a time limit cuts off also ends in a LAST step, but its discount stays γ:
the return continues with the critic's value of the last observation.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

# Heads, and the gain of their initial weights. The policy's small gain makes its odds nearly equal.
_GAINS = {"policy": 0.01, "value": 1.0}


@keras.saving.register_keras_serializable("leap_tf")
class PixelConvolution(keras.layers.Conv2D):
    """A convolution that maps pixels 0–255 to 0–1 first.

    It divides its kernel by 255 instead of the screens, which have 200 times as many values.
    """

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel / 255.0)


def mnih_2013(
    image_size: int = 84, filters: Sequence[int] = (16, 32), units: int = 256
) -> keras.Model:
    """Builds the encoder of "Playing Atari with Deep Reinforcement Learning", section 4.1.

    Args:
        image_size: height and width of the screens in pixels.
        filters: numbers of filters of the two convolutions.
        units: units of the dense layer.

    Returns:
        A built model from screens, [batch, image_size, image_size, 3] pixels 0–255, to features
        [batch, units].
    """
    layers = keras.layers
    screens = keras.Input((image_size, image_size, 3))
    features = PixelConvolution(filters[0], 8, 4, activation="relu", name="conv1")(screens)
    features = layers.Conv2D(filters[1], 4, 2, activation="relu", name="conv2")(features)
    features = layers.Flatten(name="flatten")(features)
    features = layers.Dense(units, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")


def actor_critic(
    encoder: keras.Model, actions: int, value_gain: float = _GAINS["value"]
) -> keras.Model:
    """Builds linear heads "policy" and "value" on an encoder and shares its variables.

    It uses no global random generator, so other threads may run at the same time.

    Args:
        encoder: a built model from screens to [batch, features], without non-trainable variables.
        actions: number of the game's actions.
        value_gain: Euclidean norm of the value head's initial weights.

    Returns:
        A model from screens to logits [batch, actions] and values [batch].

    Raises:
        ValueError: the encoder has non-trainable variables, such as those of batch norm.
    """
    if encoder.non_trainable_variables:
        names = [variable.path for variable in encoder.non_trainable_variables]
        raise ValueError(
            f"The encoder has non-trainable variables, which an agent cannot update: {names}. Use "
            "an encoder without batch norm and dropout."
        )
    features = encoder(encoder.inputs[0])
    heads = []
    for name, units, gain in (("policy", int(actions), _GAINS["policy"]), ("value", 1, value_gain)):
        initializer = _initializer(name, 0, gain)
        heads.append(keras.layers.Dense(units, kernel_initializer=initializer, name=name)(features))
    heads[1] = keras.layers.Reshape((), name="scalar")(heads[1])
    return keras.Model(encoder.inputs[0], heads, name="actor_critic")


def encoder_of(model: keras.Model) -> keras.Model:
    """Returns the encoder of an actor-critic. A model of another kind is an encoder itself."""
    is_agent = _GAINS.keys() <= {layer.name for layer in model.layers}
    return (
        next(each for each in model.layers if isinstance(each, keras.Model)) if is_agent else model
    )


def trained_agent(model: keras.Model, parameters: Sequence[tf.Tensor]) -> keras.Model:
    """Builds an actor-critic from an architecture and the values of all variables.

    The architecture is that of `model`, an encoder or an actor-critic, whose variables are not
    shared. The values are in the order of `trained_variables`.
    """
    actions = parameters[-3].shape[-1]
    model = actor_critic(keras.models.clone_model(encoder_of(model)), actions)
    for variable, value in zip(trained_variables(model), parameters, strict=True):
        variable.assign(value)
    return model


def trained_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables of an actor-critic: those of the encoder, then those of the heads."""
    heads = [variable for name in _GAINS for variable in model.get_layer(name).trainable_variables]
    return [*encoder_of(model).trainable_variables, *heads]


def fresh_heads(
    model: keras.Model, seed: int, value_gain: float = _GAINS["value"]
) -> list[tf.Tensor]:
    """Returns new values for the heads of an actor-critic, in the order of `trained_variables`.

    The seed determines them, on any thread. `value_gain` is the Euclidean norm of the value head's
    weights. The model is not changed.
    """
    values = []
    for name, gain in (_GAINS | {"value": value_gain}).items():
        kernel, bias = model.get_layer(name).trainable_variables
        kernel = tf.convert_to_tensor(_initializer(name, seed, gain)(kernel.shape))
        values += [kernel, tf.zeros(bias.shape)]
    return values


def forward(
    model: keras.Model, parameters: Sequence[tf.Tensor], screens: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs an actor-critic with other values of its `trained_variables`.

    The screens are [batch, height, width, 3] uint8. Returns logits [batch, actions] and values
    [batch].
    """
    mapping = list(zip(trained_variables(model), parameters, strict=True))
    with keras.StatelessScope(state_mapping=mapping):
        return model(tf.cast(screens, tf.float32))


def _initializer(name, seed, gain):
    stream = np.random.default_rng([seed, list(_GAINS).index(name)])
    return keras.initializers.Orthogonal(gain, seed=int(stream.integers(2**31)))


@dataclasses.dataclass(frozen=True)
class ActorCriticLoss:
    """Weights of the loss. The paper gives discount and entropy cost, but no value cost.

    `discount` is γ. The policy's entropy is subtracted with the weight `entropy_cost`, and the
    critic's loss, half its squared error, is added with `value_cost`.
    """

    discount: float = 0.99
    entropy_cost: float = 0.01
    value_cost: float = 1.0


class LossParts(NamedTuple):
    """The loss and its terms: scalars, all reduced in the same way."""

    total: tf.Tensor
    policy: tf.Tensor
    value: tf.Tensor
    entropy: tf.Tensor


def actor_critic_loss(
    logits: tf.Tensor,
    values: tf.Tensor,
    *,
    actions: tf.Tensor,
    rewards: tf.Tensor,
    discounts: tf.Tensor,
    is_last: tf.Tensor,
    settings: ActorCriticLoss,
) -> LossParts:
    """Returns the loss of an unroll,

        L = Σ m_t (− A_t log π(a_t|s_t) + c_v ½ (R_t − V_t)² − c_e H(π(·|s_t))) / Σ m_t

    with A_t = R_t − V_t as a constant, R from `bootstrapped_returns` with γ · discounts, and m from
    `transition_mask`.

    Args:
        logits: [T, B, actions] float32, of the policy.
        values: [T + 1, B] float32; the last one only bootstraps.
        actions, rewards: [T, B], integers and float32.
        discounts: [T, B] float32, the environment's: 0 where the episode ended, else 1.
        is_last: [T + 1, B] bool.
        settings: weights of the loss.
    """
    mask = transition_mask(is_last)
    returns = bootstrapped_returns(
        rewards, settings.discount * discounts, tf.stop_gradient(values), is_last
    )
    errors = returns - values[:-1]
    log_policy = tf.nn.log_softmax(logits)
    log_taken = tf.gather(log_policy, actions, batch_dims=2)
    scale = 1.0 / tf.maximum(tf.reduce_sum(mask), 1.0)
    policy = -scale * tf.reduce_sum(mask * tf.stop_gradient(errors) * log_taken)
    value = scale * tf.reduce_sum(mask * 0.5 * tf.square(errors))
    entropy = -scale * tf.reduce_sum(mask[..., None] * tf.exp(log_policy) * log_policy)
    total = policy + settings.value_cost * value - settings.entropy_cost * entropy
    return LossParts(total, policy, value, entropy)


def transition_mask(is_last: tf.Tensor) -> tf.Tensor:
    """Returns [T, B] float32, 1 for transitions within an episode and 0 between two episodes."""
    return 1.0 - tf.cast(is_last[:-1], tf.float32)


def bootstrapped_returns(
    rewards: tf.Tensor, discounts: tf.Tensor, values: tf.Tensor, is_last: tf.Tensor
) -> tf.Tensor:
    """Returns the discounted reward to the end of the unroll or episode, then the critic's value.

        R_T = V_T,    R_t = r_{t+1} + γ_{t+1} R_{t+1},    and R_t = V_t where s_t is last.

    The last rule stops the recursion at a boundary. Earlier steps bootstrap from V_t if the episode
    was cut off; if it ended, their discount of 0 removes V_t. Returns at boundaries themselves have
    no meaning; `transition_mask` is 0 there. The shapes are those of `actor_critic_loss`, with T
    known when the graph is built; the discounts include γ. No gradient flows through the result.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016,
    algorithm S3.
    """
    following = values[-1]
    returns = []
    for t in reversed(range(rewards.shape[0])):
        following = tf.where(is_last[t], values[t], rewards[t] + discounts[t] * following)
        returns.append(following)
    return tf.stop_gradient(tf.stack(returns[::-1]))


class RMSProp(keras.optimizers.Optimizer):
    """RMSProp without momentum, with epsilon outside or inside the root.

        outside (Torch, the default)   Δθ = − α g / (√v + ε)
        inside (Keras, TensorFlow)     Δθ = − α g / √(v + ε)

    with v ← ρ v + (1 − ρ) g². Inside the root, ε acts like √ε on the scale of gradients: ε = 10⁻⁴
    damps all gradients below 10⁻², the scale of a mean loss's gradients. Appendix H of the Leap
    paper names its constants α = 0.99 and ε = 10⁻⁴ as Torch does, and the original code uses Torch.

    Args:
        learning_rate, decay, epsilon: α, or a schedule of it; ρ; ε.
        epsilon_inside_root: whether ε is inside the root.
        name, **kwargs: as for `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        decay: float = 0.99,
        epsilon: float = 1e-4,
        epsilon_inside_root: bool = False,
        *,
        name: str = "rmsprop",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.decay, self.epsilon = decay, epsilon
        self.epsilon_inside_root = epsilon_inside_root

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._mean_squares = self.add_optimizer_variables(variables, "mean_square")

    def update_step(self, gradient, variable, learning_rate):
        slot = self._mean_squares[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, variable.dtype)
        mean_square = self.decay * slot + (1.0 - self.decay) * ops.square(gradient)
        if self.epsilon_inside_root:
            root = ops.sqrt(mean_square + self.epsilon)
        else:
            root = ops.sqrt(mean_square) + self.epsilon
        self.assign(slot, mean_square)
        self.assign_add(variable, -ops.cast(learning_rate, variable.dtype) * gradient / root)

    def get_config(self):
        own = ("decay", "epsilon", "epsilon_inside_root")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
