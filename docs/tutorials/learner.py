# %% [markdown]
# # Write your own learner
#
# A method of meta-learning is a *learner*: it sees the training on a task and returns a
# meta-gradient. Everything else is the trainer's work: parallel tasks, checkpoints, evaluation,
# exports. In this tutorial you write a learner and compare it with others.
#
# ## The idea
#
# Reptile moves the initialization towards the last point of training, θᴷ. That point is noisy,
# since the last batches pull at it. Our learner moves it towards the *mean of all points* of the
# path instead. Its meta-gradient is
#
#     θ⁰ − (θ⁰ + θ¹ + … + θᴷ⁻¹) / K
#
# ## The code
#
# A learner has three methods. `begin_task` returns a state, `observe` updates it at each gradient
# step, and `end_task` returns the meta-gradient, with metrics if you like. The methods are pure
# functions of tensors: they are traced once into the graph of the inner loop. So the structure and
# shapes of the state must not change.

# %%
import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import leap_tf

leap_tf.configure_threads()


class MeanOfPath(leap_tf.Learner):
    """Moves the initialization towards the mean of the points of the gradient path."""

    def begin_task(self, initialization):
        return [tf.zeros_like(value) for value in initialization], tf.constant(0.0)

    def observe(self, state, point):  # point: position, loss and gradient before the step
        total, steps = state
        return [sum_ + value for sum_, value in zip(total, point.position)], steps + 1

    def end_task(self, state, end):  # end: initialization, parameters, query_gradient
        total, steps = state
        meta_gradient = [start - sum_ / steps for start, sum_ in zip(end.initialization, total)]
        return leap_tf.TaskUpdate(meta_gradient, metrics={})


# %% [markdown]
# ## Compare it
#
# `compare` takes learners by name. All methods get the same number of gradient steps and choose
# their rates on validation tasks. Joint training and no pretraining are always there.

# %%
budget = 4000  # short: 200
comparison = leap_tf.compare(
    leap_tf.sinusoid_splits(validation_tasks=5, test_tasks=20),
    leap_tf.mlp,
    budget=budget,
    loss="mse",
    inner_optimizer=keras.optimizers.SGD(0.02),
    learners={
        "mean of path": MeanOfPath(),
        "Leap": leap_tf.Leap(scaled=True),
        "Reptile": leap_tf.Reptile(),
    },
    verbose=False,
    steps_per_task=20,
    meta_batch_size=5,
)
print(comparison)

# %%
axes = comparison.plot()
plt.show()

# %% [markdown]
# ## Go on
#
# - [`Learner`](../api/learners.md#leap_tf.Learner) documents the whole protocol: query batches as
#   MAML needs them, learned rates, and learners that have models of their own.
# - A test of a new learner is a subclass of `LearnerContract`, see
#   [Contributing](../contributing.md#add-a-learner).
# - `@leap_tf.configurable` offers it to [gin files](cluster.md).
