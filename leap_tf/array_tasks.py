"""Tasks whose examples are arrays in memory, and their input pipelines."""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from leap_tf.errors import whole_number


class ArrayTask:
    """A task whose training and held-out examples are arrays in memory.

    The input pipeline is traced once for all tasks with the same shapes, dtypes and options; a
    new iterator traces nothing.

    Args:
        name: the name of the task in messages and tables.
        train: (inputs, targets) or (inputs, targets, sample_weight) to train on: arrays with the
            examples along the first dimension. A dictionary or tuple of arrays stands for the
            inputs of a model that has several.
        test: the same, held out.
        query: the same, for the query batches of learners such as MAML. Each query batch has all of
            these examples. By default, the training batches after those of the steps are used.
        batch_size: examples in a training batch. Batches continue across epochs, so all have
            this size, and each example occurs once an epoch.
        classes: number of classes of a task whose targets are labels. A model's output layer that
            is among the `task_layers` gets as many units.
        test_batch_size: examples in a held-out batch.
        prepare: from a batch of inputs to inputs of the model, for example uint8 pixels to
            floats in [0, 1]. It runs in the pipeline. Pass the same function object to all tasks:
            each function is traced separately.

    Raises:
        TypeError: a number is not a whole number, or `train` or `test` is not a tuple of arrays.
        ValueError: a number is below 1, there are no examples, targets are text, or inputs,
            targets and weights differ in number.

    Example:

        >>> import leap_tf, numpy as np
        >>> inputs, targets = np.zeros((8, 2), "float32"), np.arange(8)
        >>> task = leap_tf.ArrayTask("zeros", (inputs, targets), (inputs, targets), batch_size=4)
        >>> next(iter(task.train_batches(seed=0)))[0].shape
        TensorShape([4, 2])
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Any],
        test: Sequence[Any],
        batch_size: int = 20,
        *,
        classes: int | None = None,
        test_batch_size: int = 100,
        prepare: Callable[[Any], Any] | None = None,
        query: Sequence[Any] | None = None,
    ):
        self.name = str(name)
        self.train = _examples(f"Task {name!r}: train", train)
        self.test = _examples(f"Task {name!r}: test", test)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.classes = None if classes is None else whole_number("classes", classes, 1)
        self.test_batch_size = whole_number("test_batch_size", test_batch_size, 1)
        self.prepare = prepare or _unchanged
        if query is not None:
            self.query = _examples(f"Task {name!r}: query", query)
            self.query_batches = self._query_batches  # trainers look whether a task has this method

    def __repr__(self) -> str:
        examples = f"{len(self.train[1])} training and {len(self.test[1])} held-out examples"
        return f"<{type(self).__name__} {self.name!r}: {examples}, batch_size={self.batch_size}>"

    @classmethod
    def from_dataset(
        cls,
        name: str,
        train: tf.data.Dataset,
        test: tf.data.Dataset,
        *,
        batched: bool | None = None,
        **options,
    ) -> "ArrayTask":
        """Reads a task from data sets of (inputs, targets) or (inputs, targets, sample_weight).

        Args:
            name: the name of the task.
            train, test: finite data sets that fit into memory.
            batched: whether their elements are batches. By default the shapes tell.
            **options: see `ArrayTask`, such as `batch_size`.

        Raises:
            ValueError: a data set is endless, or its shapes do not tell whether it is batched.

        Example:

            >>> examples = tf.data.Dataset.from_tensor_slices((np.zeros((8, 2)), np.arange(8)))
            >>> task = ArrayTask.from_dataset("zeros", examples.batch(3), examples, batch_size=4)
            >>> task.train[0].shape, task.test[1].shape
            ((8, 2), (8,))
        """
        parts = [
            read_arrays(f"Task {name!r}: {part}", dataset, batched)
            for part, dataset in (("train", train), ("test", test))
        ]
        return cls(name, *parts, **options)

    @classmethod
    def from_dataframe(
        cls,
        name: str,
        train: Any,
        test: Any = None,
        *,
        target: str,
        features: Sequence[str] | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        **options,
    ) -> "ArrayTask":
        """Makes a task of a pandas data frame.

        Args:
            name: the name of the task.
            train: the data frame to train on.
            test: the held-out data frame. By default, rows of `train` that are drawn at random.
                Cut a series by time instead, else the rows to train on surround the held-out ones.
            target: the column to predict. Floats become float32 [n, 1], integers and booleans
                int64 [n] labels.
            features: the columns to predict from, which become float32 [n, features]; by default
                all others.
            test_share: the share of rows that is held out, if there is no `test`.
            seed: seed of the random choice of held-out rows.
            **options: see `ArrayTask`, such as `batch_size` and `classes`.

        Raises:
            ValueError: a column is missing or not of numbers, no row is left for a part, or
                `test_share` is not in (0, 1).

        Example:

            >>> import pandas
            >>> rows = pandas.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "label": [0, 0, 1, 1]})
            >>> task = ArrayTask.from_dataframe("rows", rows, target="label", test_share=0.25)
            >>> task.train[0].shape, task.test[1].shape
            ((3, 1), (1,))
        """
        others = [each for each in train.columns if each != target]
        chosen = others if features is None else list(features)
        if test is None:
            if not 0.0 < test_share < 1.0:
                raise ValueError(f"Task {name!r}: test_share must be in (0, 1), not {test_share}.")
            order = np.random.default_rng(seed).permutation(len(train))
            held_out = round(test_share * len(train))
            train, test = train.iloc[order[held_out:]], train.iloc[order[:held_out]]
        parts = [_columns(f"Task {name!r}", frame, chosen, target) for frame in (train, test)]
        return cls(name, *parts, **options)

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns endless batches, in a new order every epoch."""
        pipeline = _training_pipeline(self.batch_size, self.prepare, spec_of(self._train_tensors))
        # A NumPy number, since TensorFlow keeps a tensor for every Python number it receives.
        return pipeline(self._train_tensors, tf.constant(np.int64(seed)))

    def few_batches(self, seed: int, batches: int) -> "OrderedBatches | None":
        """Returns the first training batches if no pipeline is needed to make them, else None."""
        if self.prepare is not _unchanged or batches * self.batch_size > 2**16:
            return None
        # NumPy numbers, since TensorFlow keeps a tensor for every Python number it receives.
        sizes = np.array([batches, self.batch_size], np.int32)
        return ordered_batches(self._train_tensors, *sizes, seed=np.int64(seed))

    def test_batches(self) -> tf.data.Dataset:
        """Returns the held-out examples once, in order."""
        return batches_in_order(self._test_tensors, self.test_batch_size, self.prepare)

    def _query_batches(self, seed: int) -> tf.data.Dataset:
        """Returns all query examples again and again, each time as one batch."""
        inputs, *rest = tf.nest.map_structure(tf.convert_to_tensor, self.query)
        return batches_in_order((self.prepare(inputs), *rest), endless=True)

    def get_config(self) -> dict[str, Any]:
        """Returns sizes, dtypes and CRC-32s of the arrays, and the sizes of batches."""
        return {
            "classes": self.classes,
            "batch_size": self.batch_size,
            "test_batch_size": self.test_batch_size,
            "prepare": getattr(self.prepare, "__qualname__", type(self.prepare).__name__),
            "train": self._described[0],
            "test": self._described[1],
            **({"query": describe_arrays(self.query)} if hasattr(self, "query") else {}),
        }

    @functools.cached_property
    def _described(self):
        return describe_arrays(self.train), describe_arrays(self.test)

    @functools.cached_property
    def label_ranges(self) -> list[tuple[int, int]]:
        """The least and the largest target to train on, and the same of the held-out ones."""
        targets = [np.asarray(examples[1]) for examples in (self.train, self.test)]
        return [(labels.min(), labels.max()) for labels in targets]

    @functools.cached_property
    def _train_tensors(self):
        return tf.nest.map_structure(tf.convert_to_tensor, self.train)

    @functools.cached_property
    def _test_tensors(self):
        return tf.nest.map_structure(tf.convert_to_tensor, self.test)


