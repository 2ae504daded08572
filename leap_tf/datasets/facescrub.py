"""TFDS builder of FaceScrub: faces of the hundred people with the most photographs."""

import logging
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from leap_tf.datasets.tfds import decode_image

PEOPLE = 100
_SUFFIXES = (".jpg", ".jpeg", ".png")
_DESCRIPTION = """\
Faces of the hundred people of FaceScrub with the most photographs, scaled to 32x32, as in Serra et
al. (2018). About a tenth of the images is in `test`. The name of an image decides its split, so a
lost image does not change the split of others.

FaceScrub is published as a list of URLs, and many of them no longer work, so two copies of this
data set are seldom equal. Files that are not readable images are left out;
`info.metadata["unreadable"]` lists them for each split.
"""
_CITATION = """\
@inproceedings{ng2014facescrub,
  title={A data-driven approach to cleaning large face datasets},
  author={Ng, Hong-Wei and Winkler, Stefan},
  booktitle={IEEE International Conference on Image Processing (ICIP)},
  pages={343--347},
  year={2014}
}
"""


class Facescrub(tfds.core.GeneratorBasedBuilder):
    """FaceScrub with the features `image` and `label`, from photographs that the user provides."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = textwrap.dedent(f"""\
    FaceScrub is a list of URLs of photographs. Request it at
    http://vintage.winklerbros.net/facescrub.html: facescrub_actors.txt and
    facescrub_actresses.txt, tab-separated, with the columns name, image_id, face_id, url, bbox and
    sha256. Download the photographs that still exist, crop each to its bbox (left, top, right,
    bottom), and place the crops in the manual directory of TFDS as

        facescrub/<person>/<image>

    with one folder for each person, named as in the list, and files named <face_id> and ending in
    {", ".join(_SUFFIXES)}. They may have any size; each is scaled to 32x32. At least {PEOPLE}
    people are needed. Of more, the {PEOPLE} with the most readable images are used.
    """)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=PEOPLE),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://vintage.winklerbros.net/facescrub.html",
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        images = _images_of_people(dl_manager.manual_dir / "facescrub")
        readable = {
            person: sum(_read(path) is not None for path in paths)
            for person, paths in images.items()
        }
        present = [person for person, number in readable.items() if number]
        if len(present) < PEOPLE:
            raise ValueError(
                f"{dl_manager.manual_dir / 'facescrub'} has images of {len(present)} people, too "
                f"few.\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        most = sorted(present, key=lambda person: (-readable[person], person))[:PEOPLE]
        self.info.features["label"].names = sorted(most)
        chosen = [path for person in sorted(most) for path in images[person]]
        return {
            "train": self._generate_examples("train", [p for p in chosen if not is_test_image(p)]),
            "test": self._generate_examples("test", [p for p in chosen if is_test_image(p)]),
        }

    def _generate_examples(
        self, split: str, paths: Sequence[tfds.core.Path]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        unreadable = []
        for path in paths:
            image = _read(path)
            key = f"{path.parent.name}/{path.name}"
            if image is None:
                unreadable.append(key)
            else:
                yield key, {"image": image, "label": path.parent.name}
        self.info.metadata.setdefault("unreadable", {})[split] = unreadable
        logging.info("FaceScrub %s: %d unreadable files left out", split, len(unreadable))


def is_test_image(path: tfds.core.Path) -> bool:
    """Returns whether an image is in `test`, which its person and name without suffix decide."""
    return zlib.crc32(f"{path.parent.name}/{path.stem}".encode()) % 10 == 0


def _images_of_people(folder):
    if not folder.exists():
        return {}
    return {
        person.name: sorted(path for path in person.iterdir() if path.suffix.lower() in _SUFFIXES)
        for person in folder.iterdir()
        if person.is_dir()
    }


def _read(path):
    with path.open("rb") as file:
        return decode_image(file, "RGB", size=(32, 32))
