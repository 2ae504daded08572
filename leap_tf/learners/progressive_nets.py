"""Progressive networks (Rusu et al. 2016): a column for each task, fed by all columns before it.

Column k computes, in block l, with the units of its own block before and those of the columns
j < k, which it reads and never changes:

    hₗᵏ = rest of the block( Wₗᵏ hₗ₋₁ᵏ + Uₗᵏ relu(Vₗᵏ [α₁ hₗ₋₁¹; …; αₖ₋₁ hₗ₋₁ᵏ⁻¹]) )

V is 1×1 and projects to the width of one column, U is like W, α are learned scalars that begin
small. The head has an adapter of the same form.

Progressive Nets: a new column of the network for every task, fed by the columns before it.

Rusu et al., "Progressive Neural Networks", 2016; revisits as in Flennerhag et al. 2019, appendix G.
The columns are in `leap_tf.models.progressive`. A column trains on visits to its own task only.
"""

import dataclasses
import inspect

import keras
import numpy as np
import tensorflow as tf

from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import OfKnownClasses, head_name, reseeded
from leap_tf.learners.sequential import WITH_UNITS, Chain, SequentialLearner, chain_of
from leap_tf.tasks import Task, TaskDistribution

_FIRST_SCALE = 0.01  # of α
_ROLES = ("", "adapt_")  # of a layer after the plan: W and U


@keras.saving.register_keras_serializable(package="leap_tf")
class Frozen(keras.layers.Layer):
    """Another layer as it is: in evaluation mode, and with no gradient to its variables.

    Args:
        layer: the layer.
        **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, layer: keras.Layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs):
        takes_training = "training" in inspect.signature(self.layer.call).parameters
        options = {"training": False} if takes_training else {}
        return tf.stop_gradient(self.layer(inputs, **options))

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@keras.saving.register_keras_serializable(package="leap_tf")
class Scaled(keras.layers.Layer):
    """Multiplies by one learned number, which begins at 0.01."""

    def build(self, input_shape):
        self.scale = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(_FIRST_SCALE), name="scale"
        )

    def call(self, inputs):
        return self.scale * inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def progressive_columns(model: keras.Model, head: str, columns: int) -> list[keras.Model]:
    """Builds columns in the image of a model.

    Args:
        model: a chain of layers with a linear head; used as a plan, not changed.
        head: the name of its head.
        columns: how many.

    Returns:
        A model for each column from [inputs, number of the task, its classes], the last two
        [batch], to logits. It shares the variables of the columns before it and does not train
        them.

    Raises:
        ValueError: the model is no chain of layers with a linear head.
    """
    chain = chain_of(model, head)
    inputs = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype, name="inputs")
    number = keras.Input((), dtype="int32", name="task")
    classes = keras.Input((), dtype="int32", name="classes")
    earlier: list[list[keras.KerasTensor]] = []  # of each frozen column, the output of each block
    models = []
    for column in range(columns):
        grown = _Column(chain, column)
        logits = grown.run(inputs, earlier)
        known = OfKnownClasses(name=f"classes_{column}")([logits, classes])
        models.append(keras.Model([inputs, number, classes], known, name=f"column_{column}"))
        if column < columns - 1:
            earlier.append(grown.blocks(inputs, earlier, frozen=True))
    return models


class _Column:
    """The layers of one column, to be run as its own task trains them and as later ones see them.

    Args:
        chain: the plan.
        number: how many columns are before it.
    """

    def __init__(self, chain: Chain, number: int):
        self._number = number
        self._chain = chain
        self._layers: dict[str, keras.Layer] = {}

    def run(self, inputs, earlier):
        """Returns the logits."""
        values = self.blocks(inputs, earlier)[-1]
        logits = self._apply(self._chain.head, self._shaped(values))
        lateral = self._lateral(self._chain.head, [column[-1] for column in earlier], "head")
        return logits if lateral is None else logits + lateral

    def blocks(self, inputs, earlier, frozen=False):
        """Returns the output of each block, from which no gradient comes back if frozen."""
        values, outputs = inputs, []
        for level, (first, *rest) in enumerate(self._chain.blocks):
            summed = self._apply(first, values, frozen)
            if level:
                seen = [column[level - 1] for column in earlier]
                lateral = self._lateral(first, seen, str(level), frozen)
                summed = summed if lateral is None else summed + lateral
            values = keras.activations.get(first.activation)(summed)
            for layer in rest:
                values = self._apply(layer, values, frozen)
            outputs.append(values)
        return outputs

    def _lateral(self, layer, seen, level, frozen=False):
        """What earlier columns add before the nonlinearity of a block, or to the logits."""
        if not seen:
            return None
        scaled = [
            self._apply(Scaled(name=f"scale_{level}_{index}"), value, frozen)
            for index, value in enumerate(seen)
        ]
        joined = scaled[0] if len(scaled) == 1 else keras.ops.concatenate(scaled, axis=-1)
        width = seen[0].shape[-1]
        project = {
            4: lambda: keras.layers.Conv2D(width, 1, name=f"project_{level}"),
            2: lambda: keras.layers.Dense(width, name=f"project_{level}"),
        }
        if len(joined.shape) not in project:
            raise ValueError(
                f"Columns are of images or of vectors; {layer.name!r} sees {joined.shape}."
            )
        projected = keras.ops.relu(self._apply(project[len(joined.shape)](), joined, frozen))
        if layer is self._chain.head:
            projected = self._shaped(projected)
        return self._apply(layer, projected, frozen, role="adapt_")

    def _shaped(self, values):
        for layer in self._chain.shaping:
            values = self._apply(layer, values)
        return values

    def _apply(self, plan, values, frozen=False, role=""):
        """Runs this column's own layer after the plan, made at the first call."""
        name = f"{role}{plan.name}_{self._number}"
        if name not in self._layers:
            settings = {**plan.get_config(), "name": name}
            if isinstance(plan, WITH_UNITS):
                settings["activation"] = None  # that of a block comes after its laterals
            self._layers[name] = type(plan).from_config(settings)
            _reseed(self._layers[name], self._number, _ROLES.index(role))
        layer = self._layers[name]
        return Frozen(layer, name=f"frozen_{name}")(values) if frozen else layer(values)


