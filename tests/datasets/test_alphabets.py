"""Alphabets as tasks: splits, held-out drawings, rotations; on synthetic data and Omniglot."""

import numpy as np
import pytest

from leap_tf.datasets import (
    MissingDataError,
    alphabet_splits,
    alphabet_task,
    alphabets,
    open_dataset,
)
from tests.omniglot import OMNIGLOT, needs_omniglot


def marked_drawings(characters=4, drawings=6, alphabet=0):
    """Drawings that carry their identity: a block of ink whose length tells which it is."""
    made = {}
    for character in range(characters):
        images = np.full((drawings, 12, 12), 255, np.uint8)
        for drawing in range(drawings):
            number = (alphabet * characters + character) * drawings + drawing
            images[drawing].flat[: number + 1] = 0
        made[character] = images
    return made


@pytest.fixture
def made_up(monkeypatch):
    """A data set of eight alphabets; two have only three characters."""
    data = {
        f"script {index}": marked_drawings(3 if index in (2, 5) else 4, alphabet=index)
        for index in range(8)
    }
    monkeypatch.setattr(alphabets, "load_drawings", lambda dataset, data_dir: data)
    return data


def splits(**options):
    settings = {
        "train_alphabets": 3,
        "validation_alphabets": 2,
        "test_alphabets": 2,
        "characters": 4,
        "held_out_drawings": 2,
        "image_size": 6,
        "rotations": 4,
    }
    return alphabet_splits(**(settings | options))


def names(tasks):
    return [task.name for task in tasks]


@pytest.mark.usefixtures("made_up")
def test_splits_are_disjoint_and_follow_the_seed():
    one, again, other = splits(seed=1), splits(seed=1), splits(seed=2)
    chosen = [*names(one.train.tasks), *names(one.validation), *names(one.test)]
    assert len(set(chosen)) == 7
    assert chosen == [*names(again.train.tasks), *names(again.validation), *names(again.test)]
    assert chosen != [*names(other.train.tasks), *names(other.validation), *names(other.test)]


@pytest.mark.usefixtures("made_up")
def test_held_out_alphabets_do_not_depend_on_how_many_are_trained_on():
    small, large = splits(train_alphabets=2), splits(train_alphabets=4)
    assert names(small.test) == names(large.test)
    assert names(small.validation) == names(large.validation)
    assert names(large.train.tasks)[:2] == names(small.train.tasks)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("seed", range(5))
def test_small_alphabets_are_only_trained_on(seed):
    held_out = {*names(splits(seed=seed).validation), *names(splits(seed=seed).test)}
    assert held_out.isdisjoint({"script 2", "script 5"})


def test_the_order_of_files_does_not_matter(made_up):
    forward = splits()
    reordered = {name: made_up[name] for name in reversed(made_up)}
    made_up.clear()
    made_up.update(reordered)
    backward = splits()
    for a, b in zip(forward.test, backward.test, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.train[0], b.train[0])
        np.testing.assert_array_equal(a.test[1], b.test[1])


@pytest.mark.usefixtures("made_up")
def test_too_few_alphabets_are_named():
    with pytest.raises(ValueError, match="has 8 alphabets, 6 of them with at least 4"):
        splits(train_alphabets=6)


def test_held_out_drawings_are_never_trained_on():
    task = alphabet_task(
        "x",
        marked_drawings(),
        seed=3,
        characters=4,
        held_out_drawings=2,
        image_size=6,
        rotations=1,
    )
    trained = {image.tobytes() for image in task.train[0]}
    held_out = {image.tobytes() for image in task.test[0]}
    assert trained.isdisjoint(held_out)
    assert len(task.train[0]) == 4 * 4
    assert len(task.test[0]) == 4 * 2
    assert np.bincount(task.train[1]).tolist() == [4] * 4
    assert np.bincount(task.test[1]).tolist() == [2] * 4


def test_only_as_many_characters_as_asked_and_labels_without_gaps():
    task = alphabet_task("x", marked_drawings(4), 0, characters=3, image_size=6, rotations=1)
    assert sorted(set(task.train[1])) == [0, 1, 2]
    assert set(task.test[1]) == {0, 1, 2}


def test_more_held_out_drawings_than_there_are_is_refused():
    with pytest.raises(ValueError, match="Cannot hold out 6 of the 6 drawings"):
        alphabet_task("x", marked_drawings(), 0, held_out_drawings=6)


def test_rotations_turn_about_the_centre():
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0:2, 0:2] = 1.0  # one pixel of the result, in the corner
    turned = alphabets.rotate(image, 4)
    assert turned.shape == (4, 4, 4)
    assert [tuple(np.argwhere(quarter)[0]) for quarter in turned] == [
        (0, 0), (3, 0), (3, 3), (0, 3),
    ]  # fmt: skip
    np.testing.assert_array_equal(alphabets.rotate(image, 1), turned[:1])


