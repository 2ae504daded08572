# %% [markdown]
# # Heads of different widths
#
# Classification tasks often differ in their number of classes. Then the output layer cannot be
# shared, but the encoder below it can. In this tutorial each task is a family of shapes to tell
# apart, with three to six classes.
#
# ## Tasks that say how many classes they have
#
# The argument `classes` of `ArrayTask` is the number of classes. Labels are integers from 0.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import leap_tf

leap_tf.configure_threads()


def waves(task, classes, examples=40, length=48):
    """Returns noisy waves [n, length, 1] and their labels: each class has a wave of its own."""
    rng = np.random.default_rng(task)
    frequencies, shapes = rng.uniform(1, 6, classes), rng.uniform(0.3, 3, classes)
    labels = rng.permutation(np.arange(examples * classes) % classes)
    time = np.linspace(0, 1, length) + rng.uniform(0, 1, (len(labels), 1))
    signal = np.tanh(shapes[labels, None] * np.sin(2 * np.pi * frequencies[labels, None] * time))
    return (signal + rng.normal(0, 0.3, signal.shape))[..., None].astype("float32"), labels


def wave_task(task):
    classes = 3 + task % 4
    inputs, labels = waves(task, classes)
    half = len(labels) // 2
    return leap_tf.ArrayTask(
        f"task {task} with {classes} classes",
        train=(inputs[:half], labels[:half]),
        test=(inputs[half:], labels[half:]),
        classes=classes,
    )


training = leap_tf.FiniteTasks([wave_task(task) for task in range(20)])
held_out = [wave_task(task) for task in range(20, 28)]
figure, axes = plt.subplots(1, 3, figsize=(8, 1.8), layout="constrained", sharey=True)
for axis, wave, label in zip(axes, *held_out[0].train):
    axis.plot(wave[:, 0])
    axis.set(title=f"class {label}", xticks=[])
plt.show()

# %% [markdown]
# ## A shared encoder and a head for each task
#
# Name the output layer, and list its name in `task_layers`. Its width in the model does not
# matter. On every task the head gets new weights and as many units as the task has classes. It is
# trained, but not meta-learned. Only the encoder is part of the initialization.

# %%
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((48, 1)),
        keras.layers.Conv1D(16, 7, strides=2, activation="relu"),
        keras.layers.Conv1D(32, 5, strides=2, activation="relu"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(6, name="head"),
    ]
)
trainer = leap_tf.MetaTrainer(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    inner_optimizer=keras.optimizers.Adam(0.01),
    meta_optimizer=keras.optimizers.SGD(0.5),
    learner=leap_tf.Leap(scaled=True),
    steps_per_task=30,
    meta_batch_size=10,
    task_layers=["head"],
)
before = trainer.evaluate(held_out)
meta_steps = 60  # short: 2
history = trainer.fit(training, meta_steps, verbose=False)
after = trainer.evaluate(held_out)
print("share of errors on held-out examples after 30 steps")
for fresh, learned in zip(before.tasks, after.tasks):
    print(f"{fresh.name}: {fresh.error:.2f} random weights, {learned.error:.2f} learned encoder")

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for evaluation, label in ((before, "random weights"), (after, "learned encoder")):
    axes.plot(np.mean([task.training_errors for task in evaluation.tasks], axis=0), label=label)
axes.set(xlabel="gradient step on a new task", ylabel="training error", ylim=(0, 1))
axes.legend()
plt.show()

# %% [markdown]
# ## An adapted model has the width of its task

# %%
for task in held_out[:2]:
    print(task.name, "→ output shape", trainer.adapt(task).output_shape)

# %% [markdown]
# [Multi-CV](../multi_cv.md) does this with whole image data sets of 10 to 100 classes. Joint
# training, HAT and Progressive Nets use the same `task_layers`.
