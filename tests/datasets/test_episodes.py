"""Few-shot episodes: what is drawn, from which classes, and what evaluation says of it."""

import itertools
import zlib

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import leap_tf
from leap_tf.datasets import Episodes, episode_splits, episodes, load_classes
from tests.omniglot import OMNIGLOT, needs_omniglot


def marked(sizes=(6, 9, 7, 8, 6, 10), groups=None):
    """Classes whose examples say what they are: [class, number within the class]."""
    inputs = [[c, n] for c, size in enumerate(sizes) for n in range(size)]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    classes = load_classes((np.array(inputs, "float32"), labels))
    if groups:
        classes = leap_tf.datasets.Classes(classes.inputs, classes.sizes, classes.names, groups)
    return classes


def drawn(distribution, index):
    """Returns inputs and labels of support and query set as arrays."""
    return [(inputs.numpy(), labels.numpy()) for inputs, labels in distribution.draw(index)]


@settings(deadline=None, max_examples=25)
@given(
    ways=st.integers(1, 6),
    shots=st.integers(1, 3),
    queries=st.integers(1, 3),
    index=st.integers(0, 2**62 - 1),
)
def test_an_episode_has_distinct_classes_and_examples(ways, shots, queries, index):
    support, query = drawn(Episodes(marked(), ways, shots, queries), index)
    assert support[1].tolist() == np.repeat(range(ways), shots).tolist()
    assert query[1].tolist() == np.repeat(range(ways), queries).tolist()
    examples = np.concatenate([support[0], query[0]])
    assert len({tuple(example) for example in examples}) == ways * (shots + queries)
    of_label = {(label, each[0]) for part in (support, query) for each, label in zip(*part)}
    assert len(of_label) == ways  # a label stands for one class, and each for another
    assert len({number for _, number in of_label}) == ways


def test_all_classes_and_examples_are_drawn_about_equally_often():
    distribution = Episodes(marked(sizes=(6, 12, 6, 6)), 2, 1, 2)
    support = np.concatenate([drawn(distribution, index)[0][0] for index in range(1500)])
    of_class = np.bincount(support[:, 0].astype(int), minlength=4)
    assert np.all(np.abs(of_class - 750) < 4 * np.sqrt(750 * 0.5))
    of_example = np.bincount(support[support[:, 0] == 1, 1].astype(int), minlength=12)
    assert np.all(np.abs(of_example / of_example.sum() - 1 / 12) < 0.04)


