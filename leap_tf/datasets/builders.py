"""TFDS builders of data sets that TFDS does not have.

These are unicode_alphabets, which is drawn at first use, notMNIST, GTSRB and FaceScrub.
"""

import csv
import hashlib
import io
import logging
import pathlib
import textwrap
import zlib
from typing import BinaryIO

import numpy as np
import PIL.Image
import tensorflow as tf
import tensorflow_datasets as tfds

from leap_tf.datasets import glyphs

_VERSION = tfds.core.Version("1.0.0")
_RELEASE_NOTES = {"1.0.0": "First version."}
_NOT_MNIST = {
    "train": "http://yaroslavvb.com/upload/notMNIST/notMNIST_large.tar.gz",
    "test": "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz",
}
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_TRAINING_ARCHIVE = "GTSRB_Final_Training_Images.zip"
# TFDS needs a SHA-256 to download an archive, and public references have only an MD5 of this one.
_TRAINING_MD5 = "f33fd80ac59bff73c82d25ab499e03a3"
# GTSRB has no names of classes; these are the customary ones.
_SIGNS = pathlib.Path(__file__).with_name("gtsrb_signs.txt")
PEOPLE = 100
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png")


def characters(letters: str) -> tuple[str, ...]:
    """Returns the characters of hexadecimal code points and ranges, both ends included.

    >>> characters("0041-0043 00C6")
    ('A', 'B', 'C', 'Æ')
    """
    ends = [part.partition("-")[::2] for part in letters.split()]
    return tuple(
        chr(point)
        for first, last in ends
        for point in range(int(first, 16), int(last or first, 16) + 1)
    )


with pathlib.Path(__file__).with_name("unicode_alphabets.tsv").open(encoding="utf-8") as _table:
    ALPHABETS = {
        row["alphabet"]: characters(row["letters"])
        for row in csv.DictReader(_table, delimiter="\t")
    }


