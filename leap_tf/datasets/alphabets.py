"""Alphabets as tasks: tell an alphabet's characters apart, from a few drawings of each.

The protocol of the paper's Omniglot study (Flennerhag et al. 2019, appendix F): an alphabet
is a task, up to 20 of its characters are its classes, 15 drawings of each are for training
and 5 held out, images are 28×28, and both parts are augmented with 36 uniform rotations.

Everything is decided by the seed and the drawings themselves, never by the order of files:
drawings of a character are put in order of their pixels before any of them is picked.

    load_drawings   TFDS → {alphabet: {character: drawings}}
    alphabet_task   one alphabet → ArrayTask
    alphabet_splits all of it → training, validation and test tasks
"""

import functools
import os
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from leap_tf.datasets.tfds import open_dataset
from leap_tf.tasks import ArrayTask, FiniteTasks, TaskSplits, pixels_to_floats

Drawings = Mapping[str, Mapping[int, np.ndarray]]


def alphabet_splits(
    dataset: str = "unicode_alphabets",
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    train_alphabets: int = 20,
    validation_alphabets: int = 10,
    test_alphabets: int = 10,
    characters: int = 20,
    held_out_drawings: int = 5,
    image_size: int = 28,
    rotations: int = 36,
    batch_size: int = 20,
) -> TaskSplits:
    """Splits a data set's alphabets and makes a task of each.

    Test alphabets are drawn first, then validation, then training ones. So for one seed the
    test alphabets are the same whatever the number of training alphabets, and a larger
    training set contains the smaller ones. Alphabets with too few characters are only ever
    trained on.

    Args:
        dataset: a TFDS data set with Omniglot's features.
        data_dir: see `open_dataset`.
        seed: decides splits, characters, classes and held-out drawings.
        train_alphabets, validation_alphabets, test_alphabets: how many of each.
        characters: classes of a task, at most.
        held_out_drawings: drawings of each character that are never trained on.
        image_size: height and width in pixels.
        rotations: 1, or a multiple of 4, uniformly spaced over the circle.
        batch_size: drawings in a training batch.

    Returns:
        The three sets of tasks. Inputs are float32 [b, image_size, image_size, 1], ink 1 and
        paper 0; targets are class numbers.

    Raises:
        MissingDataError: the data set is not on this machine.
        ValueError: the data set has too few alphabets, or an argument makes no sense.
    """
    drawings = load_drawings(dataset, str(data_dir) if data_dir else None)
    large = [name for name in sorted(drawings) if len(drawings[name]) >= characters]
    held_out = validation_alphabets + test_alphabets
    if len(large) < held_out or len(drawings) < held_out + train_alphabets:
        raise ValueError(
            f"{dataset} has {len(drawings)} alphabets, {len(large)} of them with at least "
            f"{characters} characters: too few for {train_alphabets} to train on and {held_out} "
            "to hold out."
        )
    rng = np.random.default_rng([seed, 0])
    judged = [large[index] for index in rng.permutation(len(large))[:held_out]]
    rest = [name for name in sorted(drawings) if name not in judged]
    trained = [rest[index] for index in rng.permutation(len(rest))[:train_alphabets]]

    def tasks(names):
        return [
            alphabet_task(
                name,
                drawings[name],
                seed=seed,
                characters=characters,
                held_out_drawings=held_out_drawings,
                image_size=image_size,
                rotations=rotations,
                batch_size=batch_size,
            )
            for name in names
        ]

    return TaskSplits(
        train=FiniteTasks(tasks(trained)),
        test=tasks(judged[:test_alphabets]),
        validation=tasks(judged[test_alphabets:]),
    )


