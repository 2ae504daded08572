"""Data sets as tasks: parts and their roles, padding and normalization; synthetic and real data."""

import numpy as np
import pytest
import tensorflow as tf

from leap_tf import array_tasks
from leap_tf.datasets import multi_cv, multi_cv_splits
from leap_tf.datasets.multi_cv import NORMALIZATIONS, OBTAINABLE, make_normalizer, split_by_class

MADE_UP = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "gtsrb": (32, 32, 3)}
CLASSES = {"mnist": 2, "cifar10": 3, "gtsrb": 5}


@pytest.fixture
def made_up(monkeypatch):
    """Three data sets of 20 training and 4 test images a class, each of which is one of a kind."""

    def load_images(name, split, data_dir):
        each = {"train": 20, "test": 4}[split]
        labels = np.tile(np.arange(CLASSES[name]), each)
        images = np.zeros((len(labels), *MADE_UP[name]), np.uint8)
        images[:, 0, 0, 0] = np.arange(len(labels)) + 1  # no two alike in a split
        images[:, 1, 1, 0] = {"train": 1, "test": 2}[split]
        return images, labels.astype(np.int64)

    class Builder:
        def __init__(self, name):
            self.info = self
            self.features = {"label": self}
            self.num_classes = CLASSES[name]

    monkeypatch.setattr(multi_cv, "load_images", load_images)
    monkeypatch.setattr(multi_cv, "open_dataset", lambda name, data_dir: Builder(name))


def splits(**options):
    return multi_cv_splits(**({"datasets": tuple(MADE_UP), "held_out": "gtsrb"} | options))


def pixels(batches):
    """The images of a finite stream, as bytes."""
    return [image.tobytes() for inputs, _ in batches.as_numpy_iterator() for image in inputs]


def labels_of(batches):
    return np.concatenate([targets for _, targets in batches.as_numpy_iterator()])


def training_epoch(task, seed=0):
    return task.train_batches(seed).unbatch().take(len(task.train[0])).batch(7)


@pytest.mark.usefixtures("made_up")
def test_the_held_out_data_set_is_the_only_test_task():
    made = splits()
    assert [task.name for task in made.train.tasks] == ["mnist", "cifar10"]
    assert [task.name for task in made.validation] == ["mnist", "cifar10"]
    assert [task.name for task in made.test] == ["gtsrb"]
    assert [task.classes for task in (*made.validation, *made.test)] == [2, 3, 5]
    assert [task.classes for task in made.train.tasks] == [2, 3]


@pytest.mark.usefixtures("made_up")
def test_the_three_parts_share_no_image_and_keep_the_classes_in_proportion():
    for task in (*splits().train.tasks, *splits().test):
        training, validation, test = (
            training_epoch(task),
            task.validation_batches(),
            task.test_batches(),
        )
        sets = [set(pixels(part)) for part in (training, validation, test)]
        assert [len(images) for images in sets] == [n * task.classes for n in (17, 3, 4)]
        assert len(set.union(*sets)) == 24 * task.classes
        for part, each in ((training, 17), (validation, 3), (test, 4)):
            assert np.bincount(labels_of(part)).tolist() == [each] * task.classes


@pytest.mark.usefixtures("made_up")
def test_meta_validation_evaluates_training_tasks_on_their_validation_part():
    made = splits()
    for task, evaluated in zip(made.train.tasks, made.validation, strict=True):
        assert pixels(evaluated.test_batches()) == pixels(task.validation_batches())
        assert pixels(evaluated.validation_batches()) == pixels(task.validation_batches())
        for one, other in zip(task.train_batches(3).take(4), evaluated.train_batches(3).take(4)):
            np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.usefixtures("made_up")
def test_rates_can_be_chosen_without_the_test_split():
    (final,), (choosing,) = splits().test, splits(evaluate_on="validation").test
    assert (choosing.name, choosing.classes) == ("gtsrb", 5)
    assert pixels(choosing.test_batches()) == pixels(final.validation_batches())
    assert set(pixels(choosing.test_batches())).isdisjoint(pixels(final.test_batches()))


@pytest.mark.usefixtures("made_up")
def test_the_seed_decides_and_other_data_sets_do_not():
    one, again, other = splits(seed=1), splits(seed=1), splits(seed=2)
    fewer = splits(seed=1, datasets=("cifar10", "gtsrb"))
    for made, same in ((again, True), (other, False), (fewer, True)):
        validation = pixels(made.test[0].validation_batches())
        assert (validation == pixels(one.test[0].validation_batches())) == same
        batch, expected = (next(iter(s.test[0].train_batches(0)))[0] for s in (made, one))
        assert np.array_equal(batch, expected) == same


@pytest.mark.usefixtures("made_up")
def test_a_larger_share_contains_the_smaller():
    small, large = splits(share=0.5).test[0], splits(share=0.8).test[0]
    taken = [
        set(pixels(training_epoch(task))) | set(pixels(task.validation_batches()))
        for task in (small, large)
    ]
    assert [len(images) for images in taken] == [10 * 5, 16 * 5]
    assert taken[0] < taken[1]
    assert pixels(small.test_batches()) == pixels(large.test_batches())


@pytest.mark.usefixtures("made_up")
def test_batches_have_the_sizes_asked_for():
    task = splits(batch_size=8, test_batch_size=6).test[0]
    assert next(iter(task.train_batches(0)))[0].shape == (8, 32, 32, 3)
    assert [len(x) for x, _ in task.test_batches().as_numpy_iterator()] == [6, 6, 6, 2]
    assert [len(x) for x, _ in task.validation_batches().as_numpy_iterator()] == [6, 6, 3]


