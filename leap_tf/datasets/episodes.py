"""N-way, K-shot episodes: few-shot classification tasks from any labelled examples.

An episode has `ways` classes, drawn without replacement, with `shots` examples of each to train on
(the support set) and `queries` examples of each that are held out (the query set). Labels are 0 to
ways − 1. Classes are split first, so the classes of test episodes are never trained on.

An episode is drawn when it is used, by stateless random numbers from (seed, index), so a list of a
thousand episodes holds no images. Classes and examples are those with the largest random numbers,
which draws without replacement.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import (
    ArrayTask,
    OrderedBatches,
    batches_in_order,
    describe_arrays,
    pixels_to_floats,
)
from leap_tf.datasets.sources import ClassChoice, Classes, check_groups, load_classes, split_classes
from leap_tf.errors import whole_number
from leap_tf.tasks import TaskSplits


class Episodes:
    """A distribution over few-shot episodes; a `leap_tf.TaskDistribution`.

    Args:
        classes: the classes to draw from, see `load_classes`. Inputs of dtype uint8 are taken for
            pixels: episodes have them as floats, divided by 255. Others stay as they are.
        ways: classes of an episode.
        shots: support examples of each class.
        queries: query examples of each class.
        quarter_turns: whether each class gives four, one for each rotation by 90°, as in the usual
            protocol of Omniglot (Santoro et al. 2016). All four are held in memory.
        within_groups: whether the classes of an episode are of one group, such as the characters of
            one alphabet. Groups are drawn with equal probability.
        batch_size: support examples in a training batch; all by default.
        seed: decides the episodes.
        name: the first words of the names of episodes.

    Raises:
        TypeError: a number is not a whole number.
        ValueError: a number is below 1, there are too few classes in all or in a group, a class
            has too few examples, or images to be turned are not square.

    Example:

        >>> import leap_tf, numpy as np
        >>> labels = np.repeat(["a", "b", "c"], 4)
        >>> classes = leap_tf.datasets.load_classes((np.zeros((12, 8), "float32"), labels))
        >>> episodes = leap_tf.datasets.Episodes(classes, ways=2, shots=1, queries=3)
        >>> [task] = episodes.sample(1, np.random.default_rng(0))
        >>> [labels.numpy().tolist() for _, labels in task.test_batches()]
        [[0, 0, 0, 1, 1, 1]]
    """

    def __init__(
        self,
        classes: Classes,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        quarter_turns: bool = False,
        within_groups: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
        name: str = "episode",
    ):
        self.classes = classes
        self.ways = whole_number("ways", ways, 1)
        self.shots = whole_number("shots", shots, 1)
        self.queries = whole_number("queries", queries, 1)
        self.quarter_turns = quarter_turns
        self.within_groups = within_groups
        batch_size = ways * shots if batch_size is None else batch_size
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed, 0)
        self.name = name
        self._check()
        # The last few are kept, since a task is asked for its support and its query set.
        self.draw = functools.lru_cache(maxsize=16)(
            lambda index: self._drawn(tf.constant([self.seed, index], tf.int64))
        )

    def __repr__(self) -> str:
        return (
            f"<Episodes {self.name!r}: {self.ways} ways, {self.shots} shots, {self.queries} "
            f"queries, from {len(self.classes.names) * (4 if self.quarter_turns else 1)} classes>"
        )

    def sample(self, count: int, rng: np.random.Generator) -> list["Episode"]:
        return [Episode(self, int(index)) for index in rng.integers(2**62, size=count)]

    def first(self, count: int) -> list["Episode"]:
        """Returns the episodes 0 to `count` − 1, always the same ones."""
        return [Episode(self, index) for index in range(whole_number("count", count, 1))]

    def as_dataset(self) -> tf.data.Dataset:
        """Returns the episodes 0, 1, … as an endless data set for loops of your own.

        Elements are ((support inputs, labels), (query inputs, labels)), with inputs
        [ways · shots, …] and [ways · queries, …], those of a class together.
        """
        seed = tf.constant(self.seed, tf.int64)
        return tf.data.Dataset.counter().map(lambda index: self._draw(tf.stack([seed, index])))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as plain values, with CRC-32s of examples and class names."""
        names = ("ways", "shots", "queries", "quarter_turns", "within_groups", "batch_size", "seed")
        return {name: getattr(self, name) for name in names} | {"classes": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self):
        classes = self.classes
        names = np.frombuffer("\n".join(classes.names).encode(), np.uint8)
        return describe_arrays((classes.inputs, classes.sizes, names))

    def _check(self):
        names, sizes, needed = self.classes.names, self.classes.sizes, self.shots + self.queries
        few = [f"{names[i]!r} ({sizes[i]})" for i in np.flatnonzero(sizes < needed)]
        if few:
            raise ValueError(
                f"An episode needs {needed} examples of a class ({self.shots} shots and "
                f"{self.queries} queries), and {len(few)} of the {len(names)} classes have fewer: "
                f"{', '.join(few[:5])}{', …' if few[5:] else ''}. Ask for fewer, or leave these "
                "classes out."
            )
        available = 4 * sizes.shape[0] if self.quarter_turns else sizes.shape[0]
        if available < self.ways:
            raise ValueError(f"There are {available} classes for episodes of {self.ways} ways.")
        if self.within_groups:
            check_groups(self.classes)
            found, counts = np.unique(self.classes.groups, return_counts=True)
            counts = counts * 4 if self.quarter_turns else counts
            few = [f"'{name}' ({n})" for name, n in zip(found, counts) if n < self.ways]
            if few:
                raise ValueError(
                    f"Episodes of {self.ways} ways within groups need as many classes in each, and "
                    f"these have fewer: {', '.join(few)}. Ask for fewer ways, or leave their "
                    "classes out."
                )
        shape = self.classes.inputs.shape
        if self.quarter_turns and (len(shape) != 4 or shape[1] != shape[2]):
            raise ValueError(
                f"quarter_turns needs square images [examples, size, size, channels]. Received "
                f"inputs of the shape {list(shape)}."
            )

    @functools.cached_property
    def _tensors(self):
        """Examples in all rotations, and the first example, size and group of each class."""
        inputs, sizes = self.classes.inputs, self.classes.sizes
        if self.quarter_turns:
            inputs = np.concatenate([np.rot90(inputs, turn, axes=(1, 2)) for turn in range(4)])
        groups = np.unique(self.classes.groups, return_inverse=True)[1]
        with tf.init_scope():
            return (
                tf.convert_to_tensor(inputs),
                tf.constant(np.cumsum(sizes) - sizes, tf.int32),
                tf.constant(sizes, tf.int32),
                tf.constant(groups, tf.int32),
            )

    @functools.cached_property
    def _drawn(self):
        # Calls of a concrete function are faster. Partials are traced by themselves; methods would
        # count as one function to TensorFlow.
        signature = [tf.TensorSpec((2,), tf.int64)]
        drawn = tf.function(functools.partial(self._draw), input_signature=signature)
        return drawn.get_concrete_function()

    def _draw(self, key):
        """Draws an episode in the graph from int64 [seed, index]."""
        inputs, starts, sizes, groups = self._tensors
        turns = 4 if self.quarter_turns else 1
        stream = tf.random.experimental.stateless_split(key, 3)
        order = tf.random.stateless_uniform([turns * len(self.classes.names)], stream[0])
        if self.within_groups:
            group = tf.random.stateless_uniform(
                [], stream[1], maxval=int(np.max(groups)) + 1, dtype=tf.int32
            )
            order = tf.where(tf.tile(groups, [turns]) == group, order, -1.0)
        chosen = tf.math.top_k(order, self.ways).indices
        classes, turned = chosen % len(self.classes.names), chosen // len(self.classes.names)
        most = int(np.max(self.classes.sizes))
        order = tf.random.stateless_uniform([self.ways, most], stream[2])
        exists = tf.range(most) < tf.gather(sizes, classes)[:, None]
        examples = tf.math.top_k(tf.where(exists, order, -1.0), self.shots + self.queries).indices
        starts = tf.gather(starts, classes) + turned * len(self.classes.inputs)
        rows = starts[:, None] + examples
        return (
            self._examples(inputs, rows[:, : self.shots]),
            self._examples(inputs, rows[:, self.shots :]),
        )

    def _examples(self, inputs, rows):
        """Inputs and labels of the rows [ways, n], flat, the examples of a class together."""
        found = tf.gather(inputs, tf.reshape(rows, [-1]))
        found = pixels_to_floats(found) if found.dtype == tf.uint8 else found
        return found, tf.repeat(tf.range(self.ways), rows.shape[1])