def alphabet_task(
    name: str,
    drawings: Mapping[int, np.ndarray],
    seed: int,
    characters: int = 20,
    held_out_drawings: int = 5,
    image_size: int = 28,
    rotations: int = 36,
    batch_size: int = 20,
) -> ArrayTask:
    """Makes a classification task of one alphabet. Arguments as for `alphabet_splits`.

    Args:
        name: the alphabet.
        drawings: from character number to its drawings, uint8 [n, height, width], ink 0.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = rng.permutation(sorted(drawings))[:characters]
    train, test = [], []
    for label, character in enumerate(chosen):
        order = rng.permutation(len(drawings[character]))
        if not 0 < held_out_drawings < len(order):
            raise ValueError(
                f"Cannot hold out {held_out_drawings} of the {len(order)} drawings of a character."
            )
        images = drawings[character][order]
        test.append((images[:held_out_drawings], label))
        train.append((images[held_out_drawings:], label))

    def augmented(part):
        images = np.concatenate([images for images, _ in part])
        labels = np.concatenate([np.full(len(images), label) for images, label in part])
        ink = rotate(ink_of(images, 2 * image_size), rotations)
        pixels = np.round(255.0 * np.clip(ink, 0.0, 1.0)).astype(np.uint8)
        return pixels[..., None], np.tile(labels, rotations)

    return ArrayTask(
        name,
        train=augmented(train),
        test=augmented(test),
        batch_size=batch_size,
        test_batch_size=500,
        prepare=pixels_to_floats,
    )


@functools.lru_cache(maxsize=2)
def load_drawings(dataset: str, data_dir: str | None = None) -> Drawings:
    """Reads every drawing of a data set.

    Returns:
        From alphabet name to character number to uint8 [drawings, height, width], ink 0 and
        paper 255, in the order of their pixels.
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
    return {
        alphabet: {character: _in_pixel_order(images) for character, images in by_character.items()}
        for alphabet, by_character in collected.items()
    }


def _in_pixel_order(images: list[np.ndarray]) -> np.ndarray:
    pixels = [image.tobytes() for image in images]
    return np.stack([images[index] for index in np.argsort(np.array(pixels, object))])


def ink_of(images: np.ndarray, size: int) -> np.ndarray:
    """Scales uint8 [n, h, w] images with dark ink to float32 [n, size, size], ink 1."""
    ink = 1.0 - tf.cast(images[..., None], tf.float32) / 255.0
    return tf.image.resize(ink, (size, size), method="area")[..., 0].numpy()


def rotate(images: np.ndarray, rotations: int) -> np.ndarray:
    """Rotates every image by multiples of 360°/`rotations` and halves its resolution.

    Rotating at twice the resolution keeps thin strokes sharp. Quarter turns are exact, the
    angles between are interpolated bilinearly.

    Args:
        images: float32 [n, 2 · size, 2 · size], background 0.
        rotations: 1 or a multiple of 4.

    Returns:
        float32 [rotations · n, size, size]; all images at the first angle come first.
    """
    if rotations == 1:
        return _halve(images)
    if rotations < 1 or rotations % 4:
        raise ValueError(f"rotations must be 1 or a multiple of 4, and is {rotations}.")
    turned: list[np.ndarray] = []
    for step in range(rotations // 4):
        slanted = _halve(_rotate_by(images, 2 * np.pi * step / rotations) if step else images)
        turned.extend(np.rot90(slanted, quarter, axes=(1, 2)) for quarter in range(4))
    return np.concatenate(turned)


def _rotate_by(images, angle):
    centre = (images.shape[1] - 1) / 2
    cos, sin = np.cos(angle), np.sin(angle)
    # Output (x, y) takes its value from input (cos x − sin y + a, sin x + cos y + b).
    transform = [
        *(cos, -sin, centre * (1 - cos + sin)),
        *(sin, cos, centre * (1 - sin - cos)),
        *(0.0, 0.0),
    ]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images[..., None],
        transforms=tf.constant([transform], tf.float32),
        output_shape=images.shape[1:],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[..., 0].numpy()


def _halve(images):
    return tf.nn.avg_pool2d(images[..., None], 2, 2, "VALID")[..., 0].numpy()
