"""Alphabets as tasks: classify the characters of an alphabet from a few drawings of each.

The protocol is that of Flennerhag et al. 2019, appendix F. A task is an alphabet, and its classes
are up to 20 of its characters. 15 drawings of each character are for training and 5 are held out.
Images are 28×28, and both parts are augmented with 36 uniform rotations. The paper's last version
and its code augment both parts with random rotations, shifts and scales (`augmentation="affine"`).

Tasks depend on the seed and the drawings only, not on the order of files: the drawings of a
character are sorted by their pixels first.
"""

import functools
import os
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from leap_tf.array_tasks import pixels_to_floats
from leap_tf.datasets.sources import open_dataset
from leap_tf.tasks import ArrayTask, FiniteTasks, TaskSplits


def alphabet_splits(
    dataset: str = "unicode_alphabets",
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    *,
    train_alphabets: int = 20,
    validation_alphabets: int = 10,
    test_alphabets: int = 10,
    characters: int = 20,
    held_out_drawings: int = 5,
    image_size: int = 28,
    rotations: int = 36,
    augmentation: str = "rotations",
    batch_size: int = 20,
) -> TaskSplits:
    """Splits the alphabets of a data set and makes a task of each.

    Test alphabets are sampled first, then validation, then training alphabets. So for one seed the
    test alphabets do not depend on the number of training alphabets, and a larger training set
    contains the smaller ones. Alphabets with fewer than `characters` are only for training.

    Args:
        dataset: a TFDS data set with the features of Omniglot.
        data_dir: see `open_dataset`.
        seed: decides splits, characters, classes and held-out drawings.
        train_alphabets, validation_alphabets, test_alphabets: number of tasks of each kind.
        characters: largest number of classes of a task.
        held_out_drawings: number of drawings of each character that are not for training.
        image_size: height and width in pixels.
        rotations: number of copies of each drawing. For "rotations", 1 or a multiple of 4.
        augmentation: "rotations" turns the copies of a drawing by angles uniformly spaced over the
            circle. "affine" turns each copy by a random angle, scales it by 0.8 to 1.2, and shifts
            it by up to a fifth of the image along each axis.
        batch_size: drawings in a training batch.

    Returns:
        The tasks. Inputs are float32 [b, image_size, image_size, 1], 1 for ink and 0 for paper;
        targets are class numbers.

    Raises:
        MissingDataError: the data set is not on this machine.
        ValueError: the data set has too few alphabets, or `alphabet_task` raises it.

    Example (`unicode_alphabets` is drawn at first use, which takes about a minute):

        >>> import leap_tf
        >>> splits = leap_tf.datasets.alphabet_splits(train_alphabets=1, rotations=4)
        >>> next(iter(splits.test[0].train_batches(seed=0)))[0].shape
        TensorShape([20, 28, 28, 1])
    """
    drawings = load_drawings(dataset, str(data_dir) if data_dir else None)
    large = [name for name in sorted(drawings) if len(drawings[name]) >= characters]
    held_out = validation_alphabets + test_alphabets
    if len(large) < held_out or len(drawings) < held_out + train_alphabets:
        raise ValueError(
            f"{dataset} has {len(drawings)} alphabets, {len(large)} of them with at least "
            f"{characters} characters. These are too few for {train_alphabets} training alphabets "
            f"and {held_out} held-out alphabets."
        )
    rng = np.random.default_rng([seed, 0])
    evaluated = [large[index] for index in rng.permutation(len(large))[:held_out]]
    rest = [name for name in sorted(drawings) if name not in evaluated]
    trained = [rest[index] for index in rng.permutation(len(rest))[:train_alphabets]]

    task = functools.partial(
        alphabet_task,
        seed=seed,
        characters=characters,
        held_out_drawings=held_out_drawings,
        image_size=image_size,
        rotations=rotations,
        augmentation=augmentation,
        batch_size=batch_size,
    )
    test, validation = evaluated[:test_alphabets], evaluated[test_alphabets:]
    return TaskSplits(
        train=FiniteTasks([task(name, drawings[name]) for name in trained]),
        test=[task(name, drawings[name]) for name in test],
        validation=[task(name, drawings[name]) for name in validation],
    )