def _reseed(layer, *place):
    for name, value in list(vars(layer).items()):
        if isinstance(value, keras.initializers.Initializer):
            setattr(layer, name, reseeded(value, *place))


class ProgressiveNets(SequentialLearner):
    """A column for every task, in the order of the tasks, and one more for the task that is judged.

    Needs `task_layers=[head]`. Where tasks have different numbers of classes, the head must have
    as many units as the largest. Columns are built beforehand: memory and time grow with the
    square of their number.

    Tasks may be visited in turns, round after round, as in Flennerhag et al. (appendix G). In the
    original a column is trained once, before the next is made, and never moves again. Here a
    revisit moves a column after later ones were fitted to its features, so it does change what
    they compute, until their own next visit. What holds is that a visit trains its own column only.

    Args:
        tasks: how many tasks there are to train on. A column that is not trained would feed noise
            to the one that is judged, so there must be exactly as many.
    """

    def __init__(self, tasks: int = 7):
        super().__init__(tasks)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        plan = super().plan(setup)
        head = head_name(setup.task_layers, type(self).__name__)
        columns = progressive_columns(setup.model, head, self.tasks + 1)
        return dataclasses.replace(
            plan,
            models=columns,
            evaluation_model=columns[-1],
            model_index=lambda task: task.number,  # type: ignore[attr-defined]
            # All of it: running statistics belong to a column, and so to a task.
            persistent_state=list(columns[-1].non_trainable_variables),
        )

    def _next_task(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        sampled = super()._next_task(distribution, count, meta_step, rng)
        present = len(distribution.tasks)  # type: ignore[attr-defined]
        if present != self.tasks:
            raise ValueError(
                f"There are {present} tasks and {self.tasks} columns for them. A column without a "
                f"task would never be trained. Give ProgressiveNets(tasks={present})."
            )
        return sampled