@pytest.mark.usefixtures("made_up")
def test_opening_a_task_again_traces_nothing():
    def open_all():
        for task in (*splits().train.tasks, *splits().validation, *splits().test):
            for batches in (task.train_batches(1), task.validation_batches(), task.test_batches()):
                assert batches.element_spec[0].shape[1:] == (32, 32, 3)

    open_all()
    before = array_tasks._training_pipeline.cache_info(), array_tasks._plain_pipeline.cache_info()
    open_all()
    after = array_tasks._training_pipeline.cache_info(), array_tasks._plain_pipeline.cache_info()
    assert [cache.misses for cache in after] == [cache.misses for cache in before]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"held_out": "mnist", "datasets": ("cifar10", "gtsrb")}, "must be one of the datasets"),
        ({"held_out": "mnist", "datasets": ("mnist",)}, "another must be left to train on"),
        ({"datasets": ("mnist", "mnist", "gtsrb")}, "named twice"),
        ({"datasets": ("mnist", "imagenet")}, r"Unknown data sets \['imagenet'\]"),
        ({"evaluate_on": "train"}, "evaluate_on must be 'test' or 'validation'. Received: 'train'"),
        ({"share": 0.0}, "share in"),
        ({"validation_share": 1.0}, "validation_share must lie between 0 and 1"),
        ({"share": 0.05}, "Class 0 has 20 examples, of which 1 are used, 0 of them for validation"),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_arguments_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        splits(**options)


def test_classes_of_different_sizes_are_split_in_the_same_proportion():
    labels = np.repeat([0, 1, 7], [20, 100, 40])
    first, second = split_by_class(labels, np.random.default_rng(0), 0.15)
    assert np.bincount(labels[second])[[0, 1, 7]].tolist() == [3, 15, 6]
    assert sorted([*first, *second]) == list(range(160))
    assert labels[second].tolist() != sorted(labels[second])  # batches of it are mixed


def test_grey_images_are_padded_with_zeros_and_then_normalised():
    images = np.zeros((1, 28, 28, 1), np.uint8)
    images[0, 0, 0] = 255
    images[0, 27, 5] = 51
    prepared = make_normalizer(NORMALIZATIONS["mnist"])(images).numpy()
    assert prepared.shape == (1, 32, 32, 3)
    assert prepared.dtype == np.float32
    paper = -0.1 / 0.2752
    expected = np.full((32, 32), paper)
    expected[2, 2] = 0.9 / 0.2752
    expected[29, 7] = (0.2 - 0.1) / 0.2752
    for channel in range(3):
        np.testing.assert_allclose(prepared[0, :, :, channel], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 33, 32, 3), (1, 32, 48, 1)])
def test_larger_images_are_refused_and_not_cut(shape):
    with pytest.raises(ValueError, match="do not fit into 32×32"):
        make_normalizer(NORMALIZATIONS["svhn_cropped"])(np.zeros(shape, np.uint8))


def test_channels_are_normalised_each_by_its_own_numbers():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1, 4, 5] = (255, 102, 0)
    prepared = make_normalizer(NORMALIZATIONS["svhn_cropped"])(images).numpy()
    assert prepared.shape == images.shape
    dark = [-0.4377 / 0.198, -0.4438 / 0.201, -0.4728 / 0.197]
    np.testing.assert_allclose(prepared[0, 9, 9], dark, rtol=1e-6)
    bright = [(1 - 0.4377) / 0.198, (0.4 - 0.4438) / 0.201, -0.4728 / 0.197]
    np.testing.assert_allclose(prepared[1, 4, 5], bright, rtol=1e-5)


def test_each_data_set_has_one_function_that_prepares_it():
    for numbers in NORMALIZATIONS.values():
        assert make_normalizer(numbers) is make_normalizer(numbers)
    assert make_normalizer(NORMALIZATIONS["mnist"]) is not make_normalizer(NORMALIZATIONS["gtsrb"])


def test_real_subsets_have_the_parts_that_were_asked_for(tfds_subset):
    made = multi_cv_splits(seed=3, data_dir=tfds_subset, held_out="cifar100")
    assert [task.name for task in made.test] == ["cifar100"]
    tasks = {task.name: task for task in (*made.train.tasks, *made.test)}
    assert sorted(tasks) == sorted(OBTAINABLE)
    expected = {
        "mnist": (10, 510, 90, 200),
        "cifar100": (100, 51, 9, 20),
        "gtsrb": (43, 118, 21, 46),
    }
    for name, (classes, *each) in expected.items():
        task = tasks[name]
        parts = (
            task.train[1],
            labels_of(task.validation_batches()),
            labels_of(task.test_batches()),
        )
        assert task.classes == classes
        for labels, count in zip(parts, each):
            assert np.bincount(labels).tolist() == [count] * classes
        assert task.train[0].dtype == np.uint8
        inputs, targets = next(iter(task.train_batches(0)))
        assert (inputs.shape, inputs.dtype) == ((32, 32, 32, 3), tf.float32)
        assert targets.dtype == tf.int64
    again = multi_cv_splits(seed=3, data_dir=tfds_subset, held_out="mnist").train.tasks
    (cifar100,) = (task for task in again if task.name == "cifar100")
    np.testing.assert_array_equal(cifar100.train[0], tasks["cifar100"].train[0])


@pytest.mark.parametrize("name", OBTAINABLE)
def test_real_images_are_about_normal_after_normalising(tfds_subset, name):
    task = multi_cv.data_set_task(name, data_dir=tfds_subset, test_batch_size=2000)
    images = next(iter(task.test_batches()))[0].numpy()
    # notMNIST's numbers are of images without the padding. SVHN's subset is of its test split,
    # which is more contrasty; CIFAR-100 has the numbers of CIFAR-10.
    assert abs(images.mean()) < {"not_mnist": 0.3}.get(name, 0.15)
    assert 0.9 < images.std() < 1.2
