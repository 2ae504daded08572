# %% [markdown]
# # Your data in ten minutes
#
# You have several related data sets. In this tutorial you turn them into *tasks*, learn an
# initialization from them, and use it for a task that arrives later. You need Python, NumPy and a
# little Keras.
#
# ## Tasks from arrays
#
# Think of a chain of shops. Each shop sells ice cream. Its sales depend on the temperature and the
# day of the week, and this relation differs from shop to shop. The data here are synthetic. Replace
# `shop_data` with a function that loads your own data.

# %%
import matplotlib.pyplot as plt
import numpy as np

import leap_tf

leap_tf.configure_threads()  # for tasks in parallel; call it before you create a model or a tensor


def shop_data(shop, days=120):
    """Returns inputs [days, 8] and sales [days, 1] of a shop."""
    rng = np.random.default_rng(shop)
    temperature = rng.uniform(-1, 1, days)
    weekday = rng.integers(0, 7, days)
    peak = rng.uniform(0.2, 0.9)  # the temperature at which this shop sells most
    height, weekend = rng.uniform(1, 3), rng.uniform(-1, 1)
    sales = height * np.exp(-4 * (temperature - peak) ** 2) + weekend * (weekday >= 5)
    inputs = np.column_stack([temperature, np.eye(7)[weekday]])
    return inputs.astype("float32"), (sales + rng.normal(0, 0.05, days))[:, None].astype("float32")


# %% [markdown]
# A task has examples to train on and held-out examples. `ArrayTask` takes both as pairs of arrays.
# Inputs should have similar scales in all tasks. If you normalize, use the statistics of the
# examples to train on. Scaling that all tasks share belongs into the model, for example as an
# adapted `keras.layers.Normalization`: it is saved with it. Repeat all other preparation when a new
# task arrives. Tasks may differ in size: each makes `steps_per_task` gradient steps and counts
# alike.


# %%
def shop_task(shop):
    inputs, sales = shop_data(shop)
    return leap_tf.ArrayTask(
        f"shop {shop}",
        train=(inputs[:60], sales[:60]),
        test=(inputs[60:], sales[60:]),
        batch_size=20,
    )


shop_task(0)

# %% [markdown]
# We meta-train on 20 shops, validate on 5, and keep 5 for the final test. `FiniteTasks` draws
# training tasks at random from a list. The other two lists are used whole.

# %%
training_shops = leap_tf.FiniteTasks([shop_task(shop) for shop in range(20)])
validation_shops = [shop_task(shop) for shop in range(20, 25)]
new_shops = [shop_task(shop) for shop in range(25, 30)]

# %% [markdown]
# ## Tasks from a data frame
#
# If your data are in one table, group its rows by task. `ArrayTask.from_dataframe` needs the name
# of the column to predict, and holds out a fifth of the rows at random. Do not hold out rows of a
# time series at random. Split the table by time, and pass the later rows as a second data frame:
# `from_dataframe(name, earlier, later, target="sales")`.

# %%
import pandas as pd

inputs, sales = shop_data(0)
table = pd.DataFrame(inputs, columns=["temperature", "mo", "tu", "we", "th", "fr", "sa", "su"])
table = table.assign(sales=sales, shop="shop 0")
[
    leap_tf.ArrayTask.from_dataframe(name, rows.drop(columns="shop"), target="sales")
    for name, rows in table.groupby("shop")
]

# %% [markdown]
# ## Meta-train
#
# Any Keras model will do, with dense, convolutional, recurrent or other layers. Its weights are the
# first initialization, so a pretrained model can be passed. Set `trainable` of layers before.
# `MetaTrainer` takes a model, a loss and an inner optimizer, which trains on each task.
# `steps_per_task` is the number of gradient steps on a task. `meta_batch_size` is the number of
# tasks in a *meta-step*, which is one update of the initialization.
#
# Every task starts from the initialization and from the optimizer's initial state. Optimizers
# cannot be shared: give each trainer a new one.

