"""Progressive Nets: a new column of the network for every task, fed by the columns before it.

Block l of column k computes

    hₗᵏ = rest of the block( Wₗᵏ hₗ₋₁ᵏ + Uₗᵏ relu(Vₗᵏ [α₁ hₗ₋₁¹; …; αₖ₋₁ hₗ₋₁ᵏ⁻¹]) )

from the previous block of its own column and of all earlier columns, which it does not change. V
is 1×1 and projects to the width of one column, U has the form of W, and the α are learned scalars
with small initial values. The head has an adapter of the same form.

Source: Rusu et al., "Progressive Neural Networks", 2016; repeated training on a task as in
Flennerhag et al. 2019, appendix G.
"""

import dataclasses
import inspect

import keras
import numpy as np
import tensorflow as tf

from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import KnownClassesMask, reseeded
from leap_tf.learners.sequential import (
    UNIT_LAYERS,
    ModelBlocks,
    SequentialLearner,
    split_into_blocks,
)
from leap_tf.tasks import Task, TaskDistribution

_ROLES = ("", "adapt_")  # of a copied layer: W and U


class ProgressiveNets(SequentialLearner):
    """Trains a column of the network for every task, and a new column for evaluation tasks.

    Tasks take turns, so each is trained on many times (Flennerhag et al. 2019, appendix G). In the
    original, a column is trained once, before the next one is added, and then stays fixed. Here,
    training on a task again changes its column after later columns have adapted to its features.
    This changes the outputs of the later columns until their own next turn. Training on a task
    never changes the variables of other columns.

    Requires `task_layers=[head]`, `meta_batch_size=1` and the default meta-optimizer SGD(1.0). If
    tasks differ in their number of classes, the head must have as many units as the largest task.
    All columns are built in advance; memory and time grow with the square of their number.

    Args:
        tasks: the number of training tasks, exactly: an untrained column would feed noise to the
            column of the evaluation task.

    Raises:
        ValueError: `tasks` is below 1.

    Example:

        >>> import keras, leap_tf
        >>> model = leap_tf.conv_net((8, 8, 1), classes=3, filters=4, blocks=2)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> learner = leap_tf.ProgressiveNets(tasks=2)
        >>> options = {"learner": learner, "meta_batch_size": 1, "task_layers": ["head"]}
        >>> trainer = leap_tf.MetaTrainer(model, loss, keras.optimizers.SGD(0.1), **options)
    """

    def __init__(self, tasks: int = 7):
        super().__init__(tasks)

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        plan = super().plan(setup)
        columns = progressive_columns(setup.model, self._head(setup), self.tasks + 1)
        return dataclasses.replace(
            plan,
            models=columns,
            evaluation_model=columns[-1],
            model_index=lambda task: task.number,  # type: ignore[attr-defined]
            # All non-trainable variables: running statistics belong to a column, so to a task.
            persistent_state=list(columns[-1].non_trainable_variables),
        )

    def _next_task(
        self, distribution: TaskDistribution, count: int, meta_step: int, rng: np.random.Generator
    ) -> list[Task]:
        sampled = super()._next_task(distribution, count, meta_step, rng)
        present = len(distribution.tasks)  # type: ignore[attr-defined]
        if present != self.tasks:
            raise ValueError(
                f"There are {present} tasks, and columns for {self.tasks}. A column without a task "
                f"would never be trained. Use ProgressiveNets(tasks={present})."
            )
        return sampled


def progressive_columns(model: keras.Model, head: str, columns: int) -> list[keras.Model]:
    """Builds columns that have the architecture of a model, see `split_into_blocks`.

    Each column is a model from [inputs, int32 [batch] number of the task, int32 [batch] classes of
    the task] to logits. It uses the variables of the earlier columns, frozen.
    """
    original = split_into_blocks(model, head)
    inputs = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype, name="inputs")
    number = keras.Input((), dtype="int32", name="task")
    classes = keras.Input((), dtype="int32", name="classes")
    earlier: list[list[keras.KerasTensor]] = []  # outputs of the blocks of each frozen column
    models = []
    for index in range(columns):
        column = _Column(original, index)
        logits = column.logits(inputs, earlier)
        masked = KnownClassesMask(name=f"classes_{index}")([logits, classes])
        models.append(keras.Model([inputs, number, classes], masked, name=f"column_{index}"))
        if index < columns - 1:
            earlier.append(column.block_outputs(inputs, earlier, frozen=True))
    return models


