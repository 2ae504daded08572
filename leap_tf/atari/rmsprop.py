"""RMSProp with a choice that Keras does not offer: where epsilon stands.

    outside (Torch, the default)   Δθ = − α g / (√v + ε)
    inside (Keras, TensorFlow)     Δθ = − α g / √(v + ε)

with v ← ρ v + (1 − ρ) g². Inside the root, ε works like √ε on the scale of gradients: ε = 10⁻⁴
damps all gradients smaller than 10⁻², which those of a mean loss are. Appendix H of the Leap paper
names its constants α = 0.99 and ε = 10⁻⁴ as Torch does, in which the original code is written, so
the default is outside.
"""

import keras
from keras import ops


def rmsprop_step(gradient, mean_square, learning_rate, decay, epsilon, epsilon_inside_root):
    """Returns the change of a parameter and its new mean square.

    Args:
        gradient: g.
        mean_square: v before this step, of the same shape.
        learning_rate: α.
        decay: ρ.
        epsilon: ε.
        epsilon_inside_root: where it stands.

    Returns:
        Δθ and v.
    """
    mean_square = decay * mean_square + (1.0 - decay) * ops.square(gradient)
    if epsilon_inside_root:
        root = ops.sqrt(mean_square + epsilon)
    else:
        root = ops.sqrt(mean_square) + epsilon
    return -learning_rate * gradient / root, mean_square


class RMSProp(keras.optimizers.Optimizer):
    """RMSProp without momentum; see the module for the formula.

    Args:
        learning_rate: α, or a schedule.
        decay: ρ.
        epsilon: ε.
        epsilon_inside_root: whether ε stands inside the root.
        name: as for `keras.optimizers.Optimizer`.
        **kwargs: likewise; `global_clipnorm` for instance.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        decay: float = 0.99,
        epsilon: float = 1e-4,
        epsilon_inside_root: bool = False,
        name: str = "rmsprop",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.decay = decay
        self.epsilon = epsilon
        self.epsilon_inside_root = epsilon_inside_root

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._mean_squares = self.add_optimizer_variables(variables, "mean_square")

    def update_step(self, gradient, variable, learning_rate):
        slot = self._mean_squares[self._get_variable_index(variable)]
        change, mean_square = rmsprop_step(
            ops.cast(gradient, variable.dtype),
            slot,
            ops.cast(learning_rate, variable.dtype),
            self.decay,
            self.epsilon,
            self.epsilon_inside_root,
        )
        self.assign(slot, mean_square)
        self.assign_add(variable, change)

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "epsilon": self.epsilon,
            "epsilon_inside_root": self.epsilon_inside_root,
        }