class Episode:
    """A task: one episode, by its index. It holds no examples.

    Args:
        episodes: where it is drawn from.
        index: decides it together with the seed of `episodes`.
    """

    def __init__(self, episodes: Episodes, index: int):
        self.episodes = episodes
        self.index = index

    def __repr__(self) -> str:
        return f"<Episode {self.name!r} of {self.episodes!r}>"

    @property
    def name(self) -> str:
        return f"{self.episodes.name} {self.index}"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.episodes.ways

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns endless batches of the support set, in a new order every epoch."""
        support, batch_size = self.episodes.draw(self.index)[0], self.episodes.batch_size
        if batch_size == len(support[1]):
            return batches_in_order(support, endless=True)
        return ArrayTask(self.name, support, support, batch_size).train_batches(seed)

    def few_batches(self, seed: int, batches: int) -> OrderedBatches | None:
        """Returns the first of these batches without a pipeline; None if they are many."""
        support, batch_size = self.episodes.draw(self.index)[0], self.episodes.batch_size
        if batch_size == len(support[1]):
            return OrderedBatches(support, tf.tile(tf.range(batch_size)[None], [batches, 1]))
        return ArrayTask(self.name, support, support, batch_size).few_batches(seed, batches)

    def query_batches(self, seed: int) -> tf.data.Dataset:
        """Returns the query set again and again, each time as one batch."""
        return batches_in_order(self.episodes.draw(self.index)[1], endless=True)

    def test_batches(self) -> tf.data.Dataset:
        """Returns the query set once, as one batch."""
        return batches_in_order(self.episodes.draw(self.index)[1])

    def get_config(self) -> dict[str, Any]:
        return {"index": self.index} | self.episodes.get_config()


def episodes(
    source: Any,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    part: str | None = None,
    validation_classes: ClassChoice = 0,
    test_classes: ClassChoice = 0,
    quarter_turns: bool = False,
    within_groups: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    **source_options: Any,
) -> Episodes:
    """Makes a distribution over few-shot episodes from any labelled source.

    Args:
        source: see `load_classes`: the name of a TFDS data set, a `tf.data.Dataset`, arrays, a
            folder of images, or `Classes`.
        ways, shots, queries: classes of an episode, and support and query examples of each.
        part: "train", "validation" or "test"; by default, all classes are drawn from.
        validation_classes, test_classes: how many classes these parts have, or their names. Numbers
            are drawn by the seed. The training part has the others. With `within_groups`, these
            are numbers or names of groups.
        quarter_turns, within_groups, batch_size: see `Episodes`.
        seed: decides the split and the episodes.
        **source_options: of `load_classes`, such as `image_size` and `data_dir`.

    Raises:
        ValueError: a part is not known, names or numbers do not fit the source, or see `Episodes`
            and `load_classes`.
        MissingDataError: a TFDS data set is not on this machine.

    Example:

        >>> import leap_tf, numpy as np
        >>> source = np.zeros((40, 8), "float32"), np.repeat(np.arange(10), 4)
        >>> test = leap_tf.datasets.episodes(
        ...     source, ways=2, shots=1, queries=3, part="test", test_classes=["7", "8", "9"]
        ... )
        >>> test.classes.names
        ('7', '8', '9')
    """
    classes = load_classes(source, **source_options)
    if part is None and (validation_classes or test_classes):
        raise ValueError(
            'Say which part of the classes to draw from: "train", "validation" or "test".'
        )
    if part is not None:
        if part not in ("train", "validation", "test"):
            raise ValueError(f'part must be "train", "validation" or "test". Received: {part!r}.')
        classes = split_classes(
            classes, validation_classes, test_classes, seed, by_group=within_groups
        )[part]
    options: dict[str, Any] = {"quarter_turns": quarter_turns, "within_groups": within_groups}
    options |= {"batch_size": batch_size, "seed": seed}
    name = f"{part} episode" if part else "episode"
    return Episodes(classes, ways, shots, queries, name=name, **options)


def episode_splits(
    source: Any = "unicode_alphabets",
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    train_shots: int | None = None,
    train_queries: int | None = None,
    train_batch_size: int | None = None,
    test_batch_size: int | None = None,
    validation_classes: ClassChoice = 100,
    test_classes: ClassChoice = 423,
    quarter_turns: bool = False,
    within_groups: bool = False,
    validation_episodes: int = 100,
    test_episodes: int = 1000,
    image_size: int | None = 28,
) -> TaskSplits:
    """Returns endless training episodes, and fixed episodes of other classes to evaluate.

    Args:
        source: see `load_classes`.
        data_dir: folder of prepared data sets.
        seed: decides the split of the classes and the episodes.
        ways, shots, queries: see `Episodes`.
        train_shots, train_queries: numbers for training episodes, if they differ.
        train_batch_size, test_batch_size: support examples in a batch of a training episode, and of
            the others; all by default.
        validation_classes, test_classes: see `episodes`. The defaults, on Omniglot, leave the usual
            1,100 classes for training.
        quarter_turns, within_groups: see `Episodes`.
        validation_episodes, test_episodes: number of fixed episodes.
        image_size: height and width to which images are resized.

    Raises:
        ValueError, MissingDataError: see `episodes`.

    Example (`unicode_alphabets` is drawn at first use, which takes about a minute):

        >>> import leap_tf
        >>> splits = leap_tf.datasets.episode_splits(ways=20, test_episodes=10)
        >>> splits.test[0].classes
        20
    """
    classes = load_classes(source, data_dir=data_dir, image_size=image_size)
    parts = split_classes(classes, validation_classes, test_classes, seed, by_group=within_groups)
    draw: Callable[..., Episodes] = functools.partial(
        Episodes, quarter_turns=quarter_turns, within_groups=within_groups, seed=seed
    )
    evaluated = functools.partial(
        draw, ways=ways, shots=shots, queries=queries, batch_size=test_batch_size
    )
    return TaskSplits(
        train=draw(
            parts["train"],
            ways,
            shots if train_shots is None else train_shots,
            queries if train_queries is None else train_queries,
            batch_size=train_batch_size,
            name="training episode",
        ),
        validation=evaluated(parts["validation"], name="validation episode").first(
            validation_episodes
        ),
        test=evaluated(parts["test"], name="test episode").first(test_episodes),
    )