# %%
import keras


def network():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(1),
        ]
    )


keras.utils.set_random_seed(0)
trainer = leap_tf.MetaTrainer(
    network(),
    loss="mse",
    inner_optimizer=keras.optimizers.SGD(0.05),
    steps_per_task=20,
    meta_batch_size=10,
)
before = trainer.evaluate(new_shops)  # the baseline: adapted from random weights

meta_steps = 100  # short: 4
history = trainer.fit(
    training_shops,
    meta_steps,
    validation_tasks=validation_shops,
    validation_freq=meta_steps // 4,
    verbose=False,
)

# %% [markdown]
# `history.history` lists every metric by meta-step. Watch two of them. `loss` is the mean training
# loss over all gradient steps of a meta-step. `path_length` is the mean length of the *gradient
# paths*: how far the parameters and the loss move while a task is trained. The loss should fall.
# The path length often rises at first. It falls once the steps are enough to learn the tasks well.
#
# Validation adds metrics such as `val_error`, and does not change the training. To end it when
# `val_error` no longer falls, add `callbacks=[keras.callbacks.EarlyStopping("val_error",
# patience=2, restore_best_weights=True)]`. `meta_steps` is a total: a second `fit` continues up to
# that number.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
left.plot(history.history["loss"])
left.set(xlabel="meta-step", ylabel="mean loss on a path", ylim=(0, None))
right.plot(history.history["path_length"])
right.set(xlabel="meta-step", ylabel="path length", ylim=(0, None))
plt.show()

# %% [markdown]
# ## Tune
#
# The inner learning rate is that of `inner_optimizer`. Choose it as you would to train on one task.
# From random weights, the training error should fall clearly within `steps_per_task`. The curve is
# in `before.tasks[0].training_errors`.
#
# `meta_optimizer` updates the initialization. Leave it out at first. The default,
# `keras.optimizers.SGD(1.0)` with `learner=leap_tf.Leap(scaled=True)`, works for any
# `steps_per_task`. If the inner optimizer is Adam, use a meta learning rate of 0.5, and pass both
# arguments. [Tuning](../tuning.md) explains the numbers.
#
# ## Evaluate
#
# `evaluate` adapts the initialization to each task and measures the error on its held-out examples.
# For this loss the error is the squared error. For a classifier it is the share of wrong labels.
# `evaluate` does not change `trainer.model`.