def pixels_to_floats(pixels: tf.Tensor) -> tf.Tensor:
    """Scales uint8 pixels to float32 in [0, 1]."""
    # TensorFlow replaces an ordinary division by a constant in some graphs only. This division
    # gives the same bits in pipelines and in served models.
    return tf.math.divide_no_nan(tf.cast(pixels, tf.float32), 255.0)


class OrderedBatches(NamedTuple):
    """Training batches as tensors, each of which is gathered when its step comes."""

    examples: tuple[Any, ...]  # tensors [n, …] or nests of them
    order: tf.Tensor  # [batches, batch_size] int32, the examples of each batch

    @property
    def element_spec(self) -> tuple[Any, ...]:
        return tf.nest.map_structure(
            lambda each: tf.TensorSpec([self.order.shape[1], *each.shape[1:]], each.dtype),
            self.examples,
        )

    def at(self, step: tf.Tensor | int) -> tuple[Any, ...]:
        """Returns the batch of a step, counted from 0."""
        return tf.nest.map_structure(lambda each: tf.gather(each, self.order[step]), self.examples)


def ordered_batches(
    examples: tuple[Any, ...], batches: Any, batch_size: Any, *, seed: Any
) -> OrderedBatches:
    """Returns the first batches of an `ArrayTask`: shuffled epochs, one after the other.

    Args:
        examples: (inputs, targets) or (inputs, targets, weights), tensors [n, …] or nests of them.
        batches: number of batches, int32.
        batch_size: examples in a batch, int32; may be larger than n.
        seed: int64, decides the order.
    """
    count = tf.shape(tf.nest.flatten(examples)[0])[0]
    return OrderedBatches(examples, _order(count, batches, batch_size, seed))


