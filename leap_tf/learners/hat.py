"""HAT, hard attention to the task: every task reserves the units that it attends to.

Task t has an embedding eₗ for the units of each block l, and attends to some of them:

    aₗ = σ(s eₗ)        hₗ ← aₗ ⊙ hₗ

During training s rises from 1/s_max to s_max within each epoch, so attention begins soft and ends
hard. Let Aₗ be the maximum of aₗ over the other tasks. Their units are protected: the gradient of a
weight from unit j to unit i is multiplied by 1 − min(Aₗᵢ, Aₗ₋₁ⱼ), that of a bias or scale of unit i
by 1 − Aₗᵢ. A penalty on attention to free units keeps some of them free:

    λ Σₗ aₗ·(1 − Aₗ) / Σₗ Σ(1 − Aₗ)

With a large s, σ(s e) saturates and the gradient of e vanishes. The gradient is therefore rescaled
to that of σ(e).

Source: Serrà, Surís, Miron and Karatzoglou, "Overcoming Catastrophic Forgetting with Hard Attention
to the Task", ICML 2018. Tasks are trained on repeatedly, as in Flennerhag et al. 2019, appendix G:
the maximum is over all *other* tasks that were trained on, which in the original are the earlier
ones. Their embeddings do not move meanwhile, so A is computed from σ(s_max eₗ) when it is needed.
"""

import dataclasses

import keras
import tensorflow as tf
from keras import layers

from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import NumberedTask, TaskHeads
from leap_tf.learners.sequential import ModelBlocks, SequentialLearner, split_into_blocks
from leap_tf.tasks import Task

_LARGEST_EXPONENT = 50.0  # of |s e| in the compensation, as in Serrà et al.
_LARGEST_EMBEDDING = 6.0  # of |e|, as in Serrà et al.

# Layers in which an output unit depends on the same input unit only. The activation of
# `Activation` and the axis of `BatchNormalization` are checked too.
_UNITWISE_LAYERS = (
    layers.Activation, layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.BatchNormalization, layers.Dropout, layers.ELU, layers.Flatten, layers.GaussianNoise,
    layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.LeakyReLU,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, layers.PReLU, layers.ReLU,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
)  # fmt: skip


class HAT(SequentialLearner):
    """Trains one network in which every task reserves the units it attends to.

    Requires `task_layers=[head]`, `meta_batch_size=1` and the default meta-optimizer SGD(1.0). If
    tasks differ in their number of classes, the head must have as many units as the largest task.
    The original also clips gradients to a norm of 10⁴; set `clipnorm` on the inner optimizer for
    that.

    Attention is hard at the end of an epoch only, and evaluation uses hard attention. So
    `steps_per_task` and `every` of `stopping` must be multiples of `steps_per_epoch`. The steps and
    the stop rule of evaluation should be too, but a learner cannot check these.

    Running statistics of batch normalization start every task from their initial values.

    Args:
        tasks: the largest number of training tasks.
        steps_per_epoch: gradient steps in which s rises from 1/s_max to s_max.
        largest_scale: s_max.
        penalty: λ, the weight of the penalty on attention to free units.

    Raises:
        ValueError: `tasks` or `largest_scale` is below 1, `steps_per_epoch` is below 2, or
            `penalty` is negative. Later, when a trainer is made: the meta-optimizer,
            `meta_batch_size`, `task_layers`, `steps_per_task`, `stopping` or a layer of the model
            is unsuitable, or the inner optimizer has weight decay.

    Example:

        >>> import keras, leap_tf
        >>> model = leap_tf.conv_net((8, 8, 1), classes=3, filters=4, blocks=2)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> learner = leap_tf.HAT(tasks=2, steps_per_epoch=50)
        >>> options = {"learner": learner, "meta_batch_size": 1, "task_layers": ["head"]}
        >>> trainer = leap_tf.MetaTrainer(model, loss, keras.optimizers.SGD(0.1), **options)
    """

    def __init__(
        self,
        tasks: int = 50,
        steps_per_epoch: int = 100,
        largest_scale: float = 400.0,
        penalty: float = 0.75,
    ):
        super().__init__(tasks)
        if steps_per_epoch < 2 or largest_scale < 1 or penalty < 0:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch} must be at least 2, "
                f"largest_scale={largest_scale} at least 1, and penalty={penalty} not negative."
            )
        self.steps_per_epoch = steps_per_epoch
        self.largest_scale = largest_scale
        self.penalty = penalty

    def plan(self, setup: TrainingSetup) -> TrainingPlan:
        every = getattr(setup.stopping, "every", 0)
        if every % self.steps_per_epoch:
            raise ValueError(
                f"stopping evaluates the error every {every} gradient steps, but HAT's attention "
                f"is hard only at the ends of epochs of {self.steps_per_epoch} steps. Set `every` "
                "to a multiple of steps_per_epoch, in training and in evaluation."
            )
        if setup.steps_per_task % self.steps_per_epoch:
            raise ValueError(
                f"A task of {setup.steps_per_task} gradient steps ends within an epoch of "
                f"{self.steps_per_epoch}, while HAT's attention is still soft. Make steps_per_task "
                "a multiple of steps_per_epoch."
            )
        plan = super().plan(setup)
        options = {"largest_scale": self.largest_scale, "penalty": self.penalty}
        model = HardAttentionModel(setup.model, self._head(setup), self.tasks + 1, **options)
        return dataclasses.replace(
            plan, models=[model], evaluation_model=model, persistent_state=[model.trained]
        )

    def numbered_task(self, number: int, task: Task) -> NumberedTask:
        return AnnealedTask(number, task, self.steps_per_epoch)


