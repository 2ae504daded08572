# %% [markdown]
# # Forecasts with a GRU and Adam
#
# Employment in a sector of the US economy is a time series. Each sector is a task: predict the
# growth of the next month from that of the last twelve. There are only 15 sectors and 120 months,
# so a network for one sector has little to learn from. We learn an initialization from eight
# sectors.
#
# The data are from the U.S. Bureau of Labor Statistics. `examples/employment/us_employment.csv` in
# the repository has them.

# %%
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import leap_tf

leap_tf.configure_threads()
data = pathlib.Path(leap_tf.__file__).parents[1] / "examples" / "employment"
table = pd.read_csv(data / "us_employment.csv", parse_dates=["month"], index_col="month")
print(table.shape)
(table / table.iloc[0]).plot(figsize=(7, 3.2), legend=False, ylabel="employment, 2006 = 1")
plt.show()

# %% [markdown]
# ## A task for each sector
#
# Windows of twelve months are the inputs, and the month after each window is the target. The last
# months of every sector are held out. Growth is in units of its standard deviation over the
# training months, so an error of 1 is about that of always predicting the mean.

# %%
WINDOW, TRAINING_MONTHS = 12, 84


def sector_task(name):
    growth = np.diff(np.log(table[name].to_numpy(float)))
    growth = (growth / growth[:TRAINING_MONTHS].std()).astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(growth, WINDOW + 1)
    inputs, targets = windows[:, :-1, None], windows[:, -1:]
    last = TRAINING_MONTHS - WINDOW  # targets after it are held out
    return leap_tf.ArrayTask(
        name, (inputs[:last], targets[:last]), (inputs[last:], targets[last:]), batch_size=12
    )


tasks = [sector_task(name) for name in table]
order = np.random.default_rng(0).permutation(len(tasks))
training, held_out = [tasks[i] for i in order[:8]], [tasks[i] for i in order[11:]]
print("held out:", ", ".join(task.name for task in held_out))

# %% [markdown]
# ## A recurrent model, and Adam on tasks
#
# Any inner optimizer will do. Adam goes as far as its rate allows, whatever the gradient.
# [Tuning](../tuning.md#sgd-or-adam-inside-and-outside) advises half the default step for it:
# `SGD(0.5)` outside, with `Leap(scaled=True)`.

# %%
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((WINDOW, 1)), keras.layers.GRU(16), keras.layers.Dense(1)], name="forecaster"
)
trainer = leap_tf.MetaTrainer(
    model,
    "mse",
    inner_optimizer=keras.optimizers.Adam(0.01),
    meta_optimizer=keras.optimizers.SGD(0.5),
    learner=leap_tf.Leap(scaled=True),
    steps_per_task=5,
    meta_batch_size=8,
)
before = trainer.evaluate(held_out)
meta_steps = 40  # short: 2
history = trainer.fit(leap_tf.FiniteTasks(training), meta_steps, verbose=False)
after = trainer.evaluate(held_out)

# %% [markdown]
# ## Results
#
# The table has the squared error on the held-out months, after five steps of Adam on the sector's
# own training months. The last column is that of predicting the last month's growth again.

# %%
pd.DataFrame(
    {
        "random weights": [task.error for task in before.tasks],
        "learned initialization": [task.error for task in after.tasks],
        "last month again": [
            float(np.mean((task.test[0][:, -1] - task.test[1]) ** 2)) for task in held_out
        ],
    },
    index=[task.name for task in held_out],
).round(2)

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for evaluation, label in ((before, "random weights"), (after, "learned initialization")):
    axes.plot(np.mean([task.training_errors for task in evaluation.tasks], axis=0), label=label)
axes.set(xlabel="Adam step on a held-out sector", ylabel="training error", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# Four held-out series are few. Before you trust such a result, draw other splits (change the seed
# of `order`), and call [`leap_tf.compare`](../runs.md#compare-methods), which has joint training
# in its table.
#
# ## Forecast
#
# `trainer.adapt` returns a Keras model for a sector, with the settings of the trainer.

# %%
sector = held_out[0]
forecaster = trainer.adapt(sector)
predicted = forecaster.predict(sector.test[0], verbose=0)
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
axes.plot(table.index[-len(predicted) :], sector.test[1], label="observed")
axes.plot(table.index[-len(predicted) :], predicted, label="predicted a month ahead")
axes.set(title=sector.name, ylabel="growth")
axes.legend()
plt.show()