def describe_arrays(arrays: Any) -> str:
    """Returns dtype, shape and CRC-32 of each array of a nest, the same in every process."""
    described = []
    for array in map(np.asarray, tf.nest.flatten(arrays)):
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        described.append(f"{array.dtype} {list(array.shape)} CRC {zlib.crc32(content):08x}")
    return ", ".join(described)


def as_arrays(value):
    """Returns a nest with every array-like value as an array. Tensors stay tensors."""
    if isinstance(value, Mapping):
        return {name: as_arrays(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)) and all(getattr(each, "shape", ()) for each in value):
        return tuple(as_arrays(each) for each in value)
    if isinstance(value, np.ndarray) and value.dtype == object:  # as data frames of mixed columns
        numbers = np.asarray(value.tolist())
        return numbers if numbers.dtype.kind in "biuf" else value
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        return value
    return np.asarray(value) if hasattr(value, "shape") else tf.convert_to_tensor(value).numpy()


def _examples(what, given):
    """Returns (inputs, targets) or (inputs, targets, weights) as arrays, and checks them."""
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise TypeError(
            f"{what} must be (inputs, targets) or (inputs, targets, sample_weight), and is a "
            f"{type(given).__name__}. For a tf.data.Dataset or a data frame there are "
            "ArrayTask.from_dataset and ArrayTask.from_dataframe."
        )
    examples = tuple(as_arrays(each) for each in given)
    counts = [
        {int(array.shape[0]) if array.shape else 0 for array in tf.nest.flatten(part)}
        for part in examples
    ]
    if len(set.union(*counts)) != 1 or counts[0] == {0}:
        numbers = (" or ".join(map(str, sorted(count))) for count in counts)
        parts = zip(numbers, ("inputs", "targets", "weights"))
        raise ValueError(
            f"{what} has {' and '.join(f'{number} {part}' for number, part in parts)}. There must "
            "be a target for each input, and at least one."
        )
    check_no_text(what, [array.dtype for array in tf.nest.flatten(examples[1])])
    return examples


def check_no_text(what: str, dtypes: Sequence[Any]) -> None:
    """Checks that no dtype of targets is that of text; raises ValueError."""
    if any(tf.as_dtype(dtype) == tf.string for dtype in dtypes):
        raise ValueError(
            f"{what} has targets that are text. Number the classes, for example by "
            "numpy.unique(labels, return_inverse=True)[1]."
        )


def read_arrays(what: str, dataset: tf.data.Dataset, batched: bool | None = None) -> Any:
    """Returns the examples of a finite data set as arrays; see `ArrayTask.from_dataset`."""
    if not isinstance(dataset.element_spec, tuple):
        raise ValueError(
            f"{what} has elements {dataset.element_spec}. They must be (inputs, targets), such as "
            "those of tfds.load(…, as_supervised=True)."
        )
    shapes = [spec.shape for spec in tf.nest.flatten(dataset.element_spec)]
    if batched is None:
        if any(shape.rank == 0 for shape in shapes):
            batched = False
        elif any(shape.rank and shape[0] is None for shape in shapes):
            batched = True
        else:
            raise ValueError(f"{what} has elements {shapes}. Say whether they are batched=True.")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{what} never ends. Leave out .repeat(), or take some of it by .take(n).")
    dataset = dataset.unbatch() if batched else dataset
    read = list(dataset.batch(1024).as_numpy_iterator())
    if not read:
        raise ValueError(f"{what} has no examples.")
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *read)


