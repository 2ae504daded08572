"""The data set `unicode_alphabets`: its scripts, its drawings and its TFDS builder."""

import hashlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from matplotlib.ft2font import FT2Font
from scipy import ndimage
from scipy.spatial import distance

from leap_tf.datasets import builders as scripts
from leap_tf.datasets import glyphs, open_dataset

ALPHABETS = scripts.ALPHABETS
TWO_ALPHABETS = {"Greek_Capital": ("Α", "Β", "Γ"), "Hebrew": ("א", "ב")}


class TestScripts:
    def test_there_are_many_alphabets_of_similar_size(self):
        assert len(ALPHABETS) >= 24
        assert all(20 <= len(characters) <= 26 for characters in ALPHABETS.values())

    def test_the_order_is_fixed(self):
        assert list(ALPHABETS) == sorted(ALPHABETS)
        assert ALPHABETS["Latin_Capital"] == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert ALPHABETS["Greek_Small"] == tuple("αβγδεζηθικλμνξοπρςστυφχψω")

    def test_no_character_is_in_two_places(self):
        everything = list(itertools.chain.from_iterable(ALPHABETS.values()))
        assert len(everything) == len(set(everything))

    def test_names_of_labels_survive_a_file_with_one_a_line(self):
        for name, characters in ALPHABETS.items():
            assert name.replace("_", "").isalnum()
            assert not any(character.isspace() for character in characters)

    def test_all_characters_are_letters_and_none_combines(self):
        for character in itertools.chain.from_iterable(ALPHABETS.values()):
            assert unicodedata.category(character) in ("Lu", "Ll", "Lo"), hex(ord(character))

    def test_the_font_has_a_glyph_for_each(self):
        font = FT2Font(str(glyphs.font_path(glyphs.FALLBACK_FACE)))
        for character in itertools.chain.from_iterable(ALPHABETS.values()):
            assert font.get_char_index(ord(character)) != 0, hex(ord(character))

    @pytest.mark.parametrize("name", ALPHABETS)
    def test_characters_differ_even_at_the_same_size_and_place(self, name):
        lines = [_plain_points(character) for character in ALPHABETS[name]]
        for (first, one), (second, other) in itertools.combinations(enumerate(lines), 2):
            distances = distance.cdist(one, other)
            apart = max(distances.min(axis=0).max(), distances.min(axis=1).max())
            assert apart > 0.08, (ALPHABETS[name][first], ALPHABETS[name][second])

    def test_code_points_and_ranges_are_spelled_out(self):
        assert scripts.characters("0041-0043 00C6 10300") == ("A", "B", "C", "Æ", "\U00010300")


def _plain_points(character):
    return glyphs.centre_line_of(character, glyphs.FALLBACK_FACE).points


