# %% [markdown]
# # Agents that learn games faster
#
# Tasks need not be data sets. Here a task is a game, and training on it is reinforcement learning:
# an agent sees the screen, moves and gets rewards. In this tutorial Leap learns the encoder of such
# agents on eight small games, and new games are then learned from fewer steps.
#
# Agents run under [TF-Agents](https://www.tensorflow.org/agents), so `leap_tf.atari` needs
# `pip install --no-deps -r requirements-atari.txt`. TF-Agents needs Keras 2, which the variable
# below provides to it; it must be set before TensorFlow is imported.

# %%
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import keras
import matplotlib.pyplot as plt
import numpy as np

import leap_tf
from leap_tf import atari

leap_tf.configure_threads()
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The games
#
# In `catch/0`, `catch/1`, … a paddle catches a falling ball. The number is the seed of a layout:
# colours, widths, whether balls drift, and whether left and right are swapped. A screen does not
# say which way the actions move, so every game has to be learned.

# %%
figure, axes = plt.subplots(1, 6, figsize=(9, 1.7))
for seed, axis in enumerate(axes):
    game = f"catch/{seed}"
    axis.imshow(atari.CatchEnvironment(game, copies=1).reset().observation[0])
    axis.set(title=game, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Meta-train the encoder
#
# An agent is an encoder of screens with two linear heads, for policy and value. `AtariProblem`
# trains a new agent in every task run: from the present encoder, with fresh heads, on 32 copies of
# the game. After every 5 steps of each copy there is an update.
#
# Two settings suit short task runs: value heads begin at zero, and Leap measures the path's length
# in the space of parameters only. [Atari](../atari.md) explains them.

# %%
updates = 100  # short: 5
meta_steps = 4  # short: 1


def play(game):
    return atari.CatchEnvironment(game, copies=32, image_size=28)


def new_encoder():
    return atari.catch_encoder(image_size=28)


problem = atari.AtariProblem(
    new_encoder(),
    inner_optimizer=keras.optimizers.Adam(1e-2),
    meta_optimizer=keras.optimizers.SGD(12.0),
    environment_pool=atari.EnvironmentPool(play),
    learner=leap_tf.Leap(include_loss=False, per_segment=True),
    loss=atari.ActorCriticLoss(discount=0.9),
    steps_per_task=updates,
    meta_batch_size=4,
    value_gain=0.0,
)
trainer = leap_tf.MetaTrainer.from_problem(problem)
games = leap_tf.FiniteTasks(atari.games([f"catch/{seed}" for seed in range(8)]))
history = trainer.fit(games, meta_steps, verbose=False).history
print("reward per 1000 steps in each meta-step:", np.round(history["reward"], 1))

# %% [markdown]
# ## Learn new games
#
# `adapt` trains one agent. We compare agents from the learned encoder with agents from fresh ones
# on three games that were not trained on, two agents each. Both get the same heads and the same
# balls.

# %%
new_games = ["catch/100", "catch/101", "catch/102"]
fresh_encoders = [new_encoder().get_weights() for _ in range(2)]


def learning_curves(game, encoders):
    runs = [
        problem.adapt(game, seed, updates, encoder=encoder)[0]
        for seed, encoder in enumerate(encoders)
    ]
    return np.mean([run.rewards for run in runs], axis=0) * 1000


learned = {game: learning_curves(game, [None, None]) for game in new_games}
fresh = {game: learning_curves(game, fresh_encoders) for game in new_games}
for game in new_games:
    print(f"{game}: {learned[game].mean():.0f} learned, {fresh[game].mean():.0f} fresh")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
steps = np.arange(updates) * 5 * 32
window = np.ones(5) / 5
for game, axis in zip(new_games, axes):
    for name, curves in (("learned", learned), ("fresh", fresh)):
        axis.plot(steps[4:], np.convolve(curves[game], window, "valid"), label=name)
    axis.set(title=game, xlabel="steps")
axes[0].set_ylabel("reward per 1000 steps")
axes[0].legend()
plt.show()

# %% [markdown]
# ## Go on
#
# - `gin_configs/atari_catch.gin` has this study for `bin/atari_train.py` and
#   `bin/atari_evaluate.py`: with checkpoints, tables and several seeds. [Atari](../atari.md) has
#   the commands, and a study of real games.
# - A game of your own is a subclass of `atari.ScreenEnvironment` with three methods. Its task is
#   any object with the attribute `name`. `catch.py` in `leap_tf/atari` is an example.
# - [Write your own learner](learner.md): every learner without query batches works with games.
