"""Decoding image files that may be broken, as files collected from the web are.

Finding prepared TFDS data sets on this machine, and saying what to do if there are none.
"""

import importlib
import json
import os
import pathlib
import re
from typing import BinaryIO

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from google.protobuf import json_format

from leap_tf.errors import LeapError


def decode(file: BinaryIO, mode: str, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """Decodes an image file, if that can be done.

    Args:
        file: any format Pillow reads; must be seekable.
        mode: Pillow's name of the colours, "L" for grey or "RGB".
        size: width and height to scale the whole image to, smoothed; otherwise its own.

    Returns:
        uint8 [height, width, channels], or None if the file is empty, cut off or no image.
    """
    try:
        with PIL.Image.open(file) as image:
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises, depending on the defect
        return None
    if size:
        pixels = pixels.resize(size, PIL.Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(pixels))


# Data sets that this project can draw itself, with no network.
DRAWN_OFFLINE = ("unicode_alphabets",)
# Data sets that TFDS does not have. Each has a package of its name here, with a TFDS builder.
OWN = (*DRAWN_OFFLINE, "facescrub", "gtsrb", "not_mnist")


class MissingDataError(LeapError, FileNotFoundError):
    """A data set is not prepared on this machine."""


def open_dataset(name: str, data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """Opens a data set that is prepared on this machine; nothing is ever downloaded.

    One that this project draws itself (`unicode_alphabets`) is drawn at first use, which takes
    about a minute.

    Args:
        name: the TFDS name.
        data_dir: the folder that holds it. Otherwise the environment's `TFDS_DATA_DIR` is
            searched, then `~/tensorflow_datasets`.

    Returns:
        A builder whose data can be read.

    Raises:
        MissingDataError: the data set is in none of these folders. Says how to get it.
        ValueError: TFDS knows no data set of this name, or its files name code of others.
    """
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
        raise ValueError(
            f"{name!r} is no name of a data set: they look like 'omniglot' or 'mnist:3.0.1'. "
            "Collections of others ('namespace:name') are code from the network, and not opened."
        )
    folders = _search_path(data_dir)
    for folder in folders:
        _refuse_foreign_code(folder / re.split("[/:]", name)[0])
    if name in OWN:
        importlib.import_module(f"leap_tf.datasets.{name}")  # registers the builder with TFDS
    for folder in folders:
        builder = _builder(name, folder)
        if (pathlib.Path(builder.data_path) / "dataset_info.json").exists():
            if not builder.info.splits:
                raise _damaged(name, folder)
            return builder
    if name in DRAWN_OFFLINE:
        return _draw(name, folders)
    load = f"tfds.load('{name}', data_dir='{folders[0]}')"
    modules = f"tensorflow_datasets as tfds{f', leap_tf.datasets.{name}' if name in OWN else ''}"
    raise MissingDataError(
        f"The data set {name!r} is not prepared in {' or '.join(map(str, folders))}. Either "
        f'download it once, with `python -c "import {modules}; {load}"` on a machine that has a '
        "network, or point --data_dir (or TFDS_DATA_DIR) at a folder that holds it. "
        f"`unicode_alphabets` needs neither.{_what_to_place(builder, folders[0])}"
    )


def _refuse_foreign_code(folder):
    """TFDS imports whatever module the description of a data set names; its own are enough."""
    for path in folder.rglob("features.json"):
        for name in _class_names(path):
            if not str(name).startswith("tensorflow_datasets."):
                raise ValueError(
                    f"{path} names {name!r}, which is code from outside TFDS and would be run. "
                    "Prepare the data set again with tfds.load."
                )


def _class_names(path):
    try:
        waiting = [json.loads(path.read_text())]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged. Prepare the data set again with tfds.load."
        ) from error
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.values()
            yield from (
                each[key] for key in ("pythonClassName", "python_class_name") if key in each
            )
        elif isinstance(each, list):
            waiting += each


def _what_to_place(builder, folder):
    """What a person has to do before TFDS can prepare a data set."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return ""
    return f" First fill {folder}/downloads/manual. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"


def _search_path(data_dir):
    if data_dir:
        return [pathlib.Path(data_dir).expanduser()]
    home = pathlib.Path("~/tensorflow_datasets").expanduser()
    configured = os.environ.get("TFDS_DATA_DIR")
    return [pathlib.Path(configured).expanduser(), home] if configured else [home]


def _builder(name, folder):
    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"TensorFlow Datasets knows no data set named {name!r}.") from error
    except json_format.Error as error:
        raise _damaged(name, folder) from error


def _damaged(name, folder):
    return ValueError(
        f"The description of {name!r} in {folder} is damaged, or names no part of it. Prepare the "
        "data set again with tfds.load."
    )


def _draw(name, folders):
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if os.access(existing, os.W_OK):
            builder = _builder(name, folder)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
            return builder
    raise MissingDataError(
        f"{name!r} has to be drawn first, and {' and '.join(map(str, folders))} cannot be written "
        "to. Give a --data_dir that can."
    )
