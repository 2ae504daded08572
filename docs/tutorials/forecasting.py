# %% [markdown]
# # Forecasts with a GRU and Adam
#
# Employment in a sector of the US economy is a time series. Each sector is a task: predict the
# growth of the next month from that of the last twelve. There are only 15 sectors and 120 months,
# so a network for one sector has little to learn from. We learn an initialization from eight
# sectors, tune on three, and evaluate on four.
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
# training months.

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
shuffled = [tasks[index] for index in order]
training, tuning, held_out = shuffled[:8], shuffled[8:11], shuffled[11:]
print("held out:", ", ".join(task.name for task in held_out))

# %% [markdown]
# ## A recurrent model, and Adam on tasks
#
# Any inner optimizer will do. Adam's steps have about the same length however small the gradient
# is, so [Tuning](../tuning.md#sgd-or-adam) advises half of the default
# meta-optimizer's rate: `SGD(0.5)`, with `Leap(scaled=True)`.


# %%
def forecaster():
    return keras.Sequential(
        [keras.Input((WINDOW, 1)), keras.layers.GRU(16), keras.layers.Dense(1)], name="forecaster"
    )


settings = {
    "loss": "mse",
    "inner_optimizer": keras.optimizers.Adam(0.01),
    "steps_per_task": 20,
    "meta_batch_size": 8,
}
keras.utils.set_random_seed(0)
trainer = leap_tf.MetaTrainer(
    forecaster(),
    meta_optimizer=keras.optimizers.SGD(0.5),
    learner=leap_tf.Leap(scaled=True),
    **settings,
)
before = trainer.evaluate(held_out)
meta_steps = 30  # short: 2
history = trainer.fit(training, meta_steps, verbose=False)
after = trainer.evaluate(held_out)

# %% [markdown]
# ## Results
#
# The table has the squared error on the held-out months, after 20 steps of Adam on the sector's own
# training months. The last two columns need no network: they predict the growth of the last month
# again, and the mean growth of the last twelve months.


# %%
def errors(predict):
    return [float(np.mean((predict(task.test[0]) - task.test[1]) ** 2)) for task in held_out]


results = pd.DataFrame(
    {
        "random weights": [task.error for task in before.tasks],
        "learned initialization": [task.error for task in after.tasks],
        "last month again": errors(lambda months: months[:, -1]),
        "mean of twelve months": errors(lambda months: months.mean(axis=1)),
    },
    index=[task.name for task in held_out],
)
results.loc["mean"] = results.mean()
results.round(2)

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for evaluation, label in ((before, "random weights"), (after, "learned initialization")):
    axes.plot(np.mean([task.training_errors for task in evaluation.tasks], axis=0), label=label)
axes.set(xlabel="Adam step on a held-out sector", ylabel="training error", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# ## Compare methods
#
# Always compare with a simple method as well: the mean of twelve months is a strong forecast of
# such smooth series. In a [longer comparison](../results/README.md) with three splits, pretrained
# networks had lower errors than no pretraining on the training months, but not on the held-out
# months.
#
# Four held-out series are few. Before you trust such a result, draw other splits (change the seed
# of `order`), and compare methods with the same number of gradient steps. `leap_tf.compare` chooses
# rates on the three sectors for tuning; here only one is tried. Joint training trains one network
# on all sectors.

# %%
budget = 3200  # short: 160
comparison = leap_tf.compare(
    leap_tf.TaskSplits(training, tuning, held_out),
    forecaster,
    budget=budget,
    inner_factors=[1.0],
    meta_rates=[0.5],
    verbose=False,
    **settings,
)
print(comparison)

# %% [markdown]
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
