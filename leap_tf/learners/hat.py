"""Whether every number in a chain of layers belongs to one unit: what hard attention rests on.

Attention to a unit is attention to the last dimension of a block's output. So nothing in the block
may mix units, and every weight must be some unit's.

Hard attention to the task (Serrà et al., ICML 2018): a network whose units belong to tasks.

Every task t has an embedding eₗ for the units of each block l, and attends to some of them:

    aₗ = σ(s eₗ)        hₗ ← aₗ ⊙ hₗ

While a task is trained, s rises from 1/s_max to s_max within each epoch, so attention begins soft
and ends hard. What the other tasks attend to, Aₗ = max over tasks of their aₗ, is not theirs to
change: the gradient of a weight from unit j to unit i is multiplied by 1 − min(Aₗᵢ, Aₗ₋₁ⱼ), that
of a unit's bias or scale by 1 − Aₗᵢ. A penalty on attention to units that are still free keeps
some of them free:

    λ Σₗ aₗ·(1 − Aₗ) / Σₗ Σ(1 − Aₗ)

Embeddings hardly move where σ is steep or flat, so their gradient is compensated for s.

Every task may be visited again (Flennerhag et al. 2019, appendix G), so the maximum is over all
*others* that were visited; in the original, which visits every task once, that is the same. No
other task's embedding moves, so what they attend to, σ(s_max eₗ), is computed when it is needed.

HAT, hard attention to the task: every task keeps the units of the network that it attends to.

Serrà, Surís, Miron and Karatzoglou, "Overcoming Catastrophic Forgetting with Hard Attention to the
Task", ICML 2018; revisits as in Flennerhag et al. 2019, appendix G. All that defines it is in the
model, `leap_tf.models.hard_attention`. Running statistics are no one's: every visit starts from
those of the initialization, as with all learners.
"""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from leap_tf.learners.base import TrainingPlan, TrainingSetup
from leap_tf.learners.joint import HeadBank, NumberedTask, head_name
from leap_tf.learners.sequential import Chain, SequentialLearner, chain_of
from leap_tf.tasks import Task

# Layers whose output at a unit comes from that unit alone. What `axis` or activation they have is
# looked at besides.
_BY_UNIT = (
    keras.layers.Activation,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.Flatten,
    keras.layers.GaussianNoise,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def require_units(chain: Chain) -> None:
    """Checks that layers act on each unit by itself, and that every weight is of one unit.

    Raises:
        ValueError: a layer mixes units or may do so, has weights of something else, or has units
            in another dimension than the last.
    """
    for first, *rest in chain.blocks:
        if not _is_elementwise(first.activation):
            raise ValueError(
                f"The activation of {first.name!r} mixes units, and hard attention cannot tell "
                "whose its outputs are. Take an element-wise one."
            )
        for layer in (first, *rest):
            if layer is not first:
                _require_acts_by_unit(layer)
            _require_weights_of(first.kernel.shape[-1], first, layer)
    for layer in chain.shaping:
        _require_acts_by_unit(layer)
        if layer.trainable_variables:
            raise ValueError(
                f"{layer.name!r} has weights and follows a change of shape, so they are of no unit "
                "that there can be attention to. Place it before."
            )


def _require_weights_of(units, first, layer):
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            f"{layer.name!r} has channels_first, and units must be the last dimension."
        )
    for variable in layer.trainable_variables:
        if variable.shape[-1] != units:
            raise ValueError(
                f"Hard attention is to the {units} units of {first.name!r}, and {variable.path} of "
                f"shape {tuple(variable.shape)} belongs to none of them."
            )


def _require_acts_by_unit(layer):
    known = isinstance(layer, _BY_UNIT)
    if isinstance(layer, keras.layers.Activation):
        known = _is_elementwise(layer.activation)
    if isinstance(layer, keras.layers.BatchNormalization):
        known = layer.axis in (-1, len(layer.output.shape) - 1)
    if not known:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} is not known to act on each unit by itself, so "
            "hard attention cannot tell whose its outputs are. What may follow a layer with units: "
            f"{', '.join(each.__name__ for each in _BY_UNIT)}; activations element-wise, "
            "normalization of the last axis."
        )


def _is_elementwise(activation: Callable[[tf.Tensor], tf.Tensor]) -> bool:
    """Whether the other outputs stay when one input changes; those of softmax do not."""
    inputs = tf.constant([[-0.3, 0.7, 1.1, -2.0], [2.5, 0.7, 1.1, -2.0]])
    outputs = tf.convert_to_tensor(activation(inputs))
    same_shape = outputs.shape == inputs.shape
    return same_shape and bool(tf.reduce_all(outputs[0, 1:] == outputs[1, 1:]))


_STEEPEST = 50.0  # of |s e| in the compensation, as in Serrà et al.
_LARGEST = 6.0  # of |e|, likewise


