"""The three front ends on one task: `LeapOptimizer` under `model.fit`, `MetaTrainer`, `adapt`.

    python -m tests.front_ends [kind ...]

prints the largest relative difference between them for every kind of model and every optimizer,
and fails if one is too large. The suite runs each kind with one of the optimizers.
"""

import dataclasses
import sys
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import leap_tf
from leap_tf.serving.adapter import weight_names
from leap_tf.serving.signatures import Limits, Signatures
from tests import golden

STEPS, BATCH, EXAMPLES = 3, 6, 15
MSE = keras.losses.MeanSquaredError()
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0),
    "Lion": lambda: keras.optimizers.Lion(0.003),
}
# On TensorFlow, Keras squares sparse gradients before it adds up repeated indices.
SPARSE_DIFFERS = {("Embedding", "Adam"), ("Embedding", "AdamW")}
# In a graph, sums have another order than in `fit`, which runs eagerly here. Adam divides small
# gradients by their size, and Lion takes their sign, which enlarges the rounding of float32. In
# half precision, rounding is 65536 times as large.
TOLERANCE = 3e-5
HALF_TOLERANCE = 2e-2


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        build: from an input to what a last `Dense` layer turns into the output, or a whole model.
        shape: of an input.
        integers: the number of different inputs, if they are integers.
        weighted: whether the examples have weights.
    """

    build: Callable
    shape: tuple[int, ...]
    integers: int = 0
    weighted: bool = False

    def model(self) -> keras.Model:
        keras.utils.set_random_seed(1)
        inputs = keras.Input(self.shape, dtype="int32" if self.integers else "float32")
        outputs = self.build(inputs)
        if isinstance(outputs, keras.Model):
            outputs(np.zeros((1, *self.shape), "float32"))
            return outputs
        if len(outputs.shape) > 2:
            outputs = layers.Flatten()(outputs)
        return keras.Model(inputs, layers.Dense(2, dtype="float32", name="head")(outputs))

    def task(self):
        rng = np.random.default_rng(2)
        inputs = rng.normal(size=(EXAMPLES, *self.shape)).astype("float32")
        if self.integers:
            inputs = rng.integers(0, self.integers, (EXAMPLES, *self.shape)).astype("int32")
        targets = rng.normal(size=(EXAMPLES, 2)).astype("float32")
        task = leap_tf.ArrayTask("task", (inputs, targets), (inputs, targets), BATCH)
        return Weighted(task) if self.weighted else task


class Weighted:
    """A task whose examples weigh 0, 1 and 2."""

    name = "weighted"

    def __init__(self, task):
        self._task = task

    def train_batches(self, seed):
        return self._task.train_batches(seed).map(
            lambda x, y: (x, y, tf.cast(tf.range(tf.shape(x)[0]) % 3, tf.float32))
        )

    def test_batches(self):
        return self._task.test_batches()


def through(*chain):
    """Returns a function that applies layers, made anew each time, one after another."""

    def build(inputs):
        for make in chain:
            inputs = make()(inputs)
        return inputs

    return build


def attention(make):
    def build(inputs):
        return layers.Add()([inputs, make()(inputs, inputs)])

    return build


def frozen():
    layer = layers.Dense(4, activation="tanh")
    layer.trainable = False
    return layer


def adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(5).normal(2.0, 3.0, size=(20, 5)).astype("float32"))
    return layer


def shared(inputs):
    layer = layers.Dense(5, activation="tanh")
    return layer(layer(inputs))


def residual(inputs):
    hidden = layers.Dense(5, activation="tanh")(inputs)
    gate = layers.Dense(5, activation="sigmoid")(inputs)
    return layers.Concatenate()([inputs, layers.Multiply()([hidden, gate])])


def nested(inputs):
    inside = keras.Sequential([layers.Dense(4, activation="tanh"), layers.BatchNormalization()])
    return keras.Sequential([inside, layers.Dense(3, activation="tanh")])(inputs)


class Subclassed(keras.Model):
    """A subclassed model, which calls its layers in a loop."""

    def __init__(self):
        super().__init__()
        self.hidden = [layers.Dense(5, activation="tanh") for _ in range(2)]
        self.norm = layers.BatchNormalization(momentum=0.5)
        self.out = layers.Dense(2)

    def call(self, inputs, training=False):
        for layer in self.hidden:
            inputs = inputs + layer(inputs)
        return self.out(self.norm(inputs, training=training))


def masked():
    """Turns positive first numbers of a step into a masked step."""
    return layers.Lambda(lambda x: x * tf.cast(x[..., :1] < 0.5, x.dtype))


VECTOR, STEPS_OF, IMAGE, VOLUME = (5,), (4, 3), (6, 6, 2), (4, 4, 4, 1)
TANH = {"activation": "tanh"}
KINDS = {
    "Dense": Kind(through(lambda: layers.Dense(4, **TANH)), VECTOR),
    "EinsumDense": Kind(
        through(lambda: layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d")), STEPS_OF
    ),
    "Conv1D": Kind(through(lambda: layers.Conv1D(3, 2, **TANH)), STEPS_OF),
    "Conv2D": Kind(through(lambda: layers.Conv2D(3, 3, strides=2, **TANH)), IMAGE),
    "Conv3D": Kind(through(lambda: layers.Conv3D(2, 3, **TANH)), VOLUME),
    "Conv2DTranspose": Kind(through(lambda: layers.Conv2DTranspose(2, 3, **TANH)), IMAGE),
    "SeparableConv2D": Kind(through(lambda: layers.SeparableConv2D(3, 3, **TANH)), IMAGE),
    "DepthwiseConv2D": Kind(through(lambda: layers.DepthwiseConv2D(3, **TANH)), IMAGE),
    "Embedding": Kind(through(lambda: layers.Embedding(5, 3)), (4,), integers=5),
    "LSTM": Kind(through(lambda: layers.LSTM(3)), STEPS_OF),
    "GRU": Kind(through(lambda: layers.GRU(3)), STEPS_OF),
    "SimpleRNN": Kind(through(lambda: layers.SimpleRNN(3)), STEPS_OF),
    "Bidirectional": Kind(through(lambda: layers.Bidirectional(layers.SimpleRNN(2))), STEPS_OF),
    "ConvLSTM2D": Kind(through(lambda: layers.ConvLSTM2D(1, 2)), (2, 4, 4, 1)),
    # Without biases: that of the keys has a gradient of zero, whose rounding Adam and Lion enlarge.
    "MultiHeadAttention": Kind(
        attention(lambda: layers.MultiHeadAttention(2, 2, use_bias=False)), STEPS_OF
    ),
    "GroupQueryAttention": Kind(
        attention(lambda: layers.GroupQueryAttention(2, 2, 1, use_bias=False)), STEPS_OF
    ),
    "BatchNormalization": Kind(
        through(
            lambda: layers.Dense(4, use_bias=False),
            lambda: layers.BatchNormalization(momentum=0.5),
        ),
        VECTOR,
    ),
    "LayerNormalization": Kind(
        through(lambda: layers.Dense(4, **TANH), layers.LayerNormalization), VECTOR
    ),
    "GroupNormalization": Kind(
        through(lambda: layers.Dense(4, **TANH), lambda: layers.GroupNormalization(2)), STEPS_OF
    ),
    "UnitNormalization": Kind(
        through(lambda: layers.Dense(4, **TANH), layers.UnitNormalization), VECTOR
    ),
    "Dropout": Kind(through(lambda: layers.Dense(6, **TANH), lambda: layers.Dropout(0.4)), VECTOR),
    "GaussianNoise": Kind(
        through(lambda: layers.GaussianNoise(0.5), lambda: layers.Dense(4, **TANH)), VECTOR
    ),
    "recurrent dropout": Kind(
        through(lambda: layers.GRU(3, dropout=0.3, recurrent_dropout=0.3)), STEPS_OF
    ),
    "MaxPooling2D": Kind(through(lambda: layers.Conv2D(2, 3, **TANH), layers.MaxPooling2D), IMAGE),
    "AveragePooling2D": Kind(
        through(lambda: layers.Conv2D(2, 3, **TANH), lambda: layers.AveragePooling2D(2)), IMAGE
    ),
    "GlobalAveragePooling1D": Kind(
        through(lambda: layers.Conv1D(3, 2, **TANH), layers.GlobalAveragePooling1D), STEPS_OF
    ),
    "PReLU": Kind(through(lambda: layers.Dense(6), layers.PReLU), VECTOR),
    "Masking and LSTM": Kind(through(masked, layers.Masking, lambda: layers.LSTM(3)), STEPS_OF),
    "TimeDistributed": Kind(
        through(lambda: layers.TimeDistributed(layers.Dense(2, **TANH))), STEPS_OF
    ),
    "Normalization": Kind(through(adapted_normalization, lambda: layers.Dense(4, **TANH)), VECTOR),
    "Rescaling": Kind(
        through(lambda: layers.Rescaling(0.5, 0.1), lambda: layers.Dense(4, **TANH)), VECTOR
    ),
    "ActivityRegularization": Kind(
        through(lambda: layers.Dense(4, **TANH), lambda: layers.ActivityRegularization(0.01, 0.02)),
        VECTOR,
    ),
    "regularizers": Kind(
        through(
            lambda: layers.Dense(
                4, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(0.05)
            )
        ),
        VECTOR,
    ),
    "constraints": Kind(
        through(
            lambda: layers.Dense(4, kernel_constraint=keras.constraints.MaxNorm(0.5)),
            lambda: layers.Dense(3, kernel_constraint="non_neg", bias_constraint="non_neg"),
        ),
        VECTOR,
    ),
    "residual": Kind(residual, VECTOR),
    "shared layer": Kind(shared, VECTOR),
    "nested models": Kind(nested, VECTOR),
    "subclassed model": Kind(lambda inputs: Subclassed(), VECTOR),
    "frozen layer": Kind(through(frozen, lambda: layers.Dense(4, **TANH)), VECTOR),
    "sample weights": Kind(through(lambda: layers.Dense(4, **TANH)), VECTOR, weighted=True),
    "mixed_bfloat16": Kind(
        through(lambda: layers.Dense(4, dtype="mixed_bfloat16", **TANH)), VECTOR
    ),
}


class Comparison:
    """The front ends on a task of a kind, each from the same weights and seeds."""

    def __init__(self, kind: str):
        self.kind = KINDS[kind]
        self.model, self.task = self.kind.model(), self.kind.task()
        self._start = [variable.numpy() for variable in self.model.variables]

    def trainer(self, optimizer: str) -> leap_tf.MetaTrainer:
        """Returns a trainer of the model at its first weights."""
        for variable, value in zip(self.model.variables, self._start):
            variable.assign(value)
        return leap_tf.MetaTrainer(
            self.model,
            MSE,
            OPTIMIZERS[optimizer](),
            keras.optimizers.SGD(1.0),
            steps_per_task=STEPS,
            meta_batch_size=1,
            pool=1,
        )

    def spec(self, trainer):
        """Returns the seed of the task, and what else the loop needs to find it."""
        trainer.problem.sampler.use_distribution(leap_tf.FiniteTasks([self.task]))
        (spec,) = trainer.problem.sampler.training_specs(0)
        return spec

    def loop(self, trainer, spec):
        """Returns the meta-gradients of the functional loop."""
        return trainer.problem.train(spec).meta_gradient

    def fit(self, trainer, spec, optimizer: str):
        """Returns the meta-gradients and the adapted weights of `model.fit`."""
        functional = trainer.problem._evaluator.model  # whose seeds depend on that of the task
        recording = leap_tf.LeapOptimizer(OPTIMIZERS[optimizer](), keras.optimizers.SGD(1.0))
        self.model.compile(recording, MSE, run_eagerly=True)
        seeds = functional.state(spec.seed)
        with recording.task(self.model):
            for variable, value in zip(self.model.non_trainable_variables, seeds):
                variable.assign(value)
            self.model.fit(self.task.train_batches(spec.seed).take(STEPS), verbose=0)
        return recording.meta_gradients(), [each.numpy() for each in self.model.weights]

    def adapt(self, trainer, spec):
        """Returns the weights that the signature `adapt_weights` of an export returns."""
        inputs = tf.TensorSpec(self.model.inputs[0].shape, self.model.inputs[0].dtype)
        signatures = Signatures(trainer.problem, inputs, tf.identity, 100, Limits())
        function = tf.function(
            signatures.adapt_weights,
            input_signature=signatures.specs("adapt_weights"),
            autograph=False,
        )
        rate = np.float32(trainer.problem.setup.inner_optimizer.learning_rate)
        settings = (np.int32(STEPS), np.int32(BATCH), rate, np.int64(spec.seed))
        answers = function(*map(tf.constant, (*self.task.train, *settings)))
        return [answers[name].numpy() for name in weight_names(self.model).values()]

    def differences(self, optimizer: str) -> dict[str, float]:
        """Returns the relative difference of each other front end from `model.fit`.

        Where TensorFlow runs functions eagerly, the loop does too, and `adapt` is left out.
        """
        trainer = self.trainer(optimizer)
        spec = self.spec(trainer)
        looped = self.loop(trainer, spec)
        in_graph = not tf.config.functions_run_eagerly()
        served = self.adapt(trainer, spec) if in_graph and self.is_served else None
        gradients, weights = self.fit(trainer, spec, optimizer)
        assert max(np.abs(gradient).max() for gradient in gradients) > 0.01
        found = {"loop": golden.relative_error(looped, gradients)}
        if served is not None:
            found["adapt"] = golden.relative_error(served, weights)
        return found

    @property
    def is_served(self) -> bool:
        """Whether an export takes the model and the examples."""
        return hasattr(self.task, "train") and bool(getattr(self.model, "inputs", None))


def tolerance(kind: str) -> float:
    """Returns the largest relative difference that rounding explains."""
    return HALF_TOLERANCE if "16" in kind else TOLERANCE


def main(kinds):
    print(f"{'':26}" + "".join(f"{name:>12}" for name in OPTIMIZERS), flush=True)
    too_large = []
    for kind in kinds or KINDS:
        comparison = Comparison(kind)
        worst = {name: max(comparison.differences(name).values()) for name in OPTIMIZERS}
        print(f"{kind:26}" + "".join(f"{each:12.1e}" for each in worst.values()), flush=True)
        too_large += [
            f"{kind} with {name}"
            for name, found in worst.items()
            if (kind, name) not in SPARSE_DIFFERS and not found < tolerance(kind)
        ]
    if too_large:
        sys.exit(f"The front ends differ by more than rounding: {', '.join(too_large)}")


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    main(sys.argv[1:])