class TestCentreLines:
    @pytest.mark.parametrize("character", ["ش", "Θ", "ⵙ", "ᚊ", "Ж"])
    def test_thinning_keeps_parts_and_holes(self, character):
        bitmap = glyphs.printed(character, glyphs.FALLBACK_FACE)
        thin = glyphs.thinned(bitmap)
        assert not np.any(thin & ~bitmap)
        assert np.sum(thin) < 0.3 * np.sum(bitmap)
        assert _parts(thin) == _parts(bitmap)
        # Ink touches diagonally, so paper does not: holes are counted with four neighbours.
        assert ndimage.label(~thin)[1] == ndimage.label(~bitmap)[1]

    @pytest.mark.parametrize("side", [1, 2, 3, 4, 9])
    def test_thinning_keeps_dots(self, side):
        dot = np.pad(np.ones((side, side), bool), 2)
        assert _parts(glyphs.thinned(dot)) == 1

    def test_neighbouring_pixels_are_joined_once(self):
        line = glyphs.joined(np.array([[1, 0, 0, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0]], bool))
        pixels = [(0, 0), (1, 0), (1, 1), (1, 2), (1, 4), (2, 3)]
        assert list(map(tuple, line.points)) == pixels
        pairs = {frozenset((pixels[a], pixels[b])) for a, b in line.edges}
        assert len(pairs) == len(line.edges)
        assert pairs == {
            frozenset(pair)
            for pair in (
                ((0, 0), (1, 0)),
                ((1, 0), (1, 1)),
                ((1, 1), (1, 2)),
                ((1, 2), (2, 3)),
                ((1, 4), (2, 3)),
            )
        }

    def test_ends_are_shortened_but_strokes_do_not_vanish(self):
        stroke = np.zeros((5, 12), bool)
        stroke[1, 1:11] = stroke[3, 1:4] = stroke[3, 6:8] = stroke[3, 9] = True
        line = glyphs.without_ends(glyphs.joined(stroke), times=2)
        assert {tuple(point) for point in line.points} == {
            *((1, column) for column in range(3, 9)),
            (3, 2),
            *((3, 6), (3, 7)),
            (3, 9),
        }
        assert glyphs.degrees(line).tolist() == [1, 2, 2, 2, 2, 1, 0, 1, 1, 0]

    def test_rounding_moves_corners_only(self):
        corner = np.zeros((6, 6), bool)
        corner[0, :5] = corner[:5, 4] = True
        line = glyphs.joined(corner)
        ends = glyphs.degrees(line) == 1
        rounded = glyphs.rounded(line, times=5)
        np.testing.assert_array_equal(rounded.points[ends], line.points[ends])
        assert np.min(np.linalg.norm(rounded.points - (0, 4), axis=1)) > 0.3
        np.testing.assert_array_equal(glyphs.rounded(line, times=0).points, line.points)

    def test_a_line_is_as_long_as_one_unit_and_in_the_middle(self):
        points = _plain_points("Ж")
        np.testing.assert_allclose(points.min(axis=0) + points.max(axis=0), 0.0, atol=1e-12)
        assert np.max(np.ptp(points, axis=0)) == pytest.approx(1.0)

    def test_another_face_gives_another_line_if_it_has_the_glyph(self):
        def same(character):
            lines = [
                glyphs.centre_line_of(character, face) for face in ("DejaVuSans", "DejaVuSerif")
            ]
            return np.array_equal(lines[0].points, lines[1].points)

        assert not same("A")
        assert same("א")

    def test_a_character_without_a_glyph_is_refused(self):
        with pytest.raises(ValueError, match=r"U\+4E00"):
            glyphs.draw("\u4e00", 0)


def _parts(bitmap):
    return ndimage.label(bitmap, structure=np.ones((3, 3)))[1]


@pytest.fixture(scope="module")
def samples():
    """Bool [characters, drawers, rows, columns]: every ninth character of each alphabet."""
    return np.stack(
        [
            _all_drawings(character)
            for characters in ALPHABETS.values()
            for character in characters[::9]
        ]
    )


def _all_drawings(character):
    return np.stack([glyphs.draw(character, drawer) for drawer in range(glyphs.DRAWERS)])


