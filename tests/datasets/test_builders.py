"""The TFDS builders of notMNIST, GTSRB and FaceScrub, on made-up archives of the real layout."""

import hashlib
import io
import pathlib
import tarfile
import tempfile
import zipfile
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from leap_tf.datasets import MissingDataError, builders, open_dataset
from leap_tf.datasets.builders import Facescrub, Gtsrb, NotMnist

LETTERS = "ABCDEFGHIJ"
PEOPLE = [f"Person {number:03d}" for number in range(101)]


def image_file(pixels, encoding="png"):
    file = io.BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(file, encoding)
    return file.getvalue()


def letter(split, number):
    """A glyph that no other letter or split has."""
    return np.full((28, 28), 10 * number + (split == "test"))


def write_not_mnist(folder):
    for split, name in (("train", "notMNIST_large"), ("test", "notMNIST_small")):
        files = {
            f"{name}/{character}/{number}.png": image_file(letter(split, number))
            for number, character in enumerate(LETTERS)
        }
        whole = files[f"{name}/A/0.png"]
        files[f"{name}/A/empty.png"] = b""
        if split == "train":
            files[f"{name}/B/cut off.png"] = whole[: len(whole) // 2]
            files[f"{name}/B/header.png"] = whole[:20] + b"\0\0\0\0" + whole[24:]
        files[f"{name}/readme.txt"] = b"not an image"
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def sign(number):
    return np.full((20 + number, 30, 3), 40 * number + 1)


def write_gtsrb(folder):
    with zipfile.ZipFile(folder / "GTSRB_Final_Training_Images.zip", "w") as archive:
        for label in (0, 1, 42):
            images = f"GTSRB/Final_Training/Images/{label:05d}"
            archive.writestr(f"{images}/00000_00000.ppm", image_file(sign(label % 3), "ppm"))
            archive.writestr(f"{images}/GT-{label:05d}.csv", "Filename;ClassId\n")
    with zipfile.ZipFile(folder / "GTSRB_Final_Test_Images.zip", "w") as archive:
        for number in (3, 4):
            name = f"GTSRB/Final_Test/Images/{number:05d}.ppm"
            archive.writestr(name, image_file(sign(number), "ppm"))
        archive.writestr("GTSRB/Final_Test/Images/GT-final_test.test.csv", "Filename\n")
    with zipfile.ZipFile(folder / "GTSRB_Final_Test_GT.zip", "w") as archive:
        columns = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
        rows = ["00003.ppm;30;23;5;5;25;18;17", "00004.ppm;30;24;5;5;25;19;4"]
        archive.writestr("GT-final_test.csv", "\r\n".join([columns, *rows]))


def write_facescrub(folder):
    """Of 101 people the last has one image fewer, but more files; the first has a broken one."""
    for person in PEOPLE:
        (folder / "facescrub" / person).mkdir(parents=True)
        for number in range(1 if person == PEOPLE[-1] else 2):
            pixels = np.full((40, 50, 3), PEOPLE.index(person))
            pixels[..., 0] += number
            (folder / "facescrub" / person / f"{number}.png").write_bytes(image_file(pixels))
    (folder / "facescrub" / PEOPLE[0] / "2.jpg").write_bytes(b"<html>404</html>")
    (folder / "facescrub" / PEOPLE[0] / "notes.txt").write_text("no image")
    whole = image_file(np.zeros((40, 50, 3)))
    for name, content in (("3", b""), ("4", b"<html>404</html>"), ("5", whole[: len(whole) // 2])):
        (folder / "facescrub" / PEOPLE[-1] / f"{name}.png").write_bytes(content)


def facescrub_split_sizes():
    images = [pathlib.Path(person, f"{number}.png") for person in PEOPLE[:100] for number in (0, 1)]
    test = sum(builders.is_test_image(path) for path in images)
    return {"train": len(images) - test, "test": test}


class _BuilderTest(tfds.testing.DatasetBuilderTestCase):
    __test__ = False

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.write(pathlib.Path(cls.EXAMPLE_DIR))
        super().setUpClass()


class TestNotMnist(_BuilderTest):
    __test__ = True
    DATASET_CLASS = NotMnist
    SPLITS: ClassVar = {"train": 10, "test": 10}
    DL_DOWNLOAD_RESULT: ClassVar = {
        "train": "notMNIST_large.tar.gz",
        "test": "notMNIST_small.tar.gz",
    }
    write = staticmethod(write_not_mnist)


class TestGtsrb(_BuilderTest):
    __test__ = True
    DATASET_CLASS = Gtsrb
    SPLITS: ClassVar = {"train": 3, "test": 2}
    DL_DOWNLOAD_RESULT: ClassVar = {
        "images": "GTSRB_Final_Test_Images.zip",
        "labels": "GTSRB_Final_Test_GT.zip",
    }
    write = staticmethod(write_gtsrb)

    def setUp(self):
        super().setUp()
        archive = pathlib.Path(self.EXAMPLE_DIR) / "GTSRB_Final_Training_Images.zip"
        expect_training_archive(self.enterContext(pytest.MonkeyPatch.context()), archive)


class TestFacescrub(_BuilderTest):
    __test__ = True
    DATASET_CLASS = Facescrub
    SPLITS: ClassVar = facescrub_split_sizes()
    write = staticmethod(write_facescrub)


def expect_training_archive(monkeypatch, archive):
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(builders, "_TRAINING_MD5", md5)


def prepare(builder, folder, monkeypatch):
    """Prepares a data set from archives in a folder, which stands for the network too."""
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download",
        lambda self, urls: {key: folder / url.rsplit("/", 1)[1] for key, url in urls.items()},
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    )


def examples(name, data_dir, split):
    """From label to image."""
    dataset = open_dataset(name, data_dir).as_dataset(split=split, as_supervised=True)
    return {int(label): image for image, label in dataset.as_numpy_iterator()}


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    return folder


def test_not_mnist_has_the_glyphs_and_counts_what_it_leaves_out(tmp_path, sources, monkeypatch):
    write_not_mnist(sources)
    prepare(NotMnist(data_dir=tmp_path), sources, monkeypatch)
    for split in ("train", "test"):
        images = examples("not_mnist", tmp_path, split)
        assert sorted(images) == list(range(10))
        for number, image in images.items():
            np.testing.assert_array_equal(image[..., 0], letter(split, number))
    info = open_dataset("not_mnist", tmp_path).info
    assert info.metadata["unreadable"] == {
        "train": ["A/empty.png", "B/cut off.png", "B/header.png"],
        "test": ["A/empty.png"],
    }


def test_not_mnist_takes_placed_archives_before_it_downloads(tmp_path, sources, monkeypatch):
    write_not_mnist(sources)
    known = {
        url: tfds.download.checksums.UrlInfo(
            size=tfds.core.utils.Size(placed.stat().st_size),
            checksum=hashlib.sha256(placed.read_bytes()).hexdigest(),
            filename=info.filename,
        )
        for url, info in NotMnist.url_infos.items()
        for placed in [sources / info.filename]
        if placed.exists()  # the archives of notMNIST, not those of GTSRB
    }
    assert len(known) == 2
    monkeypatch.setattr(NotMnist, "url_infos", known)
    NotMnist(data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=sources, try_download_gcs=False)
    )
    assert sorted(examples("not_mnist", tmp_path, "train")) == list(range(10))


def test_gtsrb_takes_classes_from_folders_and_annotations(tmp_path, sources, monkeypatch):
    write_gtsrb(sources)
    expect_training_archive(monkeypatch, sources / "GTSRB_Final_Training_Images.zip")
    prepare(Gtsrb(data_dir=tmp_path), sources, monkeypatch)
    for split, numbers in (("train", {0: 0, 1: 1, 42: 0}), ("test", {17: 3, 4: 4})):
        images = examples("gtsrb", tmp_path, split)
        assert images.keys() == numbers.keys()
        for label, number in numbers.items():
            np.testing.assert_array_equal(images[label], np.full((32, 32, 3), 40 * number + 1))
    assert open_dataset("gtsrb", tmp_path).info.features["label"].int2str(17) == "No entry"


def test_gtsrb_says_which_archive_to_place_and_refuses_another(tmp_path, sources, monkeypatch):
    (sources / "GTSRB-Training_fixed.zip").write_bytes(b"another archive")
    with pytest.raises(FileNotFoundError, match=r"(?s)no .*GTSRB_Final_Training_Images.zip.*MD5"):
        prepare(Gtsrb(data_dir=tmp_path), sources, monkeypatch)
    (sources / "GTSRB_Final_Training_Images.zip").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"(?s)the download is incomplete.*276,294,756 bytes"):
        prepare(Gtsrb(data_dir=tmp_path), sources, monkeypatch)


def test_gtsrb_scales_linearly_between_the_middles_of_pixels():
    # Twice as wide: the middles of the new pixels lie at ±1/4 from those of the old ones.
    row = np.zeros((16, 16, 3), np.uint8)
    row[:, 1] = 100
    scaled = builders.scaled(io.BytesIO(image_file(row, "ppm")))
    assert scaled.shape == (32, 32, 3)
    assert scaled[7, :6, 0].tolist() == [0, 25, 75, 75, 25, 0]
    # Half as wide without smoothing: each new pixel is the mean of the two in its middle.
    row = np.zeros((128, 128, 3), np.uint8)
    row[:, 1] = 100
    row[:, 4] = 200
    scaled = builders.scaled(io.BytesIO(image_file(row, "ppm")))
    assert scaled[0, :2, 2].tolist() == [50, 0]


def test_facescrub_takes_the_people_with_the_most_images(tmp_path, sources, monkeypatch):
    write_facescrub(sources)
    prepare(Facescrub(data_dir=tmp_path), sources, monkeypatch)
    builder = open_dataset("facescrub", tmp_path)
    assert builder.info.features["label"].names == PEOPLE[:100]
    seen = []
    for split, count in facescrub_split_sizes().items():
        dataset = builder.as_dataset(split=split, as_supervised=True)
        pairs = [(image, int(label)) for image, label in dataset.as_numpy_iterator()]
        assert len(pairs) == count
        for image, label in pairs:
            assert (image == image[0, 0]).all()
            assert image[0, 0, 1:].tolist() == [label, label]
            seen.append((label, image[0, 0, 0] - label))
    assert sorted(seen) == [(label, number) for label in range(100) for number in (0, 1)]
    unreadable = builder.info.metadata["unreadable"]
    assert unreadable["train"] + unreadable["test"] == [f"{PEOPLE[0]}/2.jpg"]


def test_a_tenth_of_facescrub_is_for_testing_whatever_else_is_there():
    paths = [pathlib.Path(f"Person {p}", f"{image}.jpg") for p in range(50) for image in range(100)]
    chosen = [path for path in paths if builders.is_test_image(path)]
    assert 450 < len(chosen) < 550
    as_png = [path.with_suffix(".png") for path in chosen]
    assert all(builders.is_test_image(path) for path in as_png)


def test_facescrub_says_how_to_place_images(tmp_path, sources, monkeypatch):
    (sources / "something else").mkdir()
    with pytest.raises(ValueError, match=r"(?s)images of 0 people.*facescrub/<person>/<image>"):
        prepare(Facescrub(data_dir=tmp_path), sources, monkeypatch)
    write_facescrub(sources)
    for image in (sources / "facescrub" / PEOPLE[3]).iterdir():
        image.unlink()
    for image in (sources / "facescrub" / PEOPLE[4]).iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="images of 99 people"):
        prepare(Facescrub(data_dir=tmp_path), sources, monkeypatch)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not_mnist", "needs neither.$"),
        ("gtsrb", "First fill .*/downloads/manual.*Place the training archive"),
        ("facescrub", "First fill .*/downloads/manual.*facescrub/<person>/<image>"),
    ],
)
def test_missing_data_says_how_to_prepare_it(tmp_path, name, said):
    command = rf"leap_tf.datasets.builders; tfds.load\('{name}', data_dir='{tmp_path}'\)"
    with pytest.raises(MissingDataError, match=rf"(?s){command}.*{said}"):
        open_dataset(name, tmp_path)


@pytest.mark.parametrize(("name", "classes"), [("not_mnist", NotMnist), ("gtsrb", Gtsrb)])
def test_prepared_subsets_are_read_by_these_builders(tfds_subset, name, classes):
    prepared = open_dataset(name, tfds_subset)
    assert isinstance(prepared, classes)
    from_files = tfds.builder_from_directory(tfds_subset / name / "1.0.0")
    own = classes(data_dir=tfds_subset / "nowhere")
    assert own.info.features["label"].names == from_files.info.features["label"].names
    assert own.info.features["image"].shape == from_files.info.features["image"].shape
    assert prepared.info.splits["train"].num_examples in (5977, 6000)
