"""Multi-CV: whole data sets as tasks, whose classes and number of classes differ.

The benchmark is that of Flennerhag et al. 2019, appendix G, on the eight data sets of Serrà et al.,
"Overcoming catastrophic forgetting with hard attention to the task", ICML 2018. One data set is
held out, and the others are for training. Images are 32×32×3. Each data set has three parts:

    training    85 % of its `train` split, the same share of every class
    validation  the other 15 %: early stopping and the choice of learning rates
    test        its `test` split: final evaluation only

Arrays stay uint8 and keep their size; padding and normalization happen in the pipeline.
"""

import functools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from leap_tf.datasets.sources import open_dataset
from leap_tf.tasks import ArrayTask, FiniteTasks, TaskSplits

IMAGE_SIZE = 32
Examples = tuple[np.ndarray, np.ndarray]


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels in [0, 1], for each channel or for all."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


# Means and deviations of the code of Serrà et al. Those of MNIST and Fashion-MNIST are of padded
# images, those of notMNIST of images scaled to 32×32. CIFAR-100 has those of CIFAR-10.
_CIFAR = Normalization(
    (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
)
NORMALIZATIONS = {
    "facescrub": Normalization((0.5163, 0.5569, 0.4695), (0.2307, 0.2272, 0.2479)),
    "not_mnist": Normalization((0.4254,), (0.4501,)),
    "mnist": Normalization((0.1,), (0.2752,)),
    "fashion_mnist": Normalization((0.2190,), (0.3318,)),
    "cifar10": _CIFAR,
    "svhn_cropped": Normalization((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "cifar100": _CIFAR,
    "gtsrb": Normalization((0.3398, 0.3117, 0.3210), (0.2755, 0.2647, 0.2712)),
}
# All but FaceScrub, whose photographs may not be redistributed.
OBTAINABLE = tuple(name for name in NORMALIZATIONS if name != "facescrub")


def multi_cv_splits(
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    datasets: Sequence[str] = OBTAINABLE,
    held_out: str = "mnist",
    *,
    evaluate_on: str = "test",
    batch_size: int = 32,
    test_batch_size: int = 500,
    validation_share: float = 0.15,
    share: float = 1.0,
) -> TaskSplits:
    """Makes a task of each data set and holds one of them out.

    The held-out data set is the only test task. The others are the training tasks, and also the
    validation tasks, which are evaluated on their validation parts.

    Args:
        seed: decides which examples are for validation, and which are used if `share` is below 1.
        data_dir: see `open_dataset`.
        datasets: TFDS names from `NORMALIZATIONS`.
        held_out: the data set among them that is held out.
        evaluate_on: the part that `test_batches` of the held-out task returns: "test" or
            "validation". Use "validation" to choose learning rates.
        batch_size: images in a training batch.
        test_batch_size: images in a held-out batch.
        validation_share: share of the training images of each class that is for validation.
        share: share of the training images of each class that is used, for short runs. A larger
            share uses the same images and more, but divides them differently into training and
            validation. The test split is always complete.

    Returns:
        The tasks. Inputs are float32 [b, 32, 32, 3], normalized by `NORMALIZATIONS`; targets are
        class numbers, int64 [b]. Tasks also have `classes` and `validation_batches()`.

    Raises:
        MissingDataError: a data set is not on this machine.
        ValueError: a name is unknown or repeated, `held_out` is not among at least two `datasets`,
            `evaluate_on` is unknown, a share is out of range, or a class has too few images.

    Example (with two prepared data sets):

        >>> import leap_tf
        >>> splits = leap_tf.datasets.multi_cv_splits(
        ...     datasets=["mnist", "cifar10"], held_out="mnist", share=0.02
        ... )  # doctest: +SKIP
        >>> [task.name for task in splits.test]  # doctest: +SKIP
        ['mnist']
    """
    unknown = sorted({*datasets, held_out} - set(NORMALIZATIONS))
    if unknown:
        raise ValueError(f"Unknown data sets {unknown}; there are {sorted(NORMALIZATIONS)}.")
    if len(set(datasets)) < len(datasets):
        raise ValueError(f"A data set is named twice in {list(datasets)}. Name each once.")
    if held_out not in datasets or len(datasets) < 2:
        raise ValueError(
            f"held_out is {held_out!r}. It must be one of the datasets {list(datasets)}, and "
            "another must be left to train on."
        )
    if evaluate_on not in ("test", "validation"):
        raise ValueError(f"evaluate_on must be 'test' or 'validation'. Received: {evaluate_on!r}.")
    options: dict[str, Any] = {"batch_size": batch_size, "test_batch_size": test_batch_size}
    options |= {"validation_share": validation_share, "share": share}
    tasks = {name: data_set_task(name, seed, data_dir, **options) for name in datasets}
    test_task = tasks.pop(held_out)
    return TaskSplits(
        train=FiniteTasks(list(tasks.values())),
        validation=[ValidationAsTest(task) for task in tasks.values()],
        test=[test_task if evaluate_on == "test" else ValidationAsTest(test_task)],
    )


class DataSetTask(ArrayTask):
    """An `ArrayTask` with a validation part.

    `validation` has inputs and targets for early stopping and the choice of learning rates. Targets
    are below `classes`. See `ArrayTask` for the other arguments.

    Raises:
        ValueError: a part is empty, or inputs and targets differ in number.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        *,
        train: Examples,
        validation: Examples,
        test: Examples,
        **options,
    ):
        super().__init__(name, train, test, classes=classes, **options)
        # A second task, so that both held-out parts use the same pipeline.
        self._validation = ArrayTask(f"{name}, validation", train, validation, **options)

    def validation_batches(self) -> tf.data.Dataset:
        """Returns the validation examples once, in order."""
        return self._validation.test_batches()


class ValidationAsTest:
    """The task of a data set, evaluated on its validation part instead of its test split."""

    def __init__(self, task: DataSetTask):
        self.name = task.name
        self.classes = task.classes
        self.train_batches = task.train_batches
        self.validation_batches = self.test_batches = task.validation_batches


def data_set_task(
    name: str,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    *,
    validation_share: float = 0.15,
    share: float = 1.0,
    **batch_sizes: int,
) -> DataSetTask:
    """Makes a task of one data set; see `multi_cv_splits` for the arguments."""
    folder = str(data_dir) if data_dir else None
    images, labels = load_images(name, "train", folder)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    training, validation = split_by_class(labels, rng, validation_share, share)
    return DataSetTask(
        name,
        classes=open_dataset(name, folder).info.features["label"].num_classes,
        train=(images[training], labels[training]),
        validation=(images[validation], labels[validation]),
        test=load_images(name, "test", folder),
        prepare=make_normalizer(NORMALIZATIONS[name]),
        **batch_sizes,
    )


@functools.lru_cache(maxsize=2 * len(NORMALIZATIONS))
def load_images(name: str, split: str, data_dir: str | None = None) -> Examples:
    """Reads uint8 images [n, height, width, channels] and int64 labels [n], in order of files.

    The arrays are cached and shared by all callers; do not change them.
    """
    dataset = open_dataset(name, data_dir).as_dataset(
        split=split, as_supervised=True, shuffle_files=False
    )
    images, labels = zip(*dataset.batch(512).as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def split_by_class(
    labels: np.ndarray, rng: np.random.Generator, validation_share: float, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices of training and validation examples, each in a random order.

    `share` of each class is used, and `validation_share` of what is used is for validation.

    Raises:
        ValueError: a share is out of range, or a class has too few examples.
    """
    if not (0 < validation_share < 1 and 0 < share <= 1):
        raise ValueError(
            f"validation_share must lie between 0 and 1 and share in (0, 1]; they are "
            f"{validation_share} and {share}."
        )
    training, validation = [], []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        used = round(share * len(order))
        held_out = round(validation_share * used)
        if not 0 < held_out < used:
            raise ValueError(
                f"Class {label} has {len(order)} examples, of which {used} are used, {held_out} of "
                "them for validation. Training and validation need at least one each. Raise share "
                "or validation_share."
            )
        training.append(order[held_out:used])
        validation.append(order[:held_out])
    return rng.permutation(np.concatenate(training)), rng.permutation(np.concatenate(validation))


@functools.cache  # `ArrayTask` traces a pipeline for every function object
def make_normalizer(normalization: Normalization) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from uint8 [b, h, w, 1 or 3] to float32 [b, 32, 32, 3].

    It pads images with zeros, computes (pixel / 255 − mean) / deviation, and repeats a single
    channel three times. It raises ValueError for images that are larger than 32×32 or of unknown
    size.
    """

    def prepare(images):
        if any(side is None or side > IMAGE_SIZE for side in images.shape[1:3]):
            raise ValueError(
                f"Images of shape {tuple(images.shape)} do not fit into {IMAGE_SIZE}×{IMAGE_SIZE} "
                "pixels. Scale them where the data set is prepared."
            )
        padded = tf.image.resize_with_crop_or_pad(images, IMAGE_SIZE, IMAGE_SIZE)
        scaled = tf.cast(padded, tf.float32) / 255.0
        normalized = (scaled - list(normalization.mean)) / list(normalization.deviation)
        return tf.tile(normalized, [1, 1, 1, 3 // images.shape[-1]])

    return prepare