# %%
after = trainer.evaluate(new_shops)
print(f"random weights:         error {before.error:.3f}")
print(f"learned initialization: error {after.error:.3f}")
for task in after.tasks:
    print(f"{task.name}: {task.error:.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for evaluation, label in ((before, "random weights"), (after, "learned initialization")):
    axes.plot(np.mean([task.training_errors for task in evaluation.tasks], axis=0), label=label)
axes.set(xlabel="gradient step on a new shop", ylabel="training error", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# ## Compare methods
#
# So far the trainer used its default method, Leap. `leap_tf.compare` meta-trains Leap, Reptile and
# joint training with `budget` gradient steps each. The table always includes two baselines: joint
# training, which is one network for all tasks, and no pretraining.
#
# `compare` chooses the rates of each method in short trials on the validation tasks, and prints the
# errors on the test tasks. `inner_factors` are multiples of the rate of `inner_optimizer`, and
# `meta_rates` are learning rates of the meta-optimizer. To use the winner, meta-train with its
# rates and, for example, `learner=leap_tf.Reptile()`. The budget here is a fifth of the 20,000
# gradient steps above.

# %%
budget = 4000  # short: 200
comparison = leap_tf.compare(
    leap_tf.TaskSplits(training_shops, validation_shops, new_shops),
    network,
    budget=budget,
    inner_factors=[1.0],
    meta_rates=[0.5, 1.0, 2.0],
    loss="mse",
    inner_optimizer=keras.optimizers.SGD(0.05),
    steps_per_task=20,
    meta_batch_size=10,
    verbose=False,
)
print(comparison)

# %% [markdown]
# ## Save, and adapt to a new task
#
# `trainer.model` has the learned initialization. Save it like any Keras model. `leap_tf.adapt`
# loads the file, trains on the new task, and returns a compiled Keras model. Use the loss, the
# optimizer and about the number of steps of meta-training. To choose fewer steps, evaluate
# validation tasks with `EvaluationConfig(held_out_steps=[5, 10, 20])`. If a new shop has no
# held-out examples, give `ArrayTask` those to train on as `test` too: `adapt` does not read them.
# `trainer.adapt(new_shop)` does the same in the program that meta-trained.

# %%
trainer.model.save("initialization.keras")
new_shop = new_shops[0]
adapted = leap_tf.adapt(
    "initialization.keras", new_shop, keras.optimizers.SGD(0.05), "mse", steps=20
)
print(f"held-out loss: {adapted.evaluate(*new_shop.test, verbose=0):.3f}")
adapted.fit(*new_shop.train, epochs=5, verbose=0)  # you can go on training as usual
adapted.save("shop.keras")

# %% [markdown]
# ## Serve
#
# `export` writes a SavedModel, which any TensorFlow runtime can serve without leap_tf or Keras. The
# SavedModel predicts, and it can also *adapt*. A client sends examples of its own shop
# (`support_x`, `support_y`) and inputs (`query_x`). The server trains on the examples and returns
# predictions for the inputs.

# %%
import tensorflow as tf

leap_tf.export(trainer, "export")
adapt = tf.saved_model.load("export/saved_model").signatures["adapt"]
(support_x, support_y), (query_x, query_y) = new_shop.train, new_shop.test
answer = adapt(
    support_x=tf.constant(support_x),
    support_y=tf.constant(support_y),
    query_x=tf.constant(query_x),
    steps=tf.constant(20),
    batch_size=tf.constant(20),
    learning_rate=tf.constant(0.05),
    seed=tf.constant(0, tf.int64),
)
print(f"held-out loss: {np.mean((answer['outputs'] - query_y) ** 2):.3f}")

# %% [markdown]
# [Serving](../serving.md) shows a complete server and client.
#
# ## Tasks that do not fit into memory
#
# Any object with `name`, `train_batches(seed)` and `test_batches()` is a task. It needs no base
# class. Both methods return batches of inputs and targets. `train_batches` should repeat its
# examples, and must return the same batches for the same seed, so that runs are reproducible. This
# example is small. For large data, read files in `train_batches`.


# %%
class SensorTask:
    """One machine's vibrations: predict the next value from the last eight."""

    def __init__(self, machine):
        self.name = f"machine {machine}"
        signal = tf.sin(tf.range(400.0) * (0.1 + 0.01 * machine))
        windows = tf.signal.frame(signal, frame_length=9, frame_step=1)
        self.inputs, self.targets = windows[:, :8], windows[:, 8:]

    def train_batches(self, seed):
        examples = tf.data.Dataset.from_tensor_slices((self.inputs[:300], self.targets[:300]))
        return examples.shuffle(300, seed=seed).repeat().batch(16)

    def test_batches(self):
        return tf.data.Dataset.from_tensor_slices((self.inputs[300:], self.targets[300:])).batch(50)


machines = leap_tf.FiniteTasks([SensorTask(machine) for machine in range(8)])
trainer = leap_tf.MetaTrainer(
    leap_tf.mlp(inputs=8), "mse", keras.optimizers.SGD(0.02), steps_per_task=10, meta_batch_size=4
)
history = trainer.fit(machines, meta_steps=5, verbose=False)
print("loss along the paths:", np.round(history.history["loss"], 3))

# %% [markdown]
# ## Next
#
# - [Forecasts with a GRU](forecasting.md): time series, with Adam as the inner optimizer.
# - [Heads of different widths](heads.md): tasks with different numbers of classes.
# - [Tuning](../tuning.md) and [what is supported](../supported.md).
