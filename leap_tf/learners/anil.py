"""ANIL: MAML whose inner loop trains the head only.

Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of
MAML", 2020. The body is meta-learned through the outer gradient and stays as it is on every
task, held-out ones included.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from leap_tf.learners.maml import MAML


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
        self, gradients: Sequence[tf.Tensor], own: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        return [
            gradient if adapted else None
            for gradient, adapted in zip(gradients, self._adapted, strict=True)
        ]