def test_seed_and_index_decide_an_episode():
    one, same, other = (Episodes(marked(), 3, 2, 2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_equal(drawn(one, 7), drawn(same, 7))
    assert not np.array_equal(drawn(one, 7)[0][0], drawn(one, 8)[0][0])
    assert not np.array_equal(drawn(one, 7)[0][0], drawn(other, 7)[0][0])
    rng = np.random.default_rng
    sampled = [[task.index for task in one.sample(3, rng(seed))] for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_data_set_has_the_same_episodes():
    distribution = Episodes(marked(), 3, 1, 2, seed=5)
    for index, element in enumerate(distribution.as_dataset().take(4).as_numpy_iterator()):
        np.testing.assert_equal([tuple(part) for part in element], drawn(distribution, index))


def test_quarter_turns_are_classes_of_their_own():
    images = np.random.default_rng(0).integers(0, 255, (6, 5, 5, 2)).astype(np.uint8)
    source = load_classes((images, [0, 0, 0, 1, 1, 1]))
    distribution = Episodes(source, 8, 1, 2, quarter_turns=True)
    (support, _), (query, _) = drawn(distribution, 3)
    known = {
        (np.rot90(image, turn).tobytes()): (index // 3, turn)
        for index, image in enumerate(images)
        for turn in range(4)
    }
    pixels = np.round(np.concatenate([support, query]) * 255).astype(np.uint8)
    labels = np.concatenate([np.arange(8), np.repeat(np.arange(8), 2)])
    found = [(label, known[image.tobytes()]) for label, image in zip(labels, pixels)]
    assert len(set(found)) == 8  # one class and turn for each label
    assert {turned for _, turned in found} == set(itertools.product(range(2), range(4)))


@pytest.mark.parametrize(
    ("turns", "index", "sums"),
    [
        (False, 7, (1301185764, 1883379696)),
        (False, 2**40, (3038737953, 1297544897)),
        (True, 7, (3660466936, 3979298693)),
        (True, 2**40, (591219681, 145924566)),
    ],
)
def test_episodes_stay_the_same_from_version_to_version(turns, index, sums):
    """CRC-32s of support and query images, recorded when rotations were made at drawing."""
    images = (np.arange(20 * 5 * 5 * 2) % 251).astype(np.uint8).reshape(20, 5, 5, 2)
    source = load_classes((images, np.repeat([0, 1, 2], [5, 8, 7])))
    distribution = Episodes(source, 3, 1, 2, quarter_turns=turns, seed=4)
    assert tuple(zlib.crc32(inputs.tobytes()) for inputs, _ in drawn(distribution, index)) == sums


def test_classes_of_an_episode_can_be_of_one_group():
    groups = ("a", "b", "a", "b", "b", "a")
    distribution = Episodes(marked(groups=groups), 3, 1, 1, within_groups=True)
    found = set()
    for index in range(20):
        classes = drawn(distribution, index)[0][0][:, 0].astype(int)
        found.add("".join(sorted({groups[number] for number in classes})))
    assert found == {"a", "b"}


def test_batches_of_an_episode():
    whole, parts = (Episodes(marked(), 2, 3, 2, batch_size=size).first(3)[2] for size in (None, 4))
    support, query = (part[0].tolist() for part in drawn(whole.episodes, 2))
    for inputs, _ in whole.train_batches(seed=1).take(3).as_numpy_iterator():
        assert inputs.tolist() == support
    batches = [each.tolist() for each, _ in parts.train_batches(1).take(6).as_numpy_iterator()]
    assert {len(batch) for batch in batches} == {4}
    stream = list(itertools.chain.from_iterable(batches))
    epochs = [stream[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == sorted(support) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) > 1  # the order changes
    again = [each.tolist() for each, _ in parts.train_batches(1).take(6).as_numpy_iterator()]
    other = [each.tolist() for each, _ in parts.train_batches(2).take(6).as_numpy_iterator()]
    assert batches == again != other
    gathered = whole.few_batches(1, batches=3), parts.few_batches(1, batches=6)
    assert all(gathered[0].at(step)[0].numpy().tolist() == support for step in range(3))
    assert [gathered[1].at(step)[0].numpy().tolist() for step in range(6)] == batches
    [(held_out, labels)] = whole.test_batches().as_numpy_iterator()
    assert (held_out.tolist(), labels.tolist()) == (query, [0, 0, 1, 1])
    asked = [each.tolist() for each, _ in whole.query_batches(0).take(2).as_numpy_iterator()]
    assert asked == [query, query]


def test_a_list_of_episodes_holds_few_of_them_and_traces_once(monkeypatch):
    traces = []
    draw = Episodes._draw
    monkeypatch.setattr(Episodes, "_draw", lambda *key: traces.append(1) or draw(*key))
    tasks = Episodes(marked(), 3, 2, 2).first(60)
    for task in tasks:
        next(iter(task.train_batches(seed=0)))
        next(iter(task.test_batches()))
    assert len(traces) == 1
    cache = tasks[0].episodes.draw.cache_info()
    assert (cache.currsize, cache.misses) == (16, 60)  # a pair of parts is drawn once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 4, "queries": 4}, r"needs 8 examples .*3 of the 6 classes .*'0' \(6\), '2'"),
        ({"ways": 7}, "6 classes for episodes of 7 ways"),
        ({"ways": 0}, "ways must be"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"quarter_turns": True}, r"square images .*\[46, 2\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Episodes(marked(), **({"ways": 2, "shots": 1, "queries": 1} | arguments))


def test_groups_with_too_few_classes_are_refused():
    classes = marked(groups=("a", "b", "a", "b", "b", "b"))
    with pytest.raises(ValueError, match=r"Episodes of 3 ways within groups .*'a' \(2\)"):
        Episodes(classes, 3, 1, 1, within_groups=True)


class TestSplits:
    def test_parts_share_no_class_and_follow_the_seed(self):
        source = np.zeros((40, 2), "float32"), np.repeat(np.arange(20), 2)
        parts = {
            (part, seed): episodes(
                source, 2, 1, 1, part=part, validation_classes=5, test_classes=6, seed=seed
            ).classes.names
            for part in ("train", "validation", "test")
            for seed in (0, 1)
        }
        assert [len(parts[part, 0]) for part in ("train", "validation", "test")] == [9, 5, 6]
        assert len(set(parts["train", 0] + parts["validation", 0] + parts["test", 0])) == 20
        assert parts["test", 0] != parts["test", 1]

    def test_parts_by_name_and_by_group(self):
        test = episodes(marked(), 2, 1, 1, part="test", test_classes=["4", "1"]).classes
        assert (test.names, test.sizes.tolist()) == (("1", "4"), [9, 6])
        assert set(test.inputs[:, 0]) == {1.0, 4.0}
        classes = marked(groups=("a", "b", "a", "b", "c", "c"))
        train = episodes(
            classes, 2, 1, 1, part="train", validation_classes=1, test_classes=["c"],
            within_groups=True,
        )  # fmt: skip
        assert set(train.classes.groups) in ({"a"}, {"b"})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"test_classes": ["9"]}, "no class '9'. There are 6"),
            ({"test_classes": ["1"], "validation_classes": ["1"]}, "'1' is given twice"),
            ({"test_classes": 7}, "7 classes cannot be the part 'test': 6 are left"),
            ({"part": "tset"}, "part must be"),
            ({"part": None, "test_classes": 2}, "Say which part of the classes to draw from"),
            ({"test_classes": "12"}, "test_classes must be a number or a list of names"),
            ({"within_groups": True}, "within_groups needs classes in groups"),
        ],
    )
    def test_impossible_splits_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            episodes(marked(), 2, 1, 1, **({"part": "test"} | arguments))


class TestSources:
    def test_arrays_and_data_sets(self):
        inputs, labels = np.arange(12.0).reshape(6, 2), np.array(list("cbacba"))
        dataset = tf.data.Dataset.from_tensor_slices((inputs, labels))
        for source in ((inputs, labels), dataset, dataset.batch(4)):
            classes = load_classes(source)
            assert (classes.names, classes.sizes.tolist()) == (("a", "b", "c"), [2, 2, 2])
            assert classes.inputs[:, 0].tolist() == [4.0, 10.0, 2.0, 8.0, 0.0, 6.0]
            assert classes.groups == ("", "", "")

    def test_a_folder_of_images_with_and_without_groups(self, tmp_path):
        for group, character, number in itertools.product("XY", "ab", range(3)):
            folder = tmp_path / group / character
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((4 + number, 4, 3), 40 * number, np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        classes = load_classes(tmp_path, image_size=2)
        assert classes.names == ("X/a", "X/b", "Y/a", "Y/b")
        assert classes.groups == ("X", "X", "Y", "Y")
        assert classes.inputs.shape == (12, 2, 2, 3)
        assert classes.inputs[:3, 0, 0, 0].tolist() == [0, 40, 80]
        assert load_classes(f"{tmp_path}/X", image_size=2).names == ("a", "b")
        with pytest.raises(
            ValueError, match=r"differ: \(4, 4, 3\), \(6, 4, 3\).*Give an image_size"
        ):
            load_classes(tmp_path)

    def test_hidden_files_are_left_out_and_unreadable_ones_named(self, tmp_path):
        for name in ("a/1.png", "a/.ipynb_checkpoints/1.png", "b/1.png", "b/2.webp", ".c/1.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
        classes = load_classes(tmp_path)
        assert (classes.names, classes.sizes.tolist()) == (("a", "b"), [1, 2])
        assert classes.groups == ("", "")
        PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b/3.png")
        with pytest.raises(ValueError, match=r"\(2, 2, 1\), \(2, 2, 3\).*convert files"):
            load_classes(tmp_path, image_size=2)
        (tmp_path / "b/3.png").write_bytes(b"")
        with pytest.raises(ValueError, match="cannot read the image .*b/3.png"):
            load_classes(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "linked").symlink_to(tmp_path / "a")
        with pytest.raises(ValueError, match=r"folders without images .*\['empty', 'linked'\]"):
            load_classes(tmp_path)

    @pytest.mark.parametrize("missing", [None, np.nan])
    def test_missing_labels_are_refused(self, missing):
        labels = np.array(["a", missing, "b"], object)
        for each in (labels, np.array([1.0, np.nan, 2.0])):
            with pytest.raises(ValueError, match="Some labels are missing"):
                load_classes((np.zeros((3, 2)), each))

    def test_classes_are_named_by_numbers_too(self):
        source = np.zeros((12, 2), "float32"), np.repeat(np.arange(6), 2)
        chosen = episodes(source, 2, 1, 1, part="test", test_classes=np.array([4, 5]))
        assert chosen.classes.names == ("4", "5")
        drawn = episodes(source, 2, 1, 1, part="test", test_classes=np.int64(3))
        assert len(drawn.classes.names) == 3

    def test_elements_of_a_data_set(self):
        examples = tf.data.Dataset.from_tensor_slices((np.zeros((4, 2)), [0, 1, 0, 1]))
        classes = load_classes(examples.batch(2, drop_remainder=True), batched=True)
        assert classes.sizes.tolist() == [2, 2]
        with pytest.raises(ValueError, match="as_supervised=True"):
            load_classes(examples.map(lambda x, y: {"image": x, "label": y}))

    def test_a_tfds_data_set_without_groups(self, tfds_subset):
        classes = load_classes("cifar100", data_dir=tfds_subset)
        assert len(classes.names) == 100
        assert {"apple", "wolf"} < set(classes.names)
        assert classes.inputs.shape[1:] == (32, 32, 3)

    @needs_omniglot
    def test_omniglot_has_alphabets_as_groups(self):
        classes = load_classes("omniglot", data_dir=OMNIGLOT, image_size=28)
        assert (len(classes.names), len(set(classes.groups))) == (1623, 50)
        assert set(classes.sizes) == {20}
        assert classes.inputs.shape == (32460, 28, 28, 1)
        assert 0.02 < classes.inputs.mean() / 255 < 0.15  # little ink on paper, which is 0

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            (3, TypeError, "int is no source of episodes"),
            ("./no/such/folder", ValueError, "no folder no/such/folder"),
            ("no_such_folder", ValueError, "path of a folder needs a separator: './no_such"),
            ((np.zeros((3, 2)), [0, 1]), ValueError, "one label for each example"),
        ],
    )
    def test_what_is_no_source(self, source, error, message):
        with pytest.raises(error, match=message):
            load_classes(source)


def trainer(learner, **evaluation):
    keras.utils.set_random_seed(0)
    return leap_tf.MetaTrainer(
        leap_tf.conv_net((8, 8, 1), classes=3, filters=8, blocks=2, strided=True, average=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.optimizers.SGD(0.4),
        keras.optimizers.Adam(0.01),
        learner=learner,
        steps_per_task=2,
        meta_batch_size=4,
        evaluation=leap_tf.EvaluationConfig(**evaluation),
    )


@pytest.fixture(scope="module")
def bars():
    """Episodes of images with a bright stroke, whose place is the class, in noise."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 120, (12 * 12, 8, 8, 1))
    labels = np.repeat(np.arange(12), 12)
    rows, columns = labels % 6, labels // 6
    images[np.arange(144), rows, 4 * columns] += 120
    images[np.arange(144), rows + 1, 4 * columns + 1] += 120
    source = images.astype(np.uint8), labels
    return episode_splits(
        source, ways=3, shots=2, queries=4, validation_classes=4, test_classes=4,
        validation_episodes=1, test_episodes=12, image_size=None,
    )  # fmt: skip


def test_both_figures_and_errors_by_steps(bars):
    both = trainer(leap_tf.MAML(), transductive="both", held_out_steps=[1, 2]).evaluate(
        bars.test, 3
    )
    inductive, earlier = (trainer(leap_tf.MAML()).evaluate(bars.test, steps) for steps in (3, 2))
    transductive = trainer(leap_tf.MAML(), transductive=True).evaluate(bars.test, 3)
    assert both.error == inductive.error
    assert both.mean_metric("error_after_2") == pytest.approx(earlier.error, abs=1e-7)
    assert both.mean_metric("transductive_error") == pytest.approx(transductive.error, abs=1e-7)
    assert {"error_after_1", "transductive_error_after_1"} < set(both.tasks[0].metrics)
    with pytest.raises(ValueError, match=r"held_out_steps has \[2\], and the evaluation makes 2"):
        trainer(leap_tf.MAML(), held_out_steps=[2]).evaluate(bars.test, 2)
    with pytest.raises(ValueError, match='True, False or "both"'):
        leap_tf.EvaluationConfig(transductive="neither")


def test_the_interval_of_a_mean():
    def task(error):
        return leap_tf.TaskEvaluation(
            "task", error=error, loss=0.0, examples=1, training_errors=np.zeros(1),
            training_losses=np.zeros(1), path_length=0.0, path_energy=0.0, parameters=1,
            finite=True, metrics={"other": 2 * error},
        )  # fmt: skip

    evaluation = leap_tf.Evaluation(tuple(map(task, (0.1, 0.2, 0.6))))
    # s² = (0.04 + 0.01 + 0.09) / 2 = 0.07
    assert evaluation.interval() == pytest.approx(1.96 * np.sqrt(0.07 / 3))
    assert evaluation.interval("other") == pytest.approx(2 * evaluation.interval())
    assert np.isnan(leap_tf.Evaluation((task(0.1),)).interval())


def test_a_number_of_episodes_is_sampled_by_the_seed_alone(bars):
    one = trainer(leap_tf.NoMetaLearning())
    found = one.evaluate(bars.train, count=5)
    one.fit(bars.train, 1, verbose=False)
    assert [task.name for task in one.evaluate(bars.train, count=5).tasks] == [
        task.name for task in found.tasks
    ]
    assert len({task.name for task in found.tasks}) == 5
    with pytest.raises(TypeError, match="samples tasks without end.*count=20"):
        one.evaluate(bars.train)
    with pytest.raises(TypeError, match="count is for a distribution over tasks, .* list"):
        one.evaluate(bars.test, count=5)


@pytest.mark.parametrize("learner", [leap_tf.MAML(), leap_tf.FOMAML(), leap_tf.MetaSGD()], ids=repr)
def test_learners_learn_from_episodes(learner, bars):
    """After 40 meta-steps the error is lower on classes that were never trained on."""
    one = trainer(learner, transductive=True)
    before = one.evaluate(bars.test).error
    one.fit(bars.train, 40, verbose=False)
    assert one.evaluate(bars.test).error < before - 0.1


def test_a_checkpoint_knows_its_episodes(bars, tmp_path):
    trainer(leap_tf.FOMAML()).fit(bars.train, 1, checkpoint_dir=tmp_path, verbose=False)
    other = Episodes(bars.train.classes, 3, 3, 4)
    with pytest.raises(leap_tf.CheckpointMismatchError, match="shots"):
        trainer(leap_tf.FOMAML()).fit(other, 2, checkpoint_dir=tmp_path, verbose=False)
