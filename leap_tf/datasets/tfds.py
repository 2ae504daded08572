"""Access to prepared TFDS data sets on this machine."""

import functools
import importlib
import json
import os
import pathlib
import re

import tensorflow_datasets as tfds
from google.protobuf import json_format

from leap_tf.errors import LeapError

# The modules of the builders that TFDS does not have.
_MODULES = {
    "unicode_alphabets": "leap_tf.datasets.unicode_alphabets",
    **dict.fromkeys(("facescrub", "gtsrb", "not_mnist"), "leap_tf.datasets.builders"),
}


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
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
        raise ValueError(
            f"{name!r} is no name of a data set such as 'omniglot' or 'mnist:3.0.1'. Community "
            "collections ('namespace:name') are code from the network and are not opened."
        )
    places = [data_dir] if data_dir else [os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    folders = [pathlib.Path(place).expanduser() for place in places if place]
    for folder in folders:
        _check_no_foreign_code(folder / re.split("[/:]", name)[0])
    if name in _MODULES:
        importlib.import_module(_MODULES[name])  # registers the builder with TFDS
    for folder in folders:
        builder = _builder(name, folder)
        if (pathlib.Path(builder.data_path) / "dataset_info.json").exists():
            if not builder.info.splits:
                raise _damaged(name, folder)
            return builder
    if name == "unicode_alphabets":
        return _draw(name, folders)
    load = f"tfds.load('{name}', data_dir='{folders[0]}')"
    local = f", {_MODULES[name]}" if name in _MODULES else ""
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
        try:
            json.loads(path.read_text(), object_pairs_hook=functools.partial(_add_classes, names))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged. Prepare the data set again with tfds.load."
            ) from error
        for name in names:
            if not str(name).startswith("tensorflow_datasets."):
                raise ValueError(
                    f"{path} names {name!r}, which is code from outside TFDS, and opening the data "
                    "set would run it. Prepare the data set again with tfds.load."
                )


def _add_classes(names, pairs):
    names += [value for key, value in pairs if key in ("pythonClassName", "python_class_name")]


def _builder(name, folder):
    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"TensorFlow Datasets knows no data set named {name!r}.") from error
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
            builder = _builder(name, folder)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
            return builder
    raise MissingDataError(
        f"{name!r} has to be drawn first, but {' and '.join(map(str, folders))} is not writable. "
        "Give a writable --data_dir."
    )