def _columns(what, frame, features, target):
    """Returns inputs and targets from the columns of a data frame."""
    missing = [name for name in [*features, target] if name not in frame.columns]
    if missing:
        raise ValueError(f"{what}: there are no columns {missing} in {list(frame.columns)}.")
    arrays = {name: np.asarray(frame[name]) for name in [*features, target]}
    if empty := [name for name in arrays if frame[name].isna().to_numpy().any()]:
        raise ValueError(f"{what}: the columns {empty} have missing values. Fill or drop them.")
    other = [name for name, array in arrays.items() if array.dtype.kind not in "biuf"]
    if other:
        raise ValueError(
            f"{what}: the columns {other} are not numbers. Encode them, for example by "
            "pandas.get_dummies (features) or pandas.factorize (target), or leave them out."
        )
    inputs = np.stack([arrays[name].astype(np.float32) for name in features], axis=-1)
    targets = arrays[target]
    is_float = targets.dtype.kind == "f"
    return inputs, targets.astype(np.float32)[:, None] if is_float else targets.astype(np.int64)


def _unchanged(inputs):
    return tf.nest.map_structure(tf.identity, inputs)


def spec_of(examples) -> tf.data.DatasetSpec:
    """Returns a hashable spec of the arrays, with any number of examples."""
    specs = [
        tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in tf.nest.flatten(examples)
    ]
    return tf.data.DatasetSpec(tf.nest.pack_sequence_as(examples, specs))


# TensorFlow warns of a function that is traced again and again, and takes functions of the same
# code for one. A partial counts by itself.
@functools.lru_cache
def _training_pipeline(batch_size, prepare, spec):
    def pipeline(examples, seed):
        count = tf.shape(tf.nest.flatten(examples)[0])[0]
        batches = tf.data.Dataset.counter().map(lambda epoch: _order_of_epoch(count, seed, epoch))
        batches = batches.rebatch(batch_size)
        batches = batches.map(lambda indices: tf.ensure_shape(indices, [batch_size]))
        batches = batches.map(_gather(examples, prepare))
        return batches.prefetch(2).with_options(one_thread_options())

    signature = [spec.element_spec, tf.TensorSpec((), tf.int64)]
    return tf.function(functools.partial(pipeline), input_signature=signature)


def _gather(examples, prepare):
    def gather(indices):
        inputs, *rest = tf.nest.map_structure(lambda array: tf.gather(array, indices), examples)
        return prepare(inputs), *rest

    return gather


def batches_in_order(examples, batch_size=None, prepare=None, *, endless=False) -> tf.data.Dataset:
    """Returns examples in their order, by default as one batch; once or again and again."""
    batch_size = batch_size or len(tf.nest.flatten(examples)[0])
    return _plain_pipeline(batch_size, prepare or _unchanged, endless, spec_of(examples))(examples)


@functools.lru_cache
def _plain_pipeline(batch_size, prepare, endless, spec):
    def pipeline(examples):
        batches = tf.data.Dataset.from_tensor_slices(examples).batch(batch_size, endless)
        if prepare is not _unchanged:  # a function in a pipeline takes milliseconds to start
            batches = batches.map(lambda inputs, *rest: (prepare(inputs), *rest)).prefetch(2)
        return batches.repeat(None if endless else 1).with_options(one_thread_options())

    return tf.function(functools.partial(pipeline), input_signature=[spec.element_spec])


def _order_of_epoch(examples, seed, epoch):
    order = tf.range(examples)
    return tf.random.experimental.stateless_shuffle(order, seed=tf.stack([seed, epoch]))


@tf.function(input_signature=[tf.TensorSpec((), tf.int32)] * 3 + [tf.TensorSpec((), tf.int64)])
def _order(examples, batches, batch_size, seed):
    """Returns the examples of each batch, [batches, batch_size] int32."""
    needed = batches * batch_size
    orders = tf.map_fn(
        lambda epoch: _order_of_epoch(examples, seed, epoch),
        tf.range(tf.cast((needed + examples - 1) // examples, tf.int64)),
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )
    return tf.reshape(tf.reshape(orders, [-1])[:needed], [batches, batch_size])


def one_thread_options() -> tf.data.Options:
    """Returns options for one thread per pipeline, since many tasks run in parallel."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False
    return options