def alphabet_task(
    name: str,
    drawings: Mapping[int, np.ndarray],
    seed: int,
    *,
    characters: int = 20,
    held_out_drawings: int = 5,
    image_size: int = 28,
    rotations: int = 36,
    augmentation: str = "rotations",
    batch_size: int = 20,
) -> ArrayTask:
    """Makes a classification task of one alphabet; see `alphabet_splits` for other arguments.

    The name of the alphabet decides the task together with the seed. `drawings` are uint8
    [n, height, width], by number of the character, 0 for ink.

    Raises:
        ValueError: `held_out_drawings` leaves no drawing for training or for test, `augmentation`
            has another name, or `rotations` is not a number that it can make.
    """
    if augmentation not in ("rotations", "affine"):
        raise ValueError(
            f"augmentation must be 'rotations' or 'affine'. Received: {augmentation!r}."
        )
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = rng.permutation(sorted(drawings))[:characters]
    train, test = [], []
    for label, character in enumerate(chosen):
        order = rng.permutation(len(drawings[character]))
        if not 0 < held_out_drawings < len(order):
            raise ValueError(
                f"Cannot hold out {held_out_drawings} of the {len(order)} drawings of a character. "
                "There must be at least one for training and one held out."
            )
        images = drawings[character][order]
        test.append((images[:held_out_drawings], label))
        train.append((images[held_out_drawings:], label))

    turned = augmentation == "rotations"

    def augmented(part):
        images = np.concatenate([images for images, _ in part])
        labels = np.concatenate([np.full(len(images), label) for images, label in part])
        ink = 1.0 - tf.cast(images[..., None], tf.float32) / 255.0
        ink = tf.image.resize(ink, (2 * image_size, 2 * image_size), method="area")[..., 0].numpy()
        copies = rotate(ink, rotations) if turned else random_affine(ink, rotations, rng)
        pixels = np.round(255.0 * np.clip(copies, 0.0, 1.0)).astype(np.uint8)
        return pixels[..., None], np.tile(labels, rotations)

    parts = augmented(train), augmented(test)
    return ArrayTask(name, *parts, batch_size, test_batch_size=500, prepare=pixels_to_floats)


@functools.lru_cache(maxsize=2)
def load_drawings(
    dataset: str, data_dir: str | None = None
) -> Mapping[str, Mapping[int, np.ndarray]]:
    """Reads drawings, uint8 [drawings, height, width], by alphabet and number of the character.

    Ink is 0 and paper 255. The drawings of a character are sorted by their pixels.
    """
    builder = open_dataset(dataset, data_dir)
    names = builder.info.features["alphabet"].int2str
    splits = [name for name in ("train", "test") if name in builder.info.splits]
    examples = builder.as_dataset(
        split="+".join(splits), shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()}
    )
    examples = examples.map(
        lambda example: (
            example["alphabet"],
            example["alphabet_char_id"],
            tf.io.decode_png(example["image"], channels=1)[..., 0],
        ),
        num_parallel_calls=2,
    )
    collected: dict[str, dict[int, list[np.ndarray]]] = {}
    for alphabets, characters, images in examples.batch(512).as_numpy_iterator():
        for alphabet, character, image in zip(alphabets, characters, images):
            collected.setdefault(names(alphabet), {}).setdefault(int(character), []).append(image)
    for drawn in collected.values():
        for images in drawn.values():
            images.sort(key=lambda image: image.tobytes())
    return {
        alphabet: {character: np.stack(images) for character, images in drawn.items()}
        for alphabet, drawn in collected.items()
    }


def rotate(images: np.ndarray, rotations: int) -> np.ndarray:
    """Rotates float32 [n, 2 · size, 2 · size] images, 0 for paper, by all multiples of an angle.

    The result [rotations · n, size, size] has half the resolution, which keeps thin strokes sharp,
    and starts with all images at the first angle. Quarter turns are exact; others are bilinear.
    """
    if rotations == 1:
        return _halve(images)
    if rotations < 1 or rotations % 4:
        raise ValueError(f"rotations must be 1 or a multiple of 4. Received: {rotations}.")
    turned: list[np.ndarray] = []
    for step in range(rotations // 4):
        angle = np.array([2 * np.pi * step / rotations])
        slanted = _halve(_transform(images, angle, 1.0, (0.0, 0.0)) if step else images)
        turned.extend(np.rot90(slanted, quarter, axes=(1, 2)) for quarter in range(4))
    return np.concatenate(turned)


def random_affine(images: np.ndarray, copies: int, rng: np.random.Generator) -> np.ndarray:
    """Makes copies of float32 [n, 2 · size, 2 · size] images, 0 for paper, at random.

    Each copy is scaled by 0.8 to 1.2, turned by any angle about the centre, and then shifted by up
    to a fifth of the image along each axis. The result [copies · n, size, size] has half the
    resolution, and starts with the first copy of each image.

    Source: the augmentation of the paper's code, amzn/metalearn-leap. That fills the corners with
    ink, since its paper is 1; here they are paper.
    """
    if copies < 1:
        raise ValueError(f"rotations must be at least 1. Received: {copies}.")
    made, count = [], len(images)
    reach = images.shape[1] / 5
    for _ in range(copies):
        angles, scales = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.8, 1.2, count)
        shifts = rng.uniform(-reach, reach, (2, count))
        made.append(_halve(_transform(images, angles, scales, shifts)))
    return np.concatenate(made)


def _transform(images, angles, scales, shifts):
    """Scales, turns and shifts images, given arrays of [n], [n] and [2, n]."""
    centre = (images.shape[1] - 1) / 2
    cos, sin = np.cos(angles) / scales, np.sin(angles) / scales
    x, y = shifts
    # Output (x, y) is the input at (cos x − sin y + a, sin x + cos y + b).
    a = centre * (1 - cos + sin) - cos * x + sin * y
    b = centre * (1 - sin - cos) - sin * x - cos * y
    rows = [cos, -sin, a, sin, cos, b, np.zeros_like(cos), np.zeros_like(cos)]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images[..., None],
        transforms=tf.constant(np.stack(rows, axis=-1), tf.float32),
        output_shape=images.shape[1:],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[..., 0].numpy()


def _halve(images):
    return tf.nn.avg_pool2d(images[..., None], 2, 2, "VALID")[..., 0].numpy()
