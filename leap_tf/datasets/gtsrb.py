"""TFDS builder of GTSRB: photographs of German traffic signs."""

import csv
import hashlib
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np
import PIL.Image
import tensorflow as tf
import tensorflow_datasets as tfds

_SOURCE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_TRAINING_ARCHIVE = "GTSRB_Final_Training_Images.zip"
# TFDS needs a SHA-256 to download an archive, and public references have only an MD5 of this one.
_TRAINING_MD5 = "f33fd80ac59bff73c82d25ab499e03a3"
_DESCRIPTION = """\
German Traffic Sign Recognition Benchmark: photographs of signs of 43 classes, scaled to 32x32
(the whole image, bilinear, not smoothed). `train` is the final training set of 39,209 images, in
sequences of about 30 frames of one physical sign; `test` the final test set of 12,630.
"""
_CITATION = """\
@article{stallkamp2012gtsrb,
  title={Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition},
  author={Stallkamp, J. and Schlipsing, M. and Salmen, J. and Igel, C.},
  journal={Neural Networks},
  volume={32},
  pages={323--332},
  year={2012},
  doi={10.1016/j.neunet.2012.02.016}
}
"""
# The data set has no names of classes; these are the customary ones.
SIGNS = (
    "Speed limit (20km/h)",
    "Speed limit (30km/h)",
    "Speed limit (50km/h)",
    "Speed limit (60km/h)",
    "Speed limit (70km/h)",
    "Speed limit (80km/h)",
    "End of speed limit (80km/h)",
    "Speed limit (100km/h)",
    "Speed limit (120km/h)",
    "No passing",
    "No passing for vehicles over 3.5 metric tons",
    "Right-of-way at the next intersection",
    "Priority road",
    "Yield",
    "Stop",
    "No vehicles",
    "Vehicles over 3.5 metric tons prohibited",
    "No entry",
    "General caution",
    "Dangerous curve to the left",
    "Dangerous curve to the right",
    "Double curve",
    "Bumpy road",
    "Slippery road",
    "Road narrows on the right",
    "Road work",
    "Traffic signals",
    "Pedestrians",
    "Children crossing",
    "Bicycles crossing",
    "Beware of ice/snow",
    "Wild animals crossing",
    "End of all speed and passing limits",
    "Turn right ahead",
    "Turn left ahead",
    "Ahead only",
    "Go straight or right",
    "Go straight or left",
    "Keep right",
    "Keep left",
    "Roundabout mandatory",
    "End of no passing",
    "End of no passing by vehicles over 3.5 metric tons",
)


class Gtsrb(tfds.core.GeneratorBasedBuilder):
    """GTSRB with the features `image` and `label`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = textwrap.dedent(f"""\
    Place the training archive, not unpacked, in the manual directory of TFDS:
    {_TRAINING_ARCHIVE} (276,294,756 bytes, MD5 {_TRAINING_MD5}), from
    {_SOURCE}/{_TRAINING_ARCHIVE}
    or through https://benchmark.ini.rub.de/gtsrb_dataset.html. The two test archives are
    downloaded automatically.
    """)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(SIGNS)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://benchmark.ini.rub.de/gtsrb_news.html",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        training = dl_manager.manual_dir / _TRAINING_ARCHIVE
        if not training.exists():
            raise FileNotFoundError(f"There is no {training}.\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        with training.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 != _TRAINING_MD5:
            raise ValueError(
                f"{training} has MD5 {md5}: the download is incomplete, or it is another archive.\n"
                f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        test = dl_manager.download(
            {
                "images": f"{_SOURCE}/GTSRB_Final_Test_Images.zip",
                "labels": f"{_SOURCE}/GTSRB_Final_Test_GT.zip",
            }
        )
        labels = _test_labels(dl_manager.iter_archive(test["labels"]))
        return {
            "train": self._generate_examples(dl_manager.iter_archive(training)),
            "test": self._generate_examples(dl_manager.iter_archive(test["images"]), labels),
        }

    def _generate_examples(
        self, files: Iterable[tuple[str, BinaryIO]], labels: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields images with the given labels, or with the labels in the names of their folders."""
        for path, file in files:
            if not path.endswith(".ppm"):
                continue
            _, folder, name = path.rsplit("/", 2)
            label = int(folder) if labels is None else labels[name]
            yield f"{folder}/{name}", {"image": scaled(file), "label": label}


def scaled(file: BinaryIO) -> np.ndarray:
    """Reads an image and scales it bilinearly to uint8 [32, 32, 3].

    Up to rounding this is `cv2.resize(image, (32, 32))`.
    """
    with PIL.Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    with tf.device("CPU"):  # faster than a GPU for single images
        return tf.cast(tf.round(tf.image.resize(pixels, (32, 32))), tf.uint8).numpy()


def _test_labels(files):
    """Returns the classes by file name, from the archive with the semicolon-separated table."""
    ((_, file),) = [(path, file) for path, file in files if path.endswith("GT-final_test.csv")]
    rows = csv.DictReader(io.TextIOWrapper(file, "ascii"), delimiter=";")
    return {row["Filename"]: int(row["ClassId"]) for row in rows}
