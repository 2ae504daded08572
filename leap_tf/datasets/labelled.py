"""Labelled examples by class, from TFDS, data sets, arrays and folders."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from leap_tf.array_tasks import read_arrays
from leap_tf.datasets.tfds import open_dataset

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_PARTS = ("train", "validation", "test")  # other splits of TFDS data sets repeat parts of these


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """Labelled examples, sorted by class.

    Attributes:
        inputs: [examples, …], the examples of a class one after the other.
        sizes: int [classes], the number of examples of each class.
        names: the name of each class.
        groups: the group of each class, such as the alphabet of a character; "" without groups.
    """

    inputs: np.ndarray
    sizes: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def __repr__(self) -> str:
        shape = list(self.inputs.shape[1:])
        return f"<Classes: {len(self.names)} classes, {len(self.inputs)} examples {shape}>"

    def only(self, chosen: Sequence[bool]) -> "Classes":
        """Returns the classes where `chosen` [classes] is true."""
        mask = np.asarray(chosen, bool)
        return Classes(
            inputs=self.inputs[np.repeat(mask, self.sizes)],
            sizes=self.sizes[mask],
            names=tuple(name for name, kept in zip(self.names, mask) if kept),
            groups=tuple(group for group, kept in zip(self.groups, mask) if kept),
        )


def load_classes(
    source: Any,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    label: str = "label",
) -> Classes:
    """Reads labelled examples into memory, by class.

    Args:
        source: one of
            - the name of a TFDS data set with one image feature and a class label, such as
              "omniglot" or "cifar100". Its splits train, validation and test are put together. A
              data set with a feature "alphabet" has these as groups, and its images become
              [size, size, 1], 1 for ink and 0 for paper.
            - the path (with a separator, or a `pathlib.Path`) of a folder with a folder of images
              for every class. Where these lie in folders themselves, those are the groups.
            - a finite `tf.data.Dataset` of (input, label), batched or not.
            - arrays (inputs, labels). Labels are numbers or text.
            - `Classes`, which are returned as they are.
        data_dir: where prepared TFDS data sets are.
        image_size: height and width to which images of TFDS and of folders are resized. It is
            needed if their sizes differ.
        label: the name of the TFDS feature with the class.

    Raises:
        MissingDataError: the data set is not on this machine.
        TypeError: the source is none of these.
        ValueError: the source has no examples, no label or no single image feature, or images
            differ in size.

    Example:

        >>> import leap_tf, numpy as np
        >>> leap_tf.datasets.load_classes((np.zeros((4, 2)), ["cat", "dog", "cat", "dog"]))
        <Classes: 2 classes, 4 examples [2]>
    """
    if isinstance(source, Classes):
        return source
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.sep in source):
        return _from_folder(pathlib.Path(source).expanduser(), image_size)
    if isinstance(source, str):
        return _from_tfds(source, data_dir, image_size, label)
    if isinstance(source, tf.data.Dataset):
        inputs, labels = read_arrays("The source", source)[:2]
        return by_class(inputs, labels)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return by_class(np.asarray(source[0]), np.asarray(source[1]))
    raise TypeError(
        f"A {type(source).__name__} is no source of episodes. Pass the name of a TFDS data set, "
        "the path of a folder of images by class, a tf.data.Dataset of (input, label), or arrays "
        "(inputs, labels)."
    )


def by_class(
    inputs: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None
) -> Classes:
    """Sorts examples by class.

    Args:
        inputs: [examples, …].
        labels: [examples], numbers or text; classes are named by them.
        groups: [examples], the group of each example's class.

    Raises:
        ValueError: there are no examples, labels are not one for each of them, or a class has
            examples in several groups.
    """
    if labels.shape != inputs.shape[:1] or not len(labels):
        raise ValueError(
            f"There must be one label for each example, and at least one. Received inputs "
            f"{list(inputs.shape)} and labels {list(labels.shape)}."
        )
    found, first, numbers, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    named = [each.decode() if isinstance(each, bytes) else str(each) for each in found]
    of_class = [""] * len(found) if groups is None else [str(groups[index]) for index in first]
    if groups is not None and len(set(zip(numbers.tolist(), map(str, groups)))) > len(found):
        raise ValueError("A class has examples in several groups.")
    return Classes(
        inputs=inputs[np.argsort(numbers, kind="stable")],
        sizes=sizes,
        names=tuple(named),
        groups=tuple(of_class),
    )


def _from_tfds(name, data_dir, image_size, label) -> Classes:
    builder = open_dataset(name, data_dir)
    features = dict(builder.info.features)
    images = [key for key, each in features.items() if isinstance(each, tfds.features.Image)]
    if len(images) != 1 or not isinstance(features.get(label), tfds.features.ClassLabel):
        raise ValueError(
            f"{name} has the features {sorted(features)}. Episodes need one image and a class "
            f"label named {label!r} (argument `label`). Load other data yourself, and pass arrays."
        )
    [image] = images
    drawn = "alphabet" in features
    keys = [image, label, *(["alphabet"] if drawn else [])]

    def read(example):
        pixels, *rest = (example[key] for key in keys)
        return _resized(_ink(pixels) if drawn else pixels, image_size), *rest

    splits = "+".join(part for part in _PARTS if part in builder.info.splits)
    examples = builder.as_dataset(split=splits, shuffle_files=False)
    inputs, labels, *alphabets = _stacked(examples.map(read, num_parallel_calls=2), name)
    named = np.array(
        [features[label].int2str(number) for number in range(features[label].num_classes)]
    )
    groups = [features["alphabet"].int2str(number) for number in alphabets[0]] if drawn else None
    # Files may have another order elsewhere: examples are sorted by their pixels.
    order = sorted(range(len(inputs)), key=lambda index: inputs[index].tobytes())
    return by_class(
        inputs[order], named[labels[order]], groups and [groups[index] for index in order]
    )


def _from_folder(folder, image_size) -> Classes:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    files = [path for path in files if path.parent != folder]
    if not files:
        raise ValueError(
            f"{folder} has no folders with images ({', '.join(_IMAGES)}), one folder for a class."
        )
    names = [path.parent.relative_to(folder).as_posix() for path in files]
    groups = [path.parent.parent.relative_to(folder).as_posix() for path in files]

    def read(path):
        pixels = tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
        return (_resized(tf.ensure_shape(pixels, [None, None, None]), image_size),)

    paths = tf.data.Dataset.from_tensor_slices([str(path) for path in files])
    (inputs,) = _stacked(paths.map(read, num_parallel_calls=2), folder)
    return by_class(inputs, np.array(names), None if set(groups) == {"."} else groups)


def _stacked(examples, source):
    try:
        batches = list(examples.batch(512).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        if "batch" not in str(error):
            raise
        raise ValueError(
            f"The images of {source} differ in size or channels. Give an image_size."
        ) from error
    return [np.concatenate(parts) for parts in zip(*batches)]


def _ink(pixels):
    return 255 - pixels[..., :1]


def _resized(pixels, size):
    """The uint8 image with this height and width; as it is without a size."""
    if size is None:
        return pixels
    found = tf.image.resize(tf.cast(pixels, tf.float32), (size, size), method="area")
    return tf.cast(tf.round(found), tf.uint8)