def test_rotations_between_quarters_continue_the_same_way_round():
    image = np.zeros((1, 80, 80), np.float32)
    image[0, 36:44, 60:70] = 1.0  # to the right of the centre
    angles = []
    for turned in alphabets.rotate(image, 8):
        row, column = (np.argwhere(turned) * turned[turned > 0][:, None]).sum(0) / turned.sum()
        angles.append(round(float(np.degrees(np.arctan2(19.5 - row, column - 19.5)))) % 360)
    assert sorted(angles) == pytest.approx([0, 45, 90, 135, 180, 225, 270, 315], abs=1)


@pytest.mark.parametrize("rotations", [0, 6, -4])
def test_rotations_that_cannot_be_made_are_refused(rotations):
    with pytest.raises(ValueError, match="1 or a multiple of 4"):
        alphabets.rotate(np.zeros((1, 8, 8), np.float32), rotations)


def bar_of_ink(images, size):
    """Images with a horizontal bar right of the centre, twice as wide as high."""
    made = np.zeros((images, size, size), np.float32)
    made[:, size // 2 - size // 16 : size // 2 + size // 16, size // 2 : 3 * size // 4] = 1.0
    return made


def test_a_transform_scales_turns_and_shifts():
    image = bar_of_ink(4, 160)
    angles = np.array([0, 0, np.pi / 2, np.pi / 2])
    shifts = np.array([[0, 16, 0, 16], [0, -8, 0, -8]])
    made = alphabets._transform(image, angles, np.array([1.0, 0.8, 1.0, 0.8]), shifts)
    ink = made.sum((1, 2)) / image[0].sum()
    np.testing.assert_allclose(ink, [1, 0.8**2, 1, 0.8**2], rtol=0.02)
    rows, columns = (
        (made * np.arange(160).reshape(shape)).sum((1, 2)) / made.sum((1, 2))
        for shape in ((-1, 1), (1, -1))
    )
    # The bar's centre is 20 right of the image's: 16 after scaling; a quarter turn puts it above.
    np.testing.assert_allclose(columns - 79.5, [20, 32, 0, 16], atol=0.5)
    np.testing.assert_allclose(rows - 79.5, [0, -8, -20, -24], atol=0.5)


def test_random_copies_are_within_the_papers_ranges_and_follow_the_seed():
    image = bar_of_ink(50, 160)
    one, again, other = (
        alphabets.random_affine(image, 3, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert one.shape == (150, 80, 80)
    assert (one != other).any(axis=(1, 2)).all()
    assert len({copy.tobytes() for copy in one}) == 150
    ink = 4 * one.sum((1, 2)) / image[0].sum()
    assert 0.6 < ink.min() < 0.8
    assert 1.3 < ink.max() < 1.5
    with pytest.raises(ValueError, match="at least 1"):
        alphabets.random_affine(image, 0, np.random.default_rng(0))


def test_affine_tasks_have_as_many_copies_and_keep_held_out_drawings_apart():
    options = {"characters": 4, "held_out_drawings": 2, "image_size": 6}
    turned, affine = (
        alphabet_task("x", marked_drawings(), 3, rotations=8, augmentation=name, **options)
        for name in ("rotations", "affine")
    )
    assert affine.train[0].shape == turned.train[0].shape == (8 * 16, 6, 6, 1)
    np.testing.assert_array_equal(affine.test[1], turned.test[1])
    assert (affine.train[0] != turned.train[0]).any()
    with pytest.raises(ValueError, match="'rotations' or 'affine'. Received: 'shear'"):
        alphabet_task("x", marked_drawings(), 3, augmentation="shear", **options)


def test_missing_data_names_both_ways_to_get_it(tmp_path):
    with pytest.raises(MissingDataError, match=r"tfds.load\('omniglot'.*or point --data_dir"):
        open_dataset("omniglot", tmp_path)
    with pytest.raises(ValueError, match="knows no data set named 'omniglott'"):
        open_dataset("omniglott", tmp_path)


@needs_omniglot
def test_omniglot_has_the_papers_numbers():
    drawings = alphabets.load_drawings("omniglot", str(OMNIGLOT))
    assert len(drawings) == 50
    assert sum(len(characters) for characters in drawings.values()) == 1623
    assert {len(d) for characters in drawings.values() for d in characters.values()} == {20}
    assert sum(len(characters) < 20 for characters in drawings.values()) == 4


@needs_omniglot
def test_omniglot_tasks_have_the_papers_protocol():
    made = alphabet_splits("omniglot", OMNIGLOT, train_alphabets=30, rotations=4)
    assert (len(made.train.tasks), len(made.validation), len(made.test)) == (30, 10, 10)
    for task in (*made.validation, *made.test):
        assert task.train[0].shape == (4 * 300, 28, 28, 1)
        assert task.test[0].shape == (4 * 100, 28, 28, 1)
        trained = {image.tobytes() for image in task.train[0]}
        assert trained.isdisjoint(image.tobytes() for image in task.test[0])
    inputs, labels = next(made.test[0].train_batches(0).as_numpy_iterator())
    assert inputs.shape == (20, 28, 28, 1)
    assert inputs.dtype == np.float32
    assert inputs.min() == 0.0  # paper
    assert 0.02 < inputs.mean() < 0.2  # ink is 1 and rare
    assert set(labels) <= set(range(20))
