# %% [markdown]
# # Your data in ten minutes
#
# You have several related data sets. In this tutorial you turn them into *tasks*, learn an
# initialization from them, and use it for a task that arrives later. You need Python, NumPy and a
# little Keras.
#
# ## Tasks from arrays
#
# Think of a chain of shops. Each shop sells ice cream, and its sales depend on the temperature and
# the day of the week in a way of its own. Here the data are made up. Replace `shop_data` by yours.

# %%
import matplotlib.pyplot as plt
import numpy as np

import leap_tf

leap_tf.configure_threads()  # before anything that starts TensorFlow; importing does not


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
# A task has examples to train on and held-out examples. `ArrayTask` takes both as pairs of arrays:


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
# We meta-train on 20 shops, use 5 to watch the training, and keep 5 for the end. `FiniteTasks`
# draws tasks at random from a list.

# %%
training_shops = leap_tf.FiniteTasks([shop_task(shop) for shop in range(20)])
validation_shops = [shop_task(shop) for shop in range(20, 25)]
new_shops = [shop_task(shop) for shop in range(25, 30)]

# %% [markdown]
# ## Tasks from a data frame
#
# If the data are in a table, group it. `ArrayTask.from_dataframe` needs the name of the column to
# predict, and holds out a fifth of the rows at random. Rows of a time series should not be held out
# at random: cut the table by time, and pass the later rows as `test`.

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
# Any Keras model will do. Its weights are the initialization. `MetaTrainer` takes a model, a loss,
# an optimizer for the training on a task, and two numbers: `steps_per_task`, the gradient steps on
# a task, and `meta_batch_size`, the tasks in a *meta-step*. A meta-step is one update of the
# initialization.

# %%
import keras

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8,)),
        keras.layers.Dense(32, "relu"),
        keras.layers.Dense(32, "relu"),
        keras.layers.Dense(1),
    ]
)
trainer = leap_tf.MetaTrainer(
    model,
    loss="mse",
    inner_optimizer=keras.optimizers.SGD(0.05),
    steps_per_task=20,
    meta_batch_size=10,
)
before = trainer.evaluate(new_shops)

meta_steps = 100  # short: 4
history = trainer.fit(
    training_shops,
    meta_steps,
    validation_tasks=validation_shops,
    validation_freq=meta_steps // 4,
    verbose=False,
)

# %% [markdown]
# `history.history` has a value of each metric for each meta-step. Two of them show whether it
# works: the loss along the paths and the length of the paths. The loss should fall. The path length
# often rises at first, and falls when the tasks are learned well.

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
# Choose the inner learning rate as for a single task. The training error from random weights should
# fall clearly within `steps_per_task`; `before.tasks[0].training_errors` has it.
#
# Leave `meta_optimizer` out at first. The default needs no change when you change the number of
# steps. With Adam as the inner optimizer, half of the default step is better:
# `meta_optimizer=keras.optimizers.SGD(0.5), learner=leap_tf.Leap(scaled=True)`.
# [Tuning](../tuning.md) has the details.
#
# ## Evaluate
#
# `evaluate` adapts the initialization to each task and measures the error on the held-out
# examples: here the squared error, for classifiers the share of wrong labels. The model itself
# stays as it is.

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
# Is Leap the right method for these tasks? `leap_tf.compare` gives several methods the same number
# of gradient steps. It chooses their learning rates on the validation tasks, and prints a table of
# errors on the test tasks. Joint training on all tasks and no pretraining are always in it.

# %%
budget = 4000  # short: 200
comparison = leap_tf.compare(
    leap_tf.TaskSplits(training_shops, validation_shops, new_shops),
    lambda: keras.models.clone_model(model),
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
# The initialization is a Keras model, so Keras saves it. `adapt` reads it and trains it on a new
# task. It returns a compiled Keras model.

# %%
trainer.model.save("initialization.keras")
new_shop = new_shops[0]
adapted = leap_tf.adapt(
    "initialization.keras", new_shop, keras.optimizers.SGD(0.05), "mse", steps=20
)
print(f"held-out loss: {adapted.evaluate(*new_shop.test, verbose=0):.3f}")
adapted.fit(*new_shop.train, epochs=5, verbose=0)  # training goes on as usual
adapted.save("shop.keras")

# %% [markdown]
# ## Serve
#
# `export` writes a folder that any TensorFlow runtime serves, without leap_tf and without Keras.
# It predicts, and it also *adapts*: a client sends examples of its own shop and gets predictions
# of a model that was trained on them.

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
# [Serving](../serving.md) has a real server and a client.
#
# ## Tasks that do not fit into memory
#
# Anything with `name`, `train_batches(seed)` and `test_batches()` is a task. Nothing is inherited.
# A task must give the same batches for the same seed. Then a run can be repeated to the bit.


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
# - [Forecasts with a GRU](forecasting.md): your data are series, and Adam is the inner optimizer.
# - [Heads of different widths](heads.md): your tasks differ in their number of classes.
# - [Tuning](../tuning.md) and [what is supported](../supported.md).