class _Column:
    """The layers of one column, called for its own task and, frozen, for later columns."""

    def __init__(self, original: ModelBlocks, index: int):
        self._original = original
        self._index = index
        self._layers: dict[str, keras.Layer] = {}

    def logits(self, inputs, earlier):
        values = self.block_outputs(inputs, earlier)[-1]
        logits = self._call(self._original.head, self._reshape(values))
        lateral = self._lateral(self._original.head, [column[-1] for column in earlier], "head")
        return logits if lateral is None else logits + lateral

    def block_outputs(self, inputs, earlier, frozen=False):
        """Returns the output of each block; no gradient flows through it if frozen."""
        values, outputs = inputs, []
        for level, (first, *rest) in enumerate(self._original.blocks):
            summed = self._call(first, values, frozen)
            if level:
                features = [column[level - 1] for column in earlier]
                lateral = self._lateral(first, features, str(level), frozen)
                summed = summed if lateral is None else summed + lateral
            values = keras.activations.get(first.activation)(summed)
            for layer in rest:
                values = self._call(layer, values, frozen)
            outputs.append(values)
        return outputs

    def _lateral(self, layer, features, level, frozen=False):
        """The sum from earlier columns to a block before its nonlinearity, or to the logits."""
        if not features:
            return None
        scaled = [
            self._call(LearnedScale(name=f"scale_{level}_{index}"), value, frozen)
            for index, value in enumerate(features)
        ]
        joined = scaled[0] if len(scaled) == 1 else keras.ops.concatenate(scaled, axis=-1)
        width = features[0].shape[-1]
        if len(joined.shape) == 4:
            projection = keras.layers.Conv2D(width, 1, name=f"project_{level}")
        elif len(joined.shape) == 2:
            projection = keras.layers.Dense(width, name=f"project_{level}")
        else:
            raise ValueError(
                f"Progressive Nets need images or vectors, and the input of {layer.name!r} has the "
                f"shape {joined.shape}."
            )
        projected = keras.ops.relu(self._call(projection, joined, frozen))
        if layer is self._original.head:
            projected = self._reshape(projected)
        return self._call(layer, projected, frozen, role="adapt_")

    def _reshape(self, values):
        for layer in self._original.reshaping:
            values = self._call(layer, values)
        return values

    def _call(self, original, values, frozen=False, role=""):
        """Calls this column's copy of a layer, which the first call makes."""
        name = f"{role}{original.name}_{self._index}"
        if name not in self._layers:
            settings = {**original.get_config(), "name": name}
            if isinstance(original, UNIT_LAYERS):
                settings["activation"] = None  # that of a block follows the lateral sum
            self._layers[name] = type(original).from_config(settings)
            for attribute, value in list(vars(self._layers[name]).items()):
                if isinstance(value, keras.initializers.Initializer):
                    initializer = reseeded(value, self._index, _ROLES.index(role))
                    setattr(self._layers[name], attribute, initializer)
        layer = self._layers[name]
        return FrozenLayer(layer, name=f"frozen_{name}")(values) if frozen else layer(values)


@keras.saving.register_keras_serializable(package="leap_tf")
class FrozenLayer(keras.layers.Layer):
    """Calls another layer in inference mode, without a gradient to its inputs or variables."""

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
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@keras.saving.register_keras_serializable(package="leap_tf")
class LearnedScale(keras.layers.Layer):
    """Multiplies its input by a learned scalar with the initial value 0.01."""

    def build(self, input_shape):
        initializer = keras.initializers.Constant(0.01)
        self.scale = self.add_weight(shape=(), initializer=initializer, name="scale")

    def call(self, inputs):
        return self.scale * inputs

    def compute_output_shape(self, input_shape):
        return input_shape
