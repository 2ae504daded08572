"""Real alphabets in Omniglot's format, drawn on the spot instead of downloaded."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from leap_tf.tasks.unicode_alphabets import drawing, scripts

_DESCRIPTION = """\
Characters of the alphabets that the DejaVu fonts cover, each as 20 drawers would write it. The
features are Omniglot's. Nothing is downloaded: the drawings are made from the fonts that
matplotlib installs, always the same ones for the same versions of matplotlib and Pillow.
"""


class UnicodeAlphabets(tfds.core.GeneratorBasedBuilder):
    """Alphabets drawn from fonts, in the format of `tfds.image_classification.Omniglot`.

    The only split is `train`. Names of labels are the alphabet's name, an underscore and the
    character. The numbers of labels and alphabets follow the order of `scripts.ALPHABETS`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(
            shape=(drawing.CANVAS, drawing.CANVAS, 3), encoding_format="png"
        )
        labels = [
            _label(alphabet, character)
            for alphabet, characters in scripts.ALPHABETS.items()
            for character in characters
        ]
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "alphabet": tfds.features.ClassLabel(names=list(scripts.ALPHABETS)),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(names=labels),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://dejavu-fonts.github.io",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for alphabet, characters in scripts.ALPHABETS.items():
            for number, character in enumerate(characters):
                for drawer in range(drawing.DRAWERS):
                    ink = drawing.draw(character, drawer)
                    paper = np.where(ink, np.uint8(0), np.uint8(255))
                    yield (
                        f"{alphabet}_{number}_{drawer}",
                        {
                            "image": np.repeat(paper[:, :, np.newaxis], 3, axis=2),
                            "alphabet": alphabet,
                            "alphabet_char_id": number,
                            "label": _label(alphabet, character),
                        },
                    )


def _label(alphabet, character):
    return f"{alphabet}_{character}"
