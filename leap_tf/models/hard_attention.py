"""Hard attention to the task (Serrà et al., ICML 2018): a network whose units belong to tasks.

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
"""

import keras
import tensorflow as tf

from leap_tf.models.chain import chain_of
from leap_tf.models.multi_headed import HeadBank
from leap_tf.models.unit_wise import require_units

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