class TestDrawings:
    def test_drawings_are_of_the_canvas_size(self, samples):
        assert samples.shape[1:] == (20, 105, 105)
        assert samples.dtype == bool

    def test_nothing_touches_the_border(self, samples):
        assert not np.any(samples[..., [0, -1], :])
        assert not np.any(samples[..., :, [0, -1]])

    def test_the_amount_of_ink_is_sane(self, samples):
        share = np.mean(samples, axis=(2, 3))
        assert np.min(share) > 0.004  # letters of a few dots
        assert np.max(share) < 0.2
        assert 0.04 < np.median(share) < 0.1

    def test_drawings_fill_the_canvas_as_omniglots_do(self, samples):
        heights, widths = (np.any(samples, axis=axis).sum(axis=-1) for axis in (3, 2))
        assert 60 < np.median(np.maximum(heights, widths)) < 78

    def test_strokes_are_thin(self, samples):
        depths = [
            ndimage.distance_transform_cdt(image, "chessboard").max() for image in samples[:, 0]
        ]
        assert 2 <= np.median(depths) <= 3  # strokes of 3 to 5 pixels

    def test_no_two_drawings_of_a_character_are_equal(self, samples):
        for drawings in samples:
            assert len({image.tobytes() for image in drawings}) == glyphs.DRAWERS

    def test_a_drawing_depends_on_nothing_drawn_before(self):
        first = glyphs.draw("Ж", 7)
        for function in (glyphs.centre_line_of, glyphs.habits_of, glyphs.code_points):
            function.cache_clear()
        glyphs.draw("ש", 7)
        np.testing.assert_array_equal(glyphs.draw("Ж", 7), first)

    def test_a_drawer_keeps_habits_for_all_characters(self):
        drawings = np.stack([_all_drawings(letter) for letter in ALPHABETS["Latin_Capital"]])
        heights, widths = (np.any(drawings, axis=axis).sum(axis=-1) for axis in (3, 2))
        sizes = np.maximum(heights, widths)
        some, others = sizes[:13].mean(axis=0), sizes[13:].mean(axis=0)
        assert np.corrcoef(some, others)[0, 1] > 0.8

    def test_another_process_draws_the_same(self):
        script = """
import hashlib
from leap_tf.datasets import glyphs, open_dataset
drawings = b"".join(glyphs.draw(c, d).tobytes() for c in "ЖשA" for d in range(3))
print(hashlib.sha256(drawings).hexdigest())
"""
        printed = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        drawings = b"".join(glyphs.draw(c, d).tobytes() for c in "ЖשA" for d in range(3))
        assert printed.split()[-1] == hashlib.sha256(drawings).hexdigest()

    def test_nearest_neighbours_find_the_letter_often_but_not_always(self):
        features = np.stack([_all_drawings(character) for character in "ABCDEFGHIJKLMNOPQRST"])
        features = features[..., :104, :104].reshape(20, 20, 26, 4, 26, 4).mean(axis=(3, 5))
        known, unknown = features[:, :15].reshape(300, -1), features[:, 15:].reshape(100, -1)
        found = np.argmin(distance.cdist(unknown, known), axis=1) // 15
        assert 0.25 < np.mean(found == np.repeat(np.arange(20), 5)) < 0.95


