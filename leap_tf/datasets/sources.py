"""Prepared TFDS data sets, and labelled examples by class from any source."""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from leap_tf.array_tasks import read_arrays
from leap_tf.errors import LeapError, whole_number

_BUILDERS = "leap_tf.datasets.builders"  # of the data sets that TFDS does not have
_BUILT = ("facescrub", "gtsrb", "not_mnist", "unicode_alphabets")
_CLASS_NAMES = ("pythonClassName", "python_class_name")  # of features, in their descriptions
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_NAME = r"\w+(/[\w.-]+)?(:[\d.*]+)?"  # of a data set, its configuration and its version
ClassChoice = int | Sequence[str]
_PARTS = ("train", "validation", "test")  # other splits of TFDS data sets repeat parts of these


class MissingDataError(LeapError, FileNotFoundError):
    """A data set is not prepared on this machine."""


def open_dataset(name: str, data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """Opens a data set that is prepared on this machine, without any download.

    `unicode_alphabets` is drawn at first use, which takes about a minute.

    Args:
        name: the TFDS name.
        data_dir: the folder to search. By default `TFDS_DATA_DIR` of the environment, then
            `~/tensorflow_datasets`.

    Returns:
        A builder whose data can be read.

    Raises:
        MissingDataError: the data set is in none of the folders. The message says how to get it.
        ValueError: TFDS knows no data set of this name, its description is damaged, or its
            description names code from outside TFDS.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            f"{name!r} is no name of a data set such as 'omniglot' or 'mnist:3.0.1'. Community "
            "collections ('namespace:name') are code from the network and are not opened."
        )
    places = [data_dir] if data_dir else [os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    folders = [pathlib.Path(place).expanduser() for place in places if place]
    for folder in folders:
        _check_no_foreign_code(folder / re.split("[/:]", name)[0])
    if name in _BUILT:
        importlib.import_module(_BUILDERS)  # registers the builder with TFDS
    for folder in folders:
        builder = _builder(name, folder)
        if (pathlib.Path(builder.data_path) / "dataset_info.json").exists():
            if not builder.info.splits:
                raise _damaged(name, folder)
            return builder
    if name == "unicode_alphabets":
        return _draw(name, folders)
    load = f"tfds.load('{name}', data_dir='{folders[0]}')"
    local = f", {_BUILDERS}" if name in _BUILT else ""
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    raise MissingDataError(
        f"The data set {name!r} is not prepared in {' or '.join(map(str, folders))}. Either "
        f'download it once, with `python -c "import tensorflow_datasets as tfds{local}; {load}"` '
        "on a machine that has a network, or point --data_dir (or TFDS_DATA_DIR) at a folder that "
        "contains it. `unicode_alphabets` needs neither."
        + (f" First fill {folders[0]}/downloads/manual. {manual}" if manual else "")
    )


def _check_no_foreign_code(folder):
    """Checks that a description names modules of TFDS only: TFDS imports every module it names."""
    for path in folder.rglob("features.json"):
        names: list = []

        def collect(entry, names=names):
            names.extend(entry[key] for key in _CLASS_NAMES if key in entry)
            return entry

        try:
            json.loads(path.read_text(), object_hook=collect)
        except (ValueError, RecursionError) as error:
            message = f"{path} is damaged. Prepare the data set again with tfds.load."
            raise ValueError(message) from error
        for name in names:
            if not str(name).startswith("tensorflow_datasets."):
                raise ValueError(
                    f"{path} names {name!r}, which is code from outside TFDS, and opening the data "
                    "set would run it. Prepare the data set again with tfds.load."
                )


def _builder(name, folder):
    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TensorFlow Datasets knows no data set named {name!r}. The path of a folder needs a "
            f"separator: './{name}'."
        ) from error
    except (json_format.Error, TypeError) as error:  # TFDS does not check types in descriptions
        raise _damaged(name, folder) from error


def _damaged(name, folder):
    return ValueError(
        f"The description of {name!r} in {folder} is damaged or has no splits. Prepare the data "
        "set again with tfds.load."
    )


def _draw(name, folders):
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if os.access(existing, os.W_OK):
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            with contextlib.suppress(FileExistsError):  # another process was faster
                _builder(name, folder).download_and_prepare(download_config=config)
            return _builder(name, folder)
    raise MissingDataError(
        f"{name!r} has to be drawn first, but {' and '.join(map(str, folders))} is not writable. "
        "Pass a writable --data_dir."
    )


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
    batched: bool | None = None,
) -> Classes:
    """Reads labelled examples into memory, by class.

    Args:
        source: one of
            - the name of a TFDS data set with one image feature and a class label, such as
              "omniglot" or "cifar100". Its splits train, validation and test are put together. A
              data set with a feature "alphabet" has these as groups, and its images become
              uint8 [size, size, 1], 255 for ink and 0 for paper.
            - the path (with a separator, or a `pathlib.Path`) of a folder with a folder of images
              for every class, as in cats/1.png; or with two levels of folders, groups and their
              classes, as in greek/alpha/1.png. Hidden files and folders are left out.
            - a finite `tf.data.Dataset` of (input, label).
            - arrays (inputs, labels). Labels are numbers or text.
            - `Classes`, which are returned as they are.
        data_dir: where prepared TFDS data sets are.
        image_size: height and width to which images of TFDS and of folders are resized. It is
            needed if their sizes differ.
        label: the name of the TFDS feature with the class.
        batched: whether the elements of a `tf.data.Dataset` are batches. By default the shapes
            tell.

    Raises:
        MissingDataError: the data set is not on this machine.
        TypeError: the source is none of these.
        ValueError: the source has no examples, no label or no single image feature, or images
            cannot be read or differ in size.

    Example:

        >>> import leap_tf, numpy as np
        >>> leap_tf.datasets.load_classes((np.zeros((4, 2)), ["cat", "dog", "cat", "dog"]))
        <Classes: 2 classes, 4 examples [2]>
    """
    if isinstance(source, Classes):
        return source
    if isinstance(source, (str, os.PathLike)):
        folder = pathlib.Path(source).expanduser()
        found = os.sep in str(source) and folder.is_dir()
        if isinstance(source, str) and re.fullmatch(_NAME, source) and not found:
            return _from_tfds(source, data_dir, image_size, label)
        return _from_folder(folder, image_size)
    if isinstance(source, tf.data.Dataset):
        inputs, labels = read_arrays("The source", source, batched)[:2]
        return by_class(inputs, labels)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return by_class(np.asarray(source[0]), np.asarray(source[1]))
    raise TypeError(
        f"A {type(source).__name__} is no source of episodes. Pass the name of a TFDS data set, "
        "the path of a folder of images by class, a tf.data.Dataset of (input, label), or arrays "
        "(inputs, labels)."
    )


def split_classes(
    classes: Classes,
    validation: ClassChoice,
    test: ClassChoice,
    seed: int = 0,
    *,
    by_group: bool = False,
) -> dict[str, Classes]:
    """Splits classes into the parts "train", "validation" and "test".

    `validation` and `test` are numbers of classes, or names. Numbers are drawn by the seed, first
    for "test". The part "train" has the rest. With `by_group`, whole groups are split, which the
    numbers and names then stand for.

    Raises:
        TypeError: a number is not a whole number.
        ValueError: a name is unknown or given twice, or there are too few classes.
    """
    if by_group:
        check_groups(classes)
    keys = classes.groups if by_group else classes.names
    known = sorted(set(keys))
    choices = {"test": test, "validation": validation}
    chosen = {part: _choice(f"{part}_classes", each) for part, each in choices.items()}
    given = [name for choice in chosen.values() if not isinstance(choice, int) for name in choice]
    if unknown := set(given) - set(known):
        raise ValueError(
            f"There is no class {min(unknown)!r}. There are {len(known)}: {', '.join(known[:5])}, …"
        )
    if twice := {name for name in given if given.count(name) > 1}:
        raise ValueError(f"The class {min(twice)!r} is given twice.")
    rest = [name for name in known if name not in set(given)]
    rest = [rest[index] for index in np.random.default_rng([seed, 0]).permutation(len(rest))]
    parts = {}
    for part, choice in chosen.items():
        count = choice if isinstance(choice, int) else 0
        if count > len(rest):
            raise ValueError(f"{count} classes cannot be the part {part!r}: {len(rest)} are left.")
        drawn, rest = rest[:count], rest[count:]
        parts[part] = frozenset(drawn if isinstance(choice, int) else choice)
    parts["train"] = frozenset(rest)
    return {part: classes.only([key in names for key in keys]) for part, names in parts.items()}


def _choice(name: str, choice: Any) -> Any:
    """Returns a number of classes, or their names as text."""
    if isinstance(choice, str):
        raise ValueError(f"{name} must be a number or a list of names. Received: {choice!r}.")
    return [str(each) for each in choice] if np.iterable(choice) else whole_number(name, choice, 0)


def check_groups(classes: Classes) -> None:
    """Raises ValueError if classes have no groups."""
    if set(classes.groups) == {""}:
        raise ValueError(
            "within_groups needs classes in groups, as from a folder with two levels of folders or "
            "a TFDS data set with alphabets, and these classes have none."
        )


def by_class(
    inputs: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None
) -> Classes:
    """Sorts examples by class.

    `inputs` are [examples, …]. `labels` are [examples], numbers or text, and name the classes.
    `groups` are [examples], the group of each example's class.

    Raises:
        ValueError: there are no examples, labels are not one for each of them, one is missing, or a
            class has examples in several groups.
    """
    if labels.shape != inputs.shape[:1] or not len(labels):
        raise ValueError(
            f"There must be one label for each example, and at least one. Received inputs "
            f"{list(inputs.shape)} and labels {list(labels.shape)}."
        )
    if labels.dtype.kind in "fO" and any(each is None or each != each for each in labels):
        raise ValueError("Some labels are missing, None or NaN. Leave their examples out.")
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
        return _resized(255 - pixels[..., :1] if drawn else pixels, image_size), *rest

    splits = "+".join(part for part in _PARTS if part in builder.info.splits)
    examples = builder.as_dataset(split=splits, shuffle_files=False)
    inputs, labels, *alphabets = _stacked(examples.map(read, num_parallel_calls=2), name)
    named = np.array(features[label].names)
    groups = [features["alphabet"].int2str(number) for number in alphabets[0]] if drawn else None
    # Files may have another order elsewhere: examples are sorted by their pixels.
    order = sorted(range(len(inputs)), key=lambda index: inputs[index].tobytes())
    return by_class(
        inputs[order], named[labels[order]], groups and [groups[index] for index in order]
    )


def _from_folder(folder, image_size) -> Classes:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _IMAGES and path.parent != folder
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise ValueError(
            f"{folder} has no folders with images ({', '.join(_IMAGES)}), one folder for a class."
        )
    present = {path.relative_to(folder).parts[0] for path in files}
    folders = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    if lost := sorted(folders - present):
        raise ValueError(
            f"{folder} has folders without images ({', '.join(_IMAGES)}): {lost}. Remove them, or "
            "convert their files. Links are not followed."
        )
    names = [path.parent.relative_to(folder).as_posix() for path in files]
    groups = [path.parent.parent.relative_to(folder).as_posix() for path in files]

    inputs = [_image(path, image_size) for path in files]
    shapes = sorted({image.shape for image in inputs})
    if len(shapes) > 1:
        raise ValueError(
            f"The images of {folder} differ: {shapes[0]}, {shapes[-1]} (height, width, channels). "
            "Give an image_size if it is the size, and convert files if it is the channels."
        )
    return by_class(np.stack(inputs), np.array(names), None if set(groups) == {"."} else groups)


def _image(path, size):
    try:
        pixels = tf.io.decode_image(path.read_bytes(), expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"TensorFlow cannot read the image {path}: {error.message}") from error
    return _resized(pixels, size).numpy()


def _stacked(examples, source):
    try:
        batches = list(examples.batch(512).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        if "batch" not in str(error):
            raise
        raise ValueError(f"The images of {source} differ in size. Give an image_size.") from error
    return [np.concatenate(parts) for parts in zip(*batches)]


def _resized(pixels, size):
    """The uint8 image with this height and width; as it is without a size."""
    if size is None:
        return pixels
    found = tf.image.resize(tf.cast(pixels, tf.float32), (size, size), method="area")
    return tf.cast(tf.round(found), tf.uint8)
