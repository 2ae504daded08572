# %% [markdown]
# # Few-shot classification with MAML and Reptile
#
# A classifier must learn five new letters from one image of each. Such a task is an *episode*. Its
# training examples are the support set, and its held-out examples are the query set. We learn
# an initialization from episodes of known letters, with MAML and with Reptile, and evaluate it on
# letters of alphabets that it has never seen.
#
# ## Classes
#
# `load_classes` accepts the name of a TFDS data set, a folder with a folder of images for each
# class, a `tf.data.Dataset`, or arrays. Here we use `unicode_alphabets`, letters drawn from fonts.
# It needs no download; the first use draws it, which takes about a minute.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import leap_tf
from leap_tf.datasets import episodes, load_classes

leap_tf.configure_threads()
classes = load_classes("unicode_alphabets", image_size=28)
print(classes)

# %% [markdown]
# ## Episodes
#
# With `within_groups`, every alphabet belongs to one part: training, validation or test. All
# letters of an episode come from one alphabet. That is harder than letters from anywhere, since
# letters of an alphabet resemble each other. `validation_classes` and `test_classes` then count
# alphabets.

# %%
split = {
    "ways": 5,
    "shots": 1,
    "within_groups": True,
    "validation_classes": 3,
    "test_classes": 8,
    "seed": 0,
}
train = episodes(classes, queries=3, part="train", **split)
test = episodes(classes, queries=3, part="test", **split)

(support, support_labels), (queries, query_labels) = next(iter(test.as_dataset()))
print("support", support.shape, "labels", support_labels.numpy())
print("query", queries.shape, "labels", query_labels.numpy())
figure, axes = plt.subplots(4, 5, figsize=(4, 3.4), layout="constrained")
columns = np.concatenate(
    [support.numpy().reshape(5, 1, 28, 28), queries.numpy().reshape(5, 3, 28, 28)], axis=1
)
for row, images in zip(axes, columns.transpose(1, 0, 2, 3)):
    for axis, image in zip(row, images):
        axis.imshow(image, cmap="gray_r")
        axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("support")
axes[1, 0].set_ylabel("query")
plt.show()

# %% [markdown]
# ## MAML
#
# MAML minimizes the query loss after a few gradient steps. It differentiates through those steps,
# so `conv_net` uses a batch normalization whose second derivatives are right.
#
# Accuracy with batch normalization has two variants, and papers rarely say which they report.
# In the *transductive* variant, the queries of an episode are normalized together. In the
# *inductive* one, they are normalized by running statistics, as in a deployed model.
# `transductive="both"` measures both.

# %%
evaluation = leap_tf.EvaluationConfig(transductive="both", held_out_steps=[1])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    keras.utils.set_random_seed(0)
    return leap_tf.conv_net(classes=5, filters=32, strided=True)


maml = leap_tf.MetaTrainer(
    network(),
    loss,
    inner_optimizer=keras.optimizers.SGD(0.4),
    meta_optimizer=keras.optimizers.Adam(0.001),
    learner=leap_tf.MAML(),
    steps_per_task=1,
    meta_batch_size=8,
    evaluation=evaluation,
)
meta_steps = 400  # short: 2
maml.fit(train, meta_steps, verbose=False)
count = 300  # short: 4
learned_by_maml = maml.evaluate(test, steps=3, count=count)
print(learned_by_maml)

# %% [markdown]
# ## Reptile
#
# Reptile needs no query set and no second derivatives. It trains on an episode and moves the
# initialization towards the result. It works best if training episodes have more examples of each
# class than test episodes: here ten, in batches of ten, for ten steps.

# %%
more_shots = {**split, "shots": 10, "batch_size": 10}
reptile = leap_tf.MetaTrainer(
    network(),
    loss,
    inner_optimizer=keras.optimizers.SGD(0.1),
    meta_optimizer=keras.optimizers.SGD(1.0),
    learner=leap_tf.Reptile(),
    steps_per_task=10,
    meta_batch_size=4,
    evaluation=evaluation,
)
meta_steps = 200  # short: 2
reptile.fit(episodes(classes, queries=1, part="train", **more_shots), meta_steps, verbose=False)
learned_by_reptile = reptile.evaluate(test, steps=10, count=count)

# %% [markdown]
# ## Results
#
# The interval is 1.96 standard errors over the episodes. An evaluation without `fit` shows what ten
# steps reach from random weights.

# %%
fresh = leap_tf.MetaTrainer(
    network(), loss, inner_optimizer=keras.optimizers.SGD(0.1), evaluation=evaluation
).evaluate(test, steps=10, count=count)
results = {"random weights": fresh, "MAML": learned_by_maml, "Reptile": learned_by_reptile}
print(f"accuracy{'transductive':>20}{'inductive':>12}{'±':>7}")
for name, found in results.items():
    transductive = 1 - found.mean_metric("transductive_error")
    print(f"{name:16}{transductive:12.1%}{1 - found.error:12.1%}{found.interval():7.1%}")

# %% [markdown]
# [Few-shot episodes](../few_shot.md) has results on Omniglot, the configurations for other
# problems and methods, and advice for MAML.
#
# ## Learn new letters
#
# A new task is an `ArrayTask` of a few labelled images. `trainer.adapt` returns a Keras model.

# %%
letters = leap_tf.ArrayTask(
    "five letters",
    train=(support.numpy(), support_labels.numpy()),
    test=(queries.numpy(), query_labels.numpy()),
)
classifier = maml.adapt(letters, steps=3)
predicted = classifier.predict(queries.numpy(), verbose=0).argmax(axis=-1)
print("predicted", predicted)
print("labels   ", query_labels.numpy())
