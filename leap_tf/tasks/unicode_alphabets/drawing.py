"""Draws a character the way one of twenty people would.

The centre line of a printed glyph is drawn again with a pen, bent by the drawer's habits, which
are the same for all characters, and by the accidents of the single drawing. The amounts are
chosen so that drawings of a character differ from one another as much as Omniglot's do in place,
size, proportions and amount of ink, and are as hard to tell from those of other characters by
their nearest neighbour in pixels.

Everything random follows from `SEED`, the drawer and the character, so that no drawing depends
on which others were made before it. Points are (row, column) pairs.
"""

import functools
from typing import NamedTuple

import numpy as np

from leap_tf.tasks.unicode_alphabets import centre_lines

SEED = 20191
DRAWERS = 20
CANVAS = 105
# What drawers imitate, in turn. No bold face: Lao letters lose their loops in it.
FACES = (
    "DejaVuSans",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Oblique",
)
_BORDER = 2.0  # pixels left free between the ink and the edge of the canvas


class Habits(NamedTuple):
    """What one drawer does to every character.

    Args:
        face: name of the DejaVu face the drawer imitates.
        slant: shear, columns to the right for each row upwards.
        rotation: radians, clockwise.
        stretch: natural logarithm of width over height.
        roundness: how many times corners are rounded.
        size: longer side of a drawing in pixels.
        pen: radius of the pen in pixels.
        dot: radius of a dot over the pen's.
        offset: float64 [2], from the canvas's middle to the drawing's, in pixels.
        carelessness: factor on how far a single drawing is bent.
    """

    face: str
    slant: float
    rotation: float
    stretch: float
    roundness: int
    size: float
    pen: float
    dot: float
    offset: np.ndarray
    carelessness: float


@functools.cache
def habits_of(drawer: int) -> Habits:
    """Returns a drawer's habits."""
    rng = np.random.default_rng([SEED, drawer])
    return Habits(
        face=FACES[drawer % len(FACES)],
        slant=rng.normal(0.03, 0.11),
        rotation=rng.normal(0.0, 0.05),
        stretch=rng.normal(0.0, 0.10),
        roundness=int(rng.integers(4, 25)),
        size=rng.uniform(58.0, 77.0),
        pen=rng.uniform(1.9, 2.4),
        dot=rng.uniform(1.0, 1.8),
        offset=rng.normal(0.0, 3.0, size=2),
        carelessness=rng.uniform(0.7, 1.4),
    )


def draw(character: str, drawer: int) -> np.ndarray:
    """Draws a character.

    Args:
        character: one character that DejaVu Sans has a glyph for.
        drawer: who draws, an integer from 0. The data set has `DRAWERS` of them.

    Returns:
        Bool [CANVAS, CANVAS], True where there is ink. The outermost rows and columns have none.

    Raises:
        ValueError: there is no glyph for the character.
    """
    habits = habits_of(drawer)
    rng = np.random.default_rng([SEED, drawer, ord(character)])
    printed = centre_lines.centre_line_of(character, habits.face)
    line = centre_lines.rounded(printed, habits.roundness)

    pen = habits.pen * np.exp(rng.normal(0.0, 0.05))
    dots = centre_lines.degrees(line) == 0
    between = np.mean(line.points[line.edges], axis=1)
    radii = np.append(np.where(dots, pen * habits.dot, pen), np.full(len(between), pen))

    points = np.concatenate([line.points, between])
    points = points @ stance(
        slant=habits.slant + rng.normal(0.0, 0.05),
        rotation=habits.rotation + rng.normal(0.0, 0.04),
        stretch=habits.stretch + rng.normal(0.0, 0.07),
    )
    points = bent(points, rng, length=0.35, amount=0.045 * habits.carelessness)
    points = bent(points, rng, length=0.10, amount=0.008 * habits.carelessness)
    points = points * habits.size * np.exp(rng.normal(0.0, 0.07))
    points = points + (CANVAS - 1) / 2 + habits.offset + rng.normal(0.0, 3.0, size=2)
    return ink(inside(points, np.max(radii) + _BORDER), radii)


def stance(slant: float, rotation: float, stretch: float) -> np.ndarray:
    """Returns float64 [2, 2], by which to multiply points from the right. See `Habits`."""
    cosine, sine = np.cos(rotation), np.sin(rotation)
    scale = np.diag([np.exp(-stretch / 2), np.exp(stretch / 2)])
    shear = np.array([[1.0, -slant], [0.0, 1.0]])
    return scale @ shear @ np.array([[cosine, -sine], [sine, cosine]])


def bent(
    points: np.ndarray, rng: np.random.Generator, length: float, amount: float, waves: int = 12
) -> np.ndarray:
    """Displaces points by a smooth random field, so that what is close together moves together.

    The field is a sum of waves in random directions. With many waves it is a Gaussian process
    whose covariance is a Gaussian of the distance (Rahimi and Recht, "Random features for
    large-scale kernel machines", NIPS 2007).

    Args:
        points: float64 [points, 2].
        rng: draws the field.
        length: the distance over which displacements become unrelated.
        amount: standard deviation of a displacement in each direction.
        waves: how many waves the field has.

    Returns:
        Float64 [points, 2].
    """
    frequencies = rng.normal(0.0, 1.0 / length, size=(2, waves))
    phases = rng.uniform(0.0, 2.0 * np.pi, size=waves)
    heights = rng.normal(0.0, amount * np.sqrt(2.0 / waves), size=(waves, 2))
    return points + np.cos(points @ frequencies + phases) @ heights


def inside(points: np.ndarray, border: float) -> np.ndarray:
    """Moves points, and shrinks them if need be, to keep off the edge of the canvas.

    Args:
        points: float64 [points, 2] in pixels.
        border: smallest distance from the middle of an outermost pixel, in pixels.

    Returns:
        Float64 [points, 2].
    """
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    room = (CANVAS - 1) / 2 - border
    scale = min(1.0, room / max(room, np.max(half)))
    reach = room - scale * half
    centre = (CANVAS - 1) / 2
    return scale * (points - middle) + np.clip(middle, centre - reach, centre + reach)


def ink(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Presses a round pen down at each point.

    Args:
        points: float64 [points, 2] in pixels, further than their radius from the canvas's edge.
        radii: float64 [points], the pen's radius at each point.

    Returns:
        Bool [CANVAS, CANVAS], True for pixels whose middle is within a radius of its point.
    """
    reach = int(np.ceil(np.max(radii)))
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    pixels = np.rint(points).astype(np.int64)[:, np.newaxis] + steps
    distances = np.sum((pixels - points[:, np.newaxis]) ** 2, axis=-1)
    rows, columns = pixels[distances <= radii[:, np.newaxis] ** 2].T
    canvas = np.zeros((CANVAS, CANVAS), bool)
    canvas[rows, columns] = True
    return canvas