class AnnealedTask(NumberedTask):
    """A numbered task whose inputs include the progress of the epoch, float32 [batch] in [0, 1].

    Progress goes from 0 to 1 in `steps_per_epoch` training batches. Held-out batches have 1.
    """

    def __init__(self, number: int, task: Task, steps_per_epoch: int):
        super().__init__(number, task)
        self._last = steps_per_epoch - 1

    def train_batches(self, seed: int) -> tf.data.Dataset:
        batches = super().train_batches(seed)
        return batches.enumerate().map(
            lambda step, batch: self._with_progress(
                tf.cast(step % (self._last + 1), tf.float32) / self._last, *batch
            )
        )

    def _held_out(self, method):
        return super()._held_out(method).map(lambda *batch: self._with_progress(1.0, *batch))

    def _with_progress(self, progress, inputs, *rest):
        return (*inputs, tf.fill(tf.shape(inputs[-1]), progress)), *rest


@keras.saving.register_keras_serializable(package="leap_tf")
class HardAttentionModel(keras.Model):
    """A model with hard attention to the task and a head for every task.

    Inputs are [inputs, number of the task, classes of the task, progress of the epoch], the last
    three [batch]. In training, progress decides s; evaluation uses s_max. All examples of a batch
    must be of one task.

    `original` is a sequence of layers with a linear head, which are used, not copied. Between
    layers with units, only batch normalization, pooling, element-wise activations, dropout and
    flattening are allowed. `tasks` includes the evaluation task. `largest_scale` and `penalty` are
    s_max and λ. `embeddings` are [tasks, units] of each of the `blocks`. `trained` is [tasks], 1
    for each task that was trained on, else 0.
    """

    def __init__(
        self,
        original: keras.Model,
        head: str,
        tasks: int,
        *,
        largest_scale: float = 400.0,
        penalty: float = 0.75,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32", **kwargs})  # attention, whatever the layers have
        parts = split_into_blocks(original, head)
        _check_unitwise(parts)
        scale = {"largest_scale": largest_scale, "penalty": penalty}
        self._settings = {"head": head, "tasks": tasks, **scale}
        self._original = keras.saving.serialize_keras_object(original)
        self.blocks = parts.blocks
        self.reshaping = parts.reshaping
        self.heads = TaskHeads(
            tasks, parts.head.units, parts.head.kernel_initializer, name=f"{head}_per_task"
        )
        self.heads.build([[None, parts.head.kernel.shape[0]]])
        self.embeddings = [
            self.add_weight(
                shape=(tasks, block[0].kernel.shape[-1]),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                constraint=ClippedEmbedding(),
                name=f"embedding{level}",
            )
            for level, block in enumerate(self.blocks, start=1)
        ]
        self.trained = self.add_weight(
            shape=(tasks,), initializer="zeros", trainable=False, name="trained"
        )
        self.built = True

    def call(self, inputs, training=False):
        values, numbers, classes, progress = inputs
        task = numbers[0]
        largest, penalty = self._settings["largest_scale"], self._settings["penalty"]
        scale = tf.constant(largest)
        if training:
            scale = 1.0 / largest + (largest - 1.0 / largest) * progress[0]
        masks = [
            attention(tf.convert_to_tensor(embedding)[task], scale, largest)
            for embedding in self.embeddings
        ]
        reserved = self.reserved_by_others(task)
        if training:
            newly_attended = tf.add_n(
                [tf.reduce_sum(mask * (1.0 - taken)) for mask, taken in zip(masks, reserved)]
            )
            free = tf.add_n([tf.reduce_sum(1.0 - taken) for taken in reserved])
            self.add_loss(penalty * (newly_attended / tf.maximum(free, 1.0)))
            this_task = tf.one_hot(task, self._settings["tasks"])
            self.trained.assign(tf.maximum(tf.convert_to_tensor(self.trained), this_task))
        reserved_before = None
        for block, mask, taken in zip(self.blocks, masks, reserved):
            factors = _gradient_factors(block, taken, reserved_before)
            values = _call_with_gradient_factors(block, values, factors, training)
            values *= tf.cast(_repeat_to(values.shape[-1], mask), values.dtype)
            reserved_before = taken
        for layer in self.reshaping:
            values = layer(values)
        return self.heads([values, numbers, classes])

    def reserved_by_others(self, task: tf.Tensor) -> list[tf.Tensor]:
        """Returns A of each block, [units]: the largest attention of the other trained tasks."""
        trained = tf.convert_to_tensor(self.trained)
        others = trained * (1.0 - tf.one_hot(task, self._settings["tasks"]))
        largest = self._settings["largest_scale"]
        hard = [
            tf.sigmoid(largest * tf.stop_gradient(tf.convert_to_tensor(embedding)))
            for embedding in self.embeddings
        ]
        return [tf.reduce_max(others[:, tf.newaxis] * masks, axis=0) for masks in hard]

    def get_config(self):
        return {**super().get_config(), "original": self._original, **self._settings}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        original = keras.saving.deserialize_keras_object(config.pop("original"), custom_objects)
        return cls(original, **config)


@keras.saving.register_keras_serializable(package="leap_tf")
class ClippedEmbedding(keras.constraints.Constraint):
    """Clips embeddings to [−6, 6], where the sigmoid still has a slope."""

    def __call__(self, value):
        return tf.clip_by_value(value, -_LARGEST_EMBEDDING, _LARGEST_EMBEDDING)


def attention(embedding: tf.Tensor, scale: tf.Tensor, largest_scale: float) -> tf.Tensor:
    """Returns σ(s e), with a gradient that is compensated for the scale.

    The gradient with respect to e is s_max σ'(e) while |s e| ≤ 50, and decays exponentially beyond.
    """

    @tf.custom_gradient
    def gate(embedding):
        def gradient(upstream):
            excess = tf.maximum(tf.abs(scale * embedding) - _LARGEST_EXPONENT, 0.0)
            slope = tf.sigmoid(embedding) * tf.sigmoid(-embedding)
            return upstream * largest_scale * slope * tf.exp(-excess)

        return tf.sigmoid(scale * embedding), gradient

    return gate(embedding)


def gated_gradient(value: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns the value, with its gradient multiplied by a factor."""

    @tf.custom_gradient
    def identity(value):
        return tf.identity(value), lambda upstream: factor * upstream

    return identity(value)


def _repeat_to(size, units):
    """Repeats [units] to [size], since flattening lists the units of all positions in a row."""
    return tf.tile(units, [size // units.shape[0]])


def _gradient_factors(block, taken, taken_before):
    """Returns the factor on the gradient of each trainable variable of a block, by id.

    A kernel whose inputs are not the units of the block before (grouped convolutions, the first
    block) gets the factor of its output units, which protects at least as much.
    """
    free = 1.0 - taken
    factors = {id(variable): free for layer in block for variable in layer.trainable_variables}
    kernel = block[0].kernel
    if taken_before is not None and kernel.shape[-2] % taken_before.shape[0] == 0:
        taken_inputs = _repeat_to(kernel.shape[-2], taken_before)
        factors[id(kernel)] = 1.0 - tf.minimum(taken, taken_inputs[:, tf.newaxis])
    return factors


def _call_with_gradient_factors(block, values, factors, training):
    """Calls the layers of a block with gated gradients, and keeps their assignments in training."""
    variables = [variable for layer in block for variable in layer.variables]
    with keras.StatelessScope(
        [
            (each, gated_gradient(tf.convert_to_tensor(each), factors[id(each)]))
            if id(each) in factors
            else (each, tf.convert_to_tensor(each))
            for each in variables
        ]
    ) as scope:
        for layer in block:
            values = layer(values)
    if training:
        for variable in variables:
            if id(variable) not in factors:
                variable.assign(scope.get_current_value(variable))
    return values


def _check_unitwise(parts: ModelBlocks) -> None:
    """Raises ValueError unless each weight belongs to a unit and only first layers mix units."""
    for first, *rest in parts.blocks:
        if not _is_elementwise(first.activation):
            raise ValueError(
                f"The activation of {first.name!r} mixes units, so hard attention cannot assign "
                "its outputs to units. Use an element-wise activation."
            )
        units = first.kernel.shape[-1]
        for layer in (first, *rest):
            if layer is not first:
                _check_layer_is_unitwise(layer)
            if getattr(layer, "data_format", None) == "channels_first":
                raise ValueError(
                    f"{layer.name!r} is channels_first. Use data_format='channels_last'."
                )
            for variable in layer.trainable_variables:
                if variable.shape[-1] != units:
                    raise ValueError(
                        f"The last dimension of {variable.path}, of shape {tuple(variable.shape)}, "
                        f"does not match the {units} units of {first.name!r}, so hard attention "
                        "cannot protect it."
                    )
    for layer in parts.reshaping:
        _check_layer_is_unitwise(layer)
        if layer.trainable_variables:
            raise ValueError(
                f"{layer.name!r} has weights and follows a change of shape, so its weights belong "
                "to no unit. Move it before the change of shape."
            )


def _check_layer_is_unitwise(layer):
    known = isinstance(layer, _UNITWISE_LAYERS)
    if isinstance(layer, keras.layers.Activation):
        known = _is_elementwise(layer.activation)
    if isinstance(layer, keras.layers.BatchNormalization):
        known = layer.axis in (-1, len(layer.output.shape) - 1)
    if not known:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} is not known to act on each unit by itself, so "
            "hard attention cannot assign its outputs to units. Layers that may follow a layer "
            f"with units: {', '.join(each.__name__ for each in _UNITWISE_LAYERS)}. Activations "
            "must be element-wise, and normalization must be of the last axis."
        )


def _is_elementwise(activation):
    """Returns whether a change of one input leaves the other outputs the same, unlike softmax."""
    inputs = tf.constant([[-0.3, 0.7, 1.1, -2.0], [2.5, 0.7, 1.1, -2.0]])
    outputs = tf.convert_to_tensor(activation(inputs))
    same_shape = outputs.shape == inputs.shape
    return same_shape and bool(tf.reduce_all(outputs[0, 1:] == outputs[1, 1:]))
