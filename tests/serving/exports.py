"""Small trainers of every kind that is served, and their tasks."""

import keras
import numpy as np

import leap_tf
from leap_tf.array_tasks import pixels_to_floats

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS = 12


def pictures(number=0, classes=3):
    """Returns a task of 8×8 pictures in uint8, with a bright row for each class."""
    rng = np.random.default_rng([number, classes])
    labels = np.tile(np.arange(classes), 9)
    images = rng.integers(0, 120, size=(len(labels), 8, 8, 1), dtype=np.uint8)
    images[np.arange(len(labels)), labels % 8] += 100
    task = leap_tf.ArrayTask(
        f"pictures {number}",
        (images[:20], labels[:20]),
        (images[20:], labels[20:]),
        batch_size=6,
        prepare=pixels_to_floats,
    )
    task.classes = classes
    return task


def clouds(number=0, classes=3):
    """Returns a task of points around a centre for each class."""
    rng = np.random.default_rng([number, classes])
    labels = np.tile(np.arange(classes), 9)
    points = 2.0 * rng.normal(size=(classes, 4))[labels] + rng.normal(size=(len(labels), 4))
    points = points.astype(np.float32)
    task = leap_tf.ArrayTask(
        f"clouds {number}", (points[:15], labels[:15]), (points[15:], labels[15:]), batch_size=7
    )
    task.classes = classes
    return task


def sinusoid(number=0, classes=None):
    return leap_tf.Sinusoids(examples=20, batch_size=6).sample(1, np.random.default_rng(number))[0]


def network(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((4,)), *layers])


def trainer(model, loss=CROSS_ENTROPY, inner=None, learner=None, **options):
    return leap_tf.MetaTrainer(
        model,
        loss,
        inner or keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.1),
        learner=learner,
        steps_per_task=STEPS,
        **options,
    )


def small_conv_net():
    keras.utils.set_random_seed(0)
    return leap_tf.conv_net((8, 8, 1), classes=3, filters=4, blocks=2)


def dense(units, name):
    return keras.layers.Dense(units, activation="relu", name=name)


def convolutional():
    return trainer(small_conv_net()), pictures


def transductive():
    return trainer(
        small_conv_net(), evaluation=leap_tf.EvaluationConfig(transductive=True)
    ), pictures


def transductive_dropout():
    norm, dropout = keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)
    model = network(dense(8, "body"), norm, dropout, keras.layers.Dense(3, name="head"))
    evaluation = leap_tf.EvaluationConfig(transductive=True)
    return trainer(model, evaluation=evaluation), clouds


def fresh_head_dropout_adam():
    model = network(dense(8, "body"), keras.layers.Dropout(0.3), keras.layers.Dense(5, name="head"))
    schedule = keras.optimizers.schedules.CosineDecay(0.05, STEPS)
    return trainer(model, inner=keras.optimizers.Adam(schedule), task_layers=["head"]), clouds


def meta_sgd():
    built = trainer(
        network(dense(8, "body"), keras.layers.Dense(3, name="head")),
        learner=leap_tf.MetaSGD(),
    )
    for number, variable in enumerate(built.learner_variables):
        variable.assign(variable * (0.5 + 0.3 * number))
    return built, clouds


def anil():
    model = network(dense(8, "body"), keras.layers.Dense(3, activation="softmax", name="head"))
    loss = keras.losses.SparseCategoricalCrossentropy()
    return trainer(model, loss, learner=leap_tf.ANIL(), inner=keras.optimizers.AdamW(0.05)), clouds


def regression():
    keras.utils.set_random_seed(0)
    momentum = keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0)
    return trainer(leap_tf.mlp(), keras.losses.MeanSquaredError(), momentum), sinusoid


KINDS = {
    kind.__name__: kind
    for kind in (
        convolutional,
        transductive,
        transductive_dropout,
        fresh_head_dropout_adam,
        meta_sgd,
        anil,
        regression,
    )
}


def request(trainer, task, seed=0, steps=STEPS, **changes):
    """Returns the inputs of `adapt` for a task, as arrays."""
    inputs, targets = task.train
    labels = getattr(task, "classes", None) is not None
    made = {
        "support_x": inputs,
        "support_y": targets.astype(np.int32 if labels else np.float32),
        "query_x": task.test[0],
        "steps": np.int32(steps),
        "batch_size": np.int32(task.batch_size),
        "learning_rate": np.float32(trainer.problem.setup.inner_optimizer.learning_rate),
        "seed": np.int64(seed),
    }
    return made | ({"num_classes": np.int32(task.classes)} if labels else {}) | changes