def attention(embedding: tf.Tensor, scale: tf.Tensor, largest_scale: float) -> tf.Tensor:
    """Returns σ(s e), with a gradient that does not depend on how steep it is.

    The gradient with respect to e is multiplied by s_max/s (cosh(s e) + 1)/(cosh(e) + 1), where
    |s e| counts as 50 at most. That is s_max σ'(e) in all but extreme cases, and computed as such.

    Args:
        embedding: [units] e.
        scale: scalar s, above 0.
        largest_scale: s_max.
    """

    @tf.custom_gradient
    def gate(embedding):
        def gradient(upstream):
            excess = tf.maximum(tf.abs(scale * embedding) - _STEEPEST, 0.0)
            slope = tf.sigmoid(embedding) * tf.sigmoid(-embedding)
            return upstream * largest_scale * slope * tf.exp(-excess)

        return tf.sigmoid(scale * embedding), gradient

    return gate(embedding)


def gated_gradient(value: tf.Tensor, free: tf.Tensor) -> tf.Tensor:
    """Returns the value, whose gradient is multiplied by how free it is."""

    @tf.custom_gradient
    def identity(value):
        return tf.identity(value), lambda upstream: free * upstream

    return identity(value)


@keras.saving.register_keras_serializable(package="leap_tf")
class WithinLargest(keras.constraints.Constraint):
    """Keeps embeddings where the sigmoid still has a slope."""

    def __call__(self, value):
        return tf.clip_by_value(value, -_LARGEST, _LARGEST)


@keras.saving.register_keras_serializable(package="leap_tf")
class HardAttentionModel(keras.Model):
    """A model with hard attention to the task, and a head for each.

    Takes [inputs, number of the task, its classes, progress], the last three [batch]. Progress
    goes from 0 to 1 in each epoch of training and decides s; evaluation has s_max. All examples
    of a batch are of one task, which counts as visited once it was trained on.

    Args:
        original: a chain of layers with a linear head; its layers are used, not copied. Between
            those with weights may stand what acts on each unit by itself: batch normalization,
            pooling, element-wise activations, dropout, flattening.
        head: the name of its head.
        tasks: how many there may be.
        largest_scale: s_max.
        penalty: λ.
        **kwargs: as for `keras.Model`.

    Attributes:
        blocks: the layers of each block.
        embeddings: of each block [tasks, units].
        visited: [tasks] 1 for each task that was trained on, else 0.

    Raises:
        ValueError: the model is no such chain.
    """

    def __init__(
        self,
        original: keras.Model,
        head: str,
        tasks: int,
        largest_scale: float = 400.0,
        penalty: float = 0.75,
        **kwargs,
    ):
        super().__init__(**kwargs)
        chain = chain_of(original, head)
        self._settings = {
            "head": head,
            "tasks": tasks,
            "largest_scale": largest_scale,
            "penalty": penalty,
        }
        self._original = keras.saving.serialize_keras_object(original)
        require_units(chain)
        self.blocks = chain.blocks
        self.shaping = chain.shaping
        self.bank = HeadBank(
            tasks, chain.head.units, chain.head.kernel_initializer, name=f"{head}_bank"
        )
        self.bank.build([[None, chain.head.kernel.shape[0]]])
        widths = [block[0].kernel.shape[-1] for block in self.blocks]
        self.embeddings = [
            self.add_weight(
                shape=(tasks, width),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                constraint=WithinLargest(),
                name=f"embedding{level}",
            )
            for level, width in enumerate(widths, start=1)
        ]
        self.visited = self.add_weight(
            shape=(tasks,), initializer="zeros", trainable=False, name="visited"
        )
        self.built = True

    def call(self, inputs, training=False):
        values, numbers, classes, progress = inputs
        task = numbers[0]
        largest, penalty = self._settings["largest_scale"], self._settings["penalty"]
        scale = tf.constant(largest)
        if training:
            scale = 1.0 / largest + (largest - 1.0 / largest) * progress[0]
        attention_of_task = [
            attention(tf.convert_to_tensor(bank)[task], scale, largest) for bank in self.embeddings
        ]
        of_others = self.attended_by_others(task)
        if training:
            self.add_loss(penalty * _newly_attended(attention_of_task, of_others))
            own = tf.one_hot(task, self._settings["tasks"])
            self.visited.assign(tf.maximum(tf.convert_to_tensor(self.visited), own))
        before = None
        for block, mask, taken in zip(self.blocks, attention_of_task, of_others):
            values = _run_protected(block, values, _freedom(block, taken, before), training)
            values *= _at_every_position(mask, values.shape[-1])
            before = taken
        for layer in self.shaping:
            values = layer(values)
        return self.bank([values, numbers, classes])

    def attended_by_others(self, task: tf.Tensor) -> list[tf.Tensor]:
        """Returns A of each block, [units]: what the visited tasks but this one attend to."""
        visited = tf.convert_to_tensor(self.visited)
        others = visited * (1.0 - tf.one_hot(task, self._settings["tasks"]))
        largest = self._settings["largest_scale"]
        hard = [
            tf.sigmoid(largest * tf.stop_gradient(tf.convert_to_tensor(bank)))
            for bank in self.embeddings
        ]
        return [tf.reduce_max(others[:, tf.newaxis] * masks, axis=0) for masks in hard]

    def get_config(self):
        return {**super().get_config(), "original": self._original, **self._settings}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        original = keras.saving.deserialize_keras_object(config.pop("original"), custom_objects)
        return cls(original, **config)