class UnicodeAlphabets(tfds.core.GeneratorBasedBuilder):
    """Real alphabets drawn from fonts, in the format of `tfds.image_classification.Omniglot`.

    An alphabet is a script, or a part of one, of which DejaVu Sans has at least 20 letters. Of
    larger scripts the first 26 letters are used, or those listed, so that alphabets have similar
    sizes. No letter is in two alphabets. Letters that differ from another of their alphabet in size
    or position only are left out, for example Hebrew vav (like yod) and Tifinagh ya (like yar). The
    letters are in `unicode_alphabets.tsv`, as hexadecimal code points and ranges.

    The only split is `train`. The name of a label is the name of the alphabet, an underscore and
    the character. Labels and alphabets are numbered in the order of `ALPHABETS`.
    """

    VERSION = _VERSION
    RELEASE_NOTES = _RELEASE_NOTES

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(glyphs.CANVAS, glyphs.CANVAS, 3), encoding_format="png")
        labels = [f"{name}_{letter}" for name, letters in ALPHABETS.items() for letter in letters]
        return tfds.core.DatasetInfo(
            builder=self,
            description="""\
            Characters of the alphabets that the DejaVu fonts cover, drawn by 20 simulated drawers.
            The features are those of Omniglot. Nothing is downloaded: the drawings are made from
            the fonts that matplotlib installs, and are the same for the same versions of matplotlib
            and Pillow.
            """,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "alphabet": tfds.features.ClassLabel(names=list(ALPHABETS)),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(names=labels),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://dejavu-fonts.github.io",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for alphabet, characters in ALPHABETS.items():
            for number, character in enumerate(characters):
                for drawer in range(glyphs.DRAWERS):
                    ink = glyphs.draw(character, drawer)
                    paper = np.where(ink, np.uint8(0), np.uint8(255))
                    yield (
                        f"{alphabet}_{number}_{drawer}",
                        {
                            "image": np.repeat(paper[:, :, np.newaxis], 3, axis=2),
                            "alphabet": alphabet,
                            "alphabet_char_id": number,
                            "label": f"{alphabet}_{character}",
                        },
                    )


class NotMnist(tfds.core.GeneratorBasedBuilder):
    """notMNIST in the format of `tfds.image_classification.MNIST`."""

    VERSION = _VERSION
    RELEASE_NOTES = _RELEASE_NOTES

    def _info(self) -> tfds.core.DatasetInfo:
        return _image_classification(
            self,
            shape=(28, 28, 1),
            label=tfds.features.ClassLabel(names=list("ABCDEFGHIJ")),
            description="""\
            Glyphs of the letters A to J from publicly available fonts, 28x28, white on black.
            `train` is notMNIST_large, as collected; `test` is notMNIST_small, cleaned by hand.

            A few files of the archives are not readable, for example empty. They are left out;
            `info.metadata["unreadable"]` lists them for each split.
            """,
            citation="""\
            @misc{bulatov2011notmnist,
              title={notMNIST dataset},
              author={Bulatov, Yaroslav},
              year={2011}, url={http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html}
            }
            """,
            homepage="http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, dl_manager.iter_archive(archive))
            for split, archive in dl_manager.download(_NOT_MNIST).items()
        }

    def _generate_examples(self, split, files):
        paths = ((path.rsplit("/", 2), file) for path, file in files if path.endswith(".png"))
        glyphs = (
            (f"{letter}/{name}", decode_image(file, "L"), letter)
            for (_, letter, name), file in paths
        )
        return _readable_examples(self, split, glyphs)


class Gtsrb(tfds.core.GeneratorBasedBuilder):
    """GTSRB with the features `image` and `label`: photographs of German traffic signs."""

    VERSION = _VERSION
    RELEASE_NOTES = _RELEASE_NOTES
    MANUAL_DOWNLOAD_INSTRUCTIONS = textwrap.dedent(f"""\
    Place the training archive, not unpacked, in the manual directory of TFDS:
    {_TRAINING_ARCHIVE} (276,294,756 bytes, MD5 {_TRAINING_MD5}), from
    {_GTSRB}/{_TRAINING_ARCHIVE}
    or through https://benchmark.ini.rub.de/gtsrb_dataset.html. The two test archives are
    downloaded automatically.
    """)

    def _info(self) -> tfds.core.DatasetInfo:
        return _image_classification(
            self,
            shape=(32, 32, 3),
            label=tfds.features.ClassLabel(names_file=_SIGNS),
            description="""\
            German Traffic Sign Recognition Benchmark: photographs of signs of 43 classes, scaled to
            32x32 (the whole image, bilinear, not smoothed). `train` is the final training set of
            39,209 images, in sequences of about 30 frames of one physical sign; `test` the final
            test set of 12,630.
            """,
            citation="""\
            @article{stallkamp2012gtsrb,
              title={Man vs. computer: Benchmarking machine learning algorithms for traffic sign
                     recognition},
              author={Stallkamp, J. and Schlipsing, M. and Salmen, J. and Igel, C.},
              journal={Neural Networks}, volume={32}, pages={323--332}, year={2012},
              doi={10.1016/j.neunet.2012.02.016}
            }
            """,
            homepage="https://benchmark.ini.rub.de/gtsrb_news.html",
        )

    def _split_generators(self, dl_manager):
        training = dl_manager.manual_dir / _TRAINING_ARCHIVE
        if not training.exists():
            raise FileNotFoundError(f"There is no {training}.\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        with training.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 != _TRAINING_MD5:
            raise ValueError(
                f"{training} has MD5 {md5}: the download is incomplete, or not this archive.\n"
                f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        test = dl_manager.download(
            {
                "images": f"{_GTSRB}/GTSRB_Final_Test_Images.zip",
                "labels": f"{_GTSRB}/GTSRB_Final_Test_GT.zip",
            }
        )
        tables = dl_manager.iter_archive(test["labels"])
        (table,) = [file for path, file in tables if path.endswith("GT-final_test.csv")]
        rows = csv.DictReader(io.TextIOWrapper(table, "ascii"), delimiter=";")
        labels = {row["Filename"]: int(row["ClassId"]) for row in rows}
        return {
            "train": self._generate_examples(dl_manager.iter_archive(training)),
            "test": self._generate_examples(dl_manager.iter_archive(test["images"]), labels),
        }

    def _generate_examples(self, files, labels=None):
        """Yields images with the given labels, or with the labels in the names of their folders."""
        for path, file in files:
            if path.endswith(".ppm"):
                _, folder, name = path.rsplit("/", 2)
                label = int(folder) if labels is None else labels[name]
                yield f"{folder}/{name}", {"image": scaled(file), "label": label}


class Facescrub(tfds.core.GeneratorBasedBuilder):
    """FaceScrub with the features `image` and `label`, from photographs that the user provides."""

    VERSION = _VERSION
    RELEASE_NOTES = _RELEASE_NOTES
    MANUAL_DOWNLOAD_INSTRUCTIONS = textwrap.dedent(f"""\
    FaceScrub is a list of URLs of photographs. Request it at
    http://vintage.winklerbros.net/facescrub.html: facescrub_actors.txt and
    facescrub_actresses.txt, tab-separated, with the columns name, image_id, face_id, url, bbox and
    sha256. Download the photographs that still exist, crop each to its bbox (left, top, right,
    bottom), and place the crops in the manual directory of TFDS as

        facescrub/<person>/<image>

    with one folder for each person, named as in the list, and files named <face_id> and ending in
    {", ".join(_PHOTOGRAPHS)}. They may have any size; each is scaled to 32x32. At least {PEOPLE}
    people are needed. Of more, the {PEOPLE} with the most readable images are used.
    """)

    def _info(self) -> tfds.core.DatasetInfo:
        return _image_classification(
            self,
            shape=(32, 32, 3),
            label=tfds.features.ClassLabel(num_classes=PEOPLE),
            description="""\
            Faces of the hundred people of FaceScrub with the most photographs, scaled to 32x32, as
            in Serra et al. (2018). About a tenth of the images is in `test`. The name of an image
            decides its split, so a lost image does not change the split of others.

            FaceScrub is published as a list of URLs, and many of them no longer work, so two copies
            of this data set are seldom equal. Files that are not readable images are left out;
            `info.metadata["unreadable"]` lists them for each split.
            """,
            citation="""\
            @inproceedings{ng2014facescrub,
              title={A data-driven approach to cleaning large face datasets},
              author={Ng, Hong-Wei and Winkler, Stefan},
              booktitle={IEEE International Conference on Image Processing (ICIP)},
              pages={343--347}, year={2014}
            }
            """,
            homepage="http://vintage.winklerbros.net/facescrub.html",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        folder = dl_manager.manual_dir / "facescrub"
        images = {
            person.name: sorted(
                path for path in person.iterdir() if path.suffix.lower() in _PHOTOGRAPHS
            )
            for person in (folder.iterdir() if folder.exists() else ())
            if person.is_dir()
        }
        readable = {
            person: sum(_photograph(path) is not None for path in paths)
            for person, paths in images.items()
        }
        present = [person for person, number in readable.items() if number]
        if len(present) < PEOPLE:
            raise ValueError(
                f"{folder} has images of {len(present)} people, too few.\n"
                f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        people = sorted(sorted(present, key=lambda each: (-readable[each], each))[:PEOPLE])
        self.info.features["label"].names = people
        paths = [path for person in people for path in images[person]]
        return {
            "train": self._generate_examples("train", [p for p in paths if not is_test_image(p)]),
            "test": self._generate_examples("test", [p for p in paths if is_test_image(p)]),
        }

    def _generate_examples(self, split, paths):
        photographs = (
            (f"{path.parent.name}/{path.name}", _photograph(path), path.parent.name)
            for path in paths
        )
        return _readable_examples(self, split, photographs)


def _image_classification(builder, *, shape, label, **info):
    """Describes a data set of PNG images with labels."""
    image = tfds.features.Image(shape=shape, encoding_format="png")
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        supervised_keys=("image", "label"),
        **info,
    )


def _readable_examples(builder, split, images):
    """Yields the (key, image, label) that have an image, and records the keys of the others."""
    unreadable = []
    for key, image, label in images:
        if image is None:
            unreadable.append(key)
        else:
            yield key, {"image": image, "label": label}
    unreadable.sort(key=lambda key: key.split("/"))
    builder.info.metadata.setdefault("unreadable", {})[split] = unreadable
    logging.info("%s %s: %d unreadable files left out", builder.name, split, len(unreadable))


def decode_image(
    file: BinaryIO, mode: str, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """Decodes an image to uint8 [height, width, channels]; None if empty, cut off or not an image.

    `mode` is Pillow's, "L" or "RGB"; `size` is (width, height) to scale to, smoothed.
    """
    try:
        with PIL.Image.open(file) as image:
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError):  # Pillow's errors for different defects
        return None
    if size:
        pixels = pixels.resize(size, PIL.Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(pixels))


def scaled(file: BinaryIO) -> np.ndarray:
    """Reads an image and scales it bilinearly to uint8 [32, 32, 3].

    Up to rounding this is `cv2.resize(image, (32, 32))`.
    """
    with PIL.Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    with tf.device("CPU"):  # faster than a GPU for single images
        return tf.cast(tf.round(tf.image.resize(pixels, (32, 32))), tf.uint8).numpy()


def _photograph(path):
    with path.open("rb") as file:
        return decode_image(file, "RGB", size=(32, 32))


def is_test_image(path: tfds.core.Path) -> bool:
    """Returns whether an image of FaceScrub is in `test`; its person and stem decide."""
    return zlib.crc32(f"{path.parent.name}/{path.stem}".encode()) % 10 == 0
