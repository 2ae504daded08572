"""TFDS builder of notMNIST: the letters A to J in fonts found on the web."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, ClassVar

import tensorflow_datasets as tfds

from leap_tf.datasets.tfds import decode_image

_ARCHIVES = {
    "train": "http://yaroslavvb.com/upload/notMNIST/notMNIST_large.tar.gz",
    "test": "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz",
}
_DESCRIPTION = """\
Glyphs of the letters A to J from publicly available fonts, 28x28, white on black. `train` is
notMNIST_large, as collected; `test` is notMNIST_small, which was cleaned by hand.

A few files of the archives are not readable, for example empty. They are left out;
`info.metadata["unreadable"]` lists them for each split.
"""
_CITATION = """\
@misc{bulatov2011notmnist,
  title={notMNIST dataset},
  author={Bulatov, Yaroslav},
  year={2011},
  url={http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html}
}
"""


class NotMnist(tfds.core.GeneratorBasedBuilder):
    """notMNIST in the format of `tfds.image_classification.MNIST`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list("ABCDEFGHIJ")),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, dl_manager.iter_archive(archive))
            for split, archive in dl_manager.download(_ARCHIVES).items()
        }

    def _generate_examples(
        self, split: str, files: Iterable[tuple[str, BinaryIO]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        unreadable = []
        for path, file in files:
            if not path.endswith(".png"):
                continue
            _, letter, name = path.rsplit("/", 2)
            image = decode_image(file, "L")
            if image is None:
                unreadable.append(f"{letter}/{name}")
            else:
                yield f"{letter}/{name}", {"image": image, "label": letter}
        self.info.metadata.setdefault("unreadable", {})[split] = sorted(unreadable)
        logging.info("notMNIST %s: %d unreadable files left out", split, len(unreadable))
