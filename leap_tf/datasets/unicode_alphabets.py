"""TFDS builder of `unicode_alphabets`: real alphabets in Omniglot's format, drawn at first use.

An alphabet is a script, or a part of one, of which DejaVu Sans has at least 20 letters. Of larger
scripts the first 26 letters are used, or those listed, so that alphabets have similar sizes. No
letter is in two alphabets. Letters that differ from another of their alphabet in size or position
only are left out, for example Hebrew vav (like yod) and Tifinagh ya (like yar). The letters are in
`unicode_alphabets.tsv`, as hexadecimal code points and ranges.
"""

import csv
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from leap_tf.datasets import glyphs


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


with pathlib.Path(__file__).with_suffix(".tsv").open(encoding="utf-8") as _table:
    ALPHABETS = {
        row["alphabet"]: characters(row["letters"])
        for row in csv.DictReader(_table, delimiter="\t")
    }


class UnicodeAlphabets(tfds.core.GeneratorBasedBuilder):
    """Alphabets drawn from fonts, in the format of `tfds.image_classification.Omniglot`.

    The only split is `train`. The name of a label is the name of the alphabet, an underscore and
    the character. Labels and alphabets are numbered in the order of `ALPHABETS`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

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
