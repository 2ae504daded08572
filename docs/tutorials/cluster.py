# %% [markdown]
# # From gin to a Ray cluster
#
# A notebook is good for a first look. For long runs you want a command that can be stopped and
# resumed, that records its settings, and that runs on many machines. In this tutorial you move a
# study from Python to a configuration file and from there to a cluster.
#
# ## A module with tasks and a model
#
# `@leap_tf.configurable` offers a function or a class to configuration files. Tasks are a function
# of a seed that returns `TaskSplits`.

# %%
# %%writefile vibrations.py
import keras
import numpy as np

import leap_tf


def machine_task(machine, seed):
    rng = np.random.default_rng([seed, machine])
    signal = np.sin(np.arange(300) * rng.uniform(0.1, 0.5)) + rng.normal(0, 0.1, 300)
    windows = np.lib.stride_tricks.sliding_window_view(signal.astype("float32"), 9)
    inputs, targets = windows[:, :8], windows[:, 8:]
    return leap_tf.ArrayTask(
        f"machine {machine}", (inputs[:150], targets[:150]), (inputs[160:], targets[160:])
    )


@leap_tf.configurable
def machines(seed, data_dir=None, train_tasks=20):
    tasks = [machine_task(machine, seed) for machine in range(train_tasks + 8)]
    train, held_out = tasks[:train_tasks], tasks[train_tasks:]
    return leap_tf.TaskSplits(leap_tf.FiniteTasks(train), held_out[:3], held_out[3:])


@leap_tf.configurable
def network(units=32):
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)]
    )


# %% [markdown]
# ## A configuration
#
# [gin](https://github.com/google/gin-config) files bind arguments of functions and classes. An `@`
# refers to a registered name.

# %%
import pathlib

configuration = """
study.tasks = @machines
study.model = @network
study.trainer = @MetaTrainer
network.units = 32

MetaTrainer.loss = "mse"
MetaTrainer.learner = @Leap()
MetaTrainer.inner_optimizer = @inner/SGD()
inner/SGD.learning_rate = 0.05
MetaTrainer.steps_per_task = 20
MetaTrainer.meta_batch_size = 5

meta_train.meta_steps = 20
"""
_ = pathlib.Path("vibrations.gin").write_text(configuration)

# %% [markdown]
# ## Train, and resume
#
# The run directory gets the configuration, versions, metrics, checkpoints, plots and the learned
# initialization. The same command resumes a run that was stopped. With more meta-steps it makes a
# finished run longer, as here:

# %% language="bash"
# leap-train --module=vibrations.py --gin_file=vibrations.gin --output_dir=runs/machines
# leap-train --module=vibrations.py --gin_file=vibrations.gin --output_dir=runs/machines \
#     --gin_param='meta_train.meta_steps = 30'
# ls runs/machines

# %% [markdown]
# `evaluation.json` has the errors on the held-out machines, from the learned initialization and
# without pretraining. `leap-evaluate` evaluates the run with other settings, and `leap-sweep`
# trains many runs. [Runs](../runs.md) has all programs.

# %% language="bash"
# leap-evaluate --module=vibrations.py --output_dir=runs/machines --gin_param='evaluate.steps = 5'

# %% [markdown]
# ## On Ray
#
# This page does not start Ray; the project's tests do. With the packages of
# `requirements-cluster.txt`, one flag runs the tasks of a meta-batch on Ray workers. A run is the
# same run on threads and on Ray, to the bit, so you can start it on one and go on with the other:
#
# ```bash
# leap-train --module=vibrations.py --gin_file=vibrations.gin --output_dir=runs/machines \
#     --gin_param='meta_train.meta_steps = 60' --pool=ray --workers=2
# ```
#
# On several machines, start Ray on each, put `vibrations.py` under the same path on all of them,
# and name the address:
#
# ```bash
# ray get-auth-token --generate           # once; the same ~/.ray/auth_token on every machine
# ray start --head --port=6379            # on the first machine
# ray start --address=first:6379          # on each of the others
# leap-train --module=/shared/vibrations.py --gin_file=vibrations.gin --output_dir=runs/machines \
#     --gin_param='meta_train.meta_steps = 60' --pool=ray --address=auto --workers=64
# ```
#
# Workers may die, hang or come late. [Many machines](../cluster.md) says what happens then, and
# how to run on Kubernetes.