def _newly_attended(attention_of_task, of_others):
    attended = tf.add_n(
        [tf.reduce_sum(mask * (1.0 - taken)) for mask, taken in zip(attention_of_task, of_others)]
    )
    free = tf.add_n([tf.reduce_sum(1.0 - taken) for taken in of_others])
    return attended / tf.maximum(free, 1.0)


def _at_every_position(of_units, size):
    """Repeats [units] for inputs of which flattening put the units of all positions in a row."""
    return tf.tile(of_units, [size // of_units.shape[0]])


def _freedom(block, taken, before):
    """How free each trainable variable of a block is: by unit, the kernel also by its input.

    A kernel that sees the units of the block before in groups, or the images, is as free as its
    own units, which protects no less.
    """
    of_units = 1.0 - taken
    freedom = {}
    for layer in block:
        for variable in layer.trainable_variables:
            freedom[id(variable)] = of_units
    kernel = block[0].kernel
    if before is not None and kernel.shape[-2] % before.shape[0] == 0:
        of_inputs = _at_every_position(before, kernel.shape[-2])
        freedom[id(kernel)] = 1.0 - tf.minimum(taken, of_inputs[:, tf.newaxis])
    return freedom


def _run_protected(block, values, freedom, training):
    """Runs layers with variables whose gradients are gated, and keeps what they assign."""
    variables = [variable for layer in block for variable in layer.variables]
    with keras.StatelessScope(
        [
            (each, gated_gradient(tf.convert_to_tensor(each), freedom[id(each)]))
            if id(each) in freedom
            else (each, tf.convert_to_tensor(each))
            for each in variables
        ]
    ) as scope:
        for layer in block:
            values = layer(values)
    if training:
        for variable in variables:
            if id(variable) not in freedom:
                variable.assign(scope.get_current_value(variable))
    return values


class HAT(SequentialLearner):
    """One network in which every task owns the units it attends to.

    Needs `task_layers=[head]`. Where tasks have different numbers of classes, the head must have
    as many units as the largest. The original also clips gradients to a norm of 10⁴, which here
    would be the inner optimizer's to do.

    Attention is hard at the end of an epoch only, and evaluation is with hard attention: after a
    visit that ends in between, what was trained is not what is judged. So `steps_per_task`, and
    `every` of `stopping`, have to be multiples of `steps_per_epoch`. So should those of evaluation
    and of `judged_stopping`, which a learner does not see.

    Args:
        tasks: how many tasks there may be to train on.
        steps_per_epoch: gradient steps in which the sigmoid's scale rises to its largest.
        largest_scale: s_max.
        penalty: λ, the weight of the penalty on units that are newly attended to.

    Raises:
        ValueError: a number makes no sense.
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
                f"stopping looks at the error every {every} gradient steps, and HAT's attention is "
                f"hard only at the ends of epochs of {self.steps_per_epoch} steps. Set `every` to "
                "a multiple of steps_per_epoch, for evaluation too."
            )
        if setup.steps_per_task % self.steps_per_epoch:
            raise ValueError(
                f"A task of {setup.steps_per_task} gradient steps ends within an epoch of "
                f"{self.steps_per_epoch}, while HAT's attention is still soft. Make steps_per_task "
                "a multiple of steps_per_epoch."
            )
        plan = super().plan(setup)
        head = head_name(setup.task_layers, type(self).__name__)
        model = HardAttentionModel(
            setup.model, head, self.tasks + 1, self.largest_scale, self.penalty
        )
        return dataclasses.replace(
            plan, models=[model], evaluation_model=model, persistent_state=[model.visited]
        )

    def numbered(self, number: int, task: Task) -> NumberedTask:
        return AnnealedTask(number, task, self.steps_per_epoch)


class AnnealedTask(NumberedTask):
    """A numbered task that adds how far its epoch has come, float32 [batch] in [0, 1], to inputs.

    Args:
        number: its number.
        task: the task.
        steps_per_epoch: batches from 0 to 1. Held-out batches have 1.
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

    def _held_out(self, batches):
        return super()._held_out(batches).map(lambda *batch: self._with_progress(1.0, *batch))

    def _with_progress(self, progress, inputs, *rest):
        return (*inputs, tf.fill(tf.shape(inputs[-1]), progress)), *rest