class TestGeometry:
    def test_points_inside_stay(self):
        points = np.array([[10.0, 20.0], [90.0, 60.0]])
        np.testing.assert_allclose(glyphs.inside(points, border=4.0), points)

    def test_points_outside_are_moved_and_shrunk(self):
        points = np.array([[-20.0, 50.0], [130.0, 110.0]])
        moved = glyphs.inside(points, border=4.0)
        np.testing.assert_allclose(moved[:, 0], [4.0, 100.0])
        assert moved[1, 1] <= 100.0
        np.testing.assert_allclose(np.diff(moved, axis=0), np.diff(points, axis=0) * 96 / 150)

    def test_slant_leans_to_the_right_and_rotation_is_clockwise(self):
        top = np.array([[-1.0, 0.0]])
        assert (top @ glyphs.stance(slant=0.2, rotation=0.0, stretch=0.0))[0, 1] > 0
        assert (top @ glyphs.stance(slant=0.0, rotation=0.2, stretch=0.0))[0, 1] > 0
        wide = np.ones((1, 2)) @ glyphs.stance(slant=0.0, rotation=0.0, stretch=0.5)
        assert np.log(wide[0, 1] / wide[0, 0]) == pytest.approx(0.5)

    def test_what_is_close_together_is_bent_together(self):
        points = np.array([[0.0, 0.0], [0.01, 0.0], [3.0, 0.0]])
        moves = np.stack(
            [
                glyphs.bent(points, np.random.default_rng(seed), length=0.5, amount=0.1) - points
                for seed in range(400)
            ]
        )
        assert np.std(moves) == pytest.approx(0.1, rel=0.1)
        assert np.std(moves[:, 0] - moves[:, 1]) < 0.01
        assert np.std(moves[:, 0] - moves[:, 2]) > 0.12

    def test_a_pen_covers_the_pixels_within_its_radius(self):
        canvas = glyphs.ink(np.array([[50.0, 30.0], [20.0, 20.0]]), np.array([1.0, 0.4]))
        rows, columns = np.nonzero(canvas)
        assert set(zip(rows.tolist(), columns.tolist())) == {
            *((50, 30), (49, 30), (51, 30), (50, 29), (50, 31)),
            (20, 20),
        }


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Two builders that each prepared the same two alphabets, without a network."""

    def no_network(*_):
        raise AssertionError("Preparing the data set must not use the network.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "ALPHABETS", TWO_ALPHABETS)
        patch.setattr(socket.socket, "connect", no_network)
        builders = []
        for name in ("one", "two"):
            builder = tfds.builder("unicode_alphabets", data_dir=tmp_path_factory.mktemp(name))
            builder.download_and_prepare()
            builders.append(builder)
        return builders


class TestBuilder:
    def test_features_are_omniglots(self, tmp_path):
        ours = tfds.builder("unicode_alphabets", data_dir=tmp_path).info
        omniglots = tfds.builder("omniglot", data_dir=tmp_path).info
        assert ours.supervised_keys == omniglots.supervised_keys
        assert set(ours.features) == set(omniglots.features)
        for key, feature in ours.features.items():
            assert type(feature) is type(omniglots.features[key])
            assert feature.shape == omniglots.features[key].shape
            assert feature.dtype == omniglots.features[key].dtype

    def test_classes_are_named_in_the_order_of_the_scripts(self, tmp_path):
        features = tfds.builder("unicode_alphabets", data_dir=tmp_path).info.features
        assert features["alphabet"].names == list(ALPHABETS)
        assert features["label"].names == [
            f"{name}_{character}"
            for name, characters in ALPHABETS.items()
            for character in characters
        ]

    def test_two_builds_are_equal_to_the_byte(self, builds):
        # In files of records TFDS leaves the order of an example's features to protobuf, which
        # has another one in each process. So these are compared example by example.
        examples, other_files = zip(
            *((_encoded_examples(builder), _other_files(builder)) for builder in builds)
        )
        assert examples[0] == examples[1]
        assert len(examples[0]) == 5 * 20
        assert other_files[0] == other_files[1]
        assert {"features.json", "label.labels.txt"} <= set(other_files[0])

    def test_each_drawing_is_there_once_with_its_labels(self, builds):
        features = builds[0].info.features
        expected = {
            (name, number, f"{name}_{character}", glyphs.draw(character, drawer).tobytes())
            for name, characters in TWO_ALPHABETS.items()
            for number, character in enumerate(characters)
            for drawer in range(glyphs.DRAWERS)
        }
        found = []
        for example in tfds.as_numpy(builds[0].as_dataset(split="train")):
            image = example["image"]
            assert image.dtype == np.uint8
            assert np.all((image == 0) | (image == 255))
            assert np.all(image == image[:, :, :1])
            found.append(
                (
                    features["alphabet"].int2str(example["alphabet"]),
                    int(example["alphabet_char_id"]),
                    features["label"].int2str(example["label"]),
                    (image[:, :, 0] == 0).tobytes(),
                )
            )
        assert len(found) == 5 * 20
        assert set(found) == expected

    def test_two_processes_may_draw_at_the_same_time(self, builds, tmp_path, monkeypatch):
        target = tmp_path / "unicode_alphabets" / "1.0.0"
        generate = scripts.UnicodeAlphabets._generate_examples

        def overtaken(builder, *arguments):
            yield from generate(builder, *arguments)
            shutil.copytree(builds[0].data_path, target)  # another process ends first

        monkeypatch.setattr(scripts, "ALPHABETS", TWO_ALPHABETS)
        monkeypatch.setattr(scripts.UnicodeAlphabets, "_generate_examples", overtaken)
        drawn = open_dataset("unicode_alphabets", tmp_path)
        assert drawn.info.splits["train"].num_examples == 5 * 20
        assert [path.name for path in target.parent.iterdir()] == ["1.0.0"]

    def test_a_prepared_folder_is_enough_to_read_the_data(self, builds):
        reader = tfds.builder_from_directory(builds[0].data_path)
        assert reader.info.splits["train"].num_examples == 5 * 20
        assert reader.info.features["label"].names[-1] == "Hebrew_ב"


def _encoded_examples(builder):
    examples = builder.as_dataset(
        split="train",
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(add_tfds_id=True),
    )
    return [tuple(sorted(example.items())) for example in tfds.as_numpy(examples)]


def _other_files(builder):
    files = builder.data_path.iterdir()
    return {path.name: path.read_bytes() for path in files if "tfrecord" not in path.name}
