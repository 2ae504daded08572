"""How the images of the Multi-CV data sets are brought to one size and one scale.

The means and deviations are those of the code of Serrà et al., "Overcoming catastrophic forgetting
with hard attention to the task" (ICML 2018), as appendix G of Flennerhag et al. (2019) has it.
Those of MNIST and Fashion-MNIST are of padded images, those of notMNIST of images that were
scaled to 32×32. CIFAR-100 has those of CIFAR-10.

Whole data sets as tasks: which classes there are, and how many, differs between them.

The Multi-CV benchmark of Flennerhag et al. (2019), appendix G, on the eight data sets of Serrà et
al. (2018): one data set is held out, the others are trained on. Images are 32×32×3. Each data set
has three parts, and each part one role:

    training    85 % of its `train` split, the same share of every class
    validation  the other 15 %: early stopping on a task and of meta-training, choosing rates
    test        its `test` split: the final judgement and nothing else

Arrays stay uint8 and in their own size; padding and normalising happen in the pipeline.

    load_images      TFDS → images and labels of a split
    data_set_task    one data set → DataSetTask
    multi_cv_splits  all of it → training, validation and test tasks
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from leap_tf.datasets.tfds import open_dataset
from leap_tf.tasks import ArrayTask, FiniteTasks, TaskSplits

IMAGE_SIZE = 32


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels in [0, 1], for each channel or for all."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


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


@functools.cache
def normalize(normalization: Normalization) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function, always the same one, that prepares a data set's images.

    It maps uint8 [b, h, w, 1 or 3], h and w at most 32, to float32 [b, 32, 32, 3]: zeros all
    around if the image is smaller, then (pixel / 255 − mean) / deviation, then grey repeated for
    all channels. Larger images, or such of unknown size, are a ValueError.
    """

    def prepare(images):
        if any(side is None or side > IMAGE_SIZE for side in images.shape[1:3]):
            raise ValueError(
                f"Images of shape {tuple(images.shape)} do not fit into {IMAGE_SIZE}×{IMAGE_SIZE} "
                "pixels, and nothing is cut off. Scale them where the data set is prepared."
            )
        padded = tf.image.resize_with_crop_or_pad(images, IMAGE_SIZE, IMAGE_SIZE)
        scaled = tf.cast(padded, tf.float32) / 255.0
        normalized = (scaled - list(normalization.mean)) / list(normalization.deviation)
        return tf.tile(normalized, [1, 1, 1, 3 // images.shape[-1]])

    return prepare


# All but FaceScrub, whose photographs nobody may pass on.
OBTAINABLE = tuple(name for name in NORMALIZATIONS if name != "facescrub")

Examples = tuple[np.ndarray, np.ndarray]


class DataSetTask(ArrayTask):
    """A data set to learn, with a validation part beside the held-out one.

    Args:
        name: the data set.
        classes: how many there are. Targets are below.
        train: inputs and targets to train on.
        validation: inputs and targets for early stopping and for choosing rates.
        test: inputs and targets for the final judgement.
        **options: see `ArrayTask`.

    Raises:
        ValueError: a part is empty, or inputs and targets differ in number.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        train: Examples,
        validation: Examples,
        test: Examples,
        **options,
    ):
        super().__init__(name, train, test, **options)
        self.classes = classes
        # A task of its own, so that both held-out parts go through the same pipeline.
        self._validation = ArrayTask(f"{name}, validation", train, validation, **options)

    def validation_batches(self) -> tf.data.Dataset:
        """Returns the validation examples once, in order. None is in another part."""
        return self._validation.test_batches()


@dataclasses.dataclass(frozen=True)
class JudgedByValidation:
    """A data set's task whose held-out examples are its validation part, not its test split."""

    task: DataSetTask

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def classes(self) -> int:
        return self.task.classes

    def train_batches(self, seed: int) -> tf.data.Dataset:
        return self.task.train_batches(seed)

    def validation_batches(self) -> tf.data.Dataset:
        return self.task.validation_batches()

    def test_batches(self) -> tf.data.Dataset:
        """Returns the validation examples."""
        return self.task.validation_batches()


def multi_cv_splits(
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    datasets: Sequence[str] = OBTAINABLE,
    held_out: str = "mnist",
    evaluate_on: str = "test",
    batch_size: int = 32,
    test_batch_size: int = 500,
    validation_share: float = 0.15,
    share: float = 1.0,
) -> TaskSplits:
    """Holds one data set out and makes a task of each.

    Training and validation tasks are the same data sets: what differs is the examples they are
    judged by. The held-out data set is the only test task.

    Args:
        seed: decides which examples are for validation, and which share is taken.
        data_dir: see `open_dataset`.
        datasets: TFDS names, of those in `NORMALIZATIONS`.
        held_out: the one of them that is not pretrained on.
        evaluate_on: what `test_batches` of the held-out task gives: its "test" split, or its
            "validation" part, which is what learning rates are to be chosen by.
        batch_size: images in a training batch.
        test_batch_size: images in a held-out batch.
        validation_share: of each class's training images, how many are for validation.
        share: how much of each class's training images is taken at all, for small budgets. A
            larger share contains the smaller ones. The test split is always whole.

    Returns:
        The three sets of tasks. Inputs are float32 [b, 32, 32, 3], normalised by `NORMALIZATIONS`;
        targets are class numbers, int64. Tasks have `classes`, and `validation_batches()` beside
        `test_batches()`.

    Raises:
        MissingDataError: a data set is not on this machine.
        ValueError: an argument makes no sense, or a class has too few images for it.
    """
    unknown = sorted({*datasets, held_out} - set(NORMALIZATIONS))
    if unknown:
        raise ValueError(f"Unknown data sets {unknown}; there are {sorted(NORMALIZATIONS)}.")
    if len(set(datasets)) < len(datasets):
        raise ValueError(f"A data set is named twice in {list(datasets)}.")
    if held_out not in datasets or len(datasets) < 2:
        raise ValueError(
            f"held_out is {held_out!r}. It must be one of the datasets, {list(datasets)}, and "
            "another must be left to train on."
        )
    if evaluate_on not in ("test", "validation"):
        raise ValueError(f"evaluate_on is 'test' or 'validation', and is {evaluate_on!r}.")
    tasks = {
        name: data_set_task(
            name, seed, data_dir, batch_size, test_batch_size, validation_share, share
        )
        for name in datasets
    }
    judged = tasks.pop(held_out)
    return TaskSplits(
        train=FiniteTasks(list(tasks.values())),
        validation=[JudgedByValidation(task) for task in tasks.values()],
        test=[judged if evaluate_on == "test" else JudgedByValidation(judged)],
    )


def data_set_task(
    name: str,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    batch_size: int = 32,
    test_batch_size: int = 500,
    validation_share: float = 0.15,
    share: float = 1.0,
) -> DataSetTask:
    """Makes a task of one data set. Arguments as for `multi_cv_splits`."""
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
        batch_size=batch_size,
        test_batch_size=test_batch_size,
        prepare=normalize(NORMALIZATIONS[name]),
    )


@functools.lru_cache(maxsize=2 * len(NORMALIZATIONS))
def load_images(name: str, split: str, data_dir: str | None = None) -> Examples:
    """Reads a split into memory, in the order of its files.

    Returns:
        uint8 [n, height, width, channels] images and int64 [n] labels.
    """
    dataset = open_dataset(name, data_dir).as_dataset(
        split=split, as_supervised=True, shuffle_files=False
    )
    images, labels = zip(*dataset.batch(512).as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def split_by_class(
    labels: np.ndarray, rng: np.random.Generator, validation_share: float, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Divides examples in two, each class in the same proportion.

    Args:
        labels: int [n].
        rng: decides which, and the order.
        validation_share: how much of what is taken goes to the second part, above 0 and below 1.
        share: how much of each class is taken, above 0 and at most 1.

    Returns:
        Indices of the first and of the second part, each in a random order.

    Raises:
        ValueError: a share is out of range, or so small that a part has none of a class.
    """
    if not (0 < validation_share < 1 and 0 < share <= 1):
        raise ValueError(
            f"validation_share must lie between 0 and 1 and share in (0, 1]; they are "
            f"{validation_share} and {share}."
        )
    first, second = [], []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        taken = round(share * len(order))
        held_out = round(validation_share * taken)
        if not 0 < held_out < taken:
            raise ValueError(
                f"Class {label} has {len(order)} examples. Of them {taken} are taken, {held_out} "
                "for validation, and some are needed for both. Raise share or validation_share."
            )
        first.append(order[held_out:taken])
        second.append(order[:held_out])
    return rng.permutation(np.concatenate(first)), rng.permutation(np.concatenate(second))
