"""Simulated handwriting: draws characters as twenty different people would.

A printed glyph is thinned to its centre line. A round pen draws this line again, bent by the habits
of the drawer, which are the same for all characters, and by random changes of the single drawing.
The amounts are chosen so that two drawings of a character differ as much as Omniglot's in position,
size, proportions and amount of ink, and are as hard to classify by nearest neighbours in pixels.

All randomness follows from `SEED`, the drawer and the character, so a drawing does not depend on
other drawings. Points are (row, column) pairs.
"""

import functools
import pathlib
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

SEED = 20191
DRAWERS = 20
CANVAS = 105
# The faces that drawers imitate, in turn. None is bold: Lao letters would lose their loops.
# fmt: off
FACES = (
    "DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Oblique", "DejaVuSansMono-Oblique",
)
# fmt: on
_WAVES = 12  # in the random field that bends a drawing
_BORDER = 2.0  # pixels between the ink and the edge of the canvas

FALLBACK_FACE = "DejaVuSans"
_PRINT_SIZE = 72  # pixels; larger prints take longer to thin and give almost the same line
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def draw(character: str, drawer: int) -> np.ndarray:
    """Returns a drawing, bool [CANVAS, CANVAS], True for ink; outermost rows and columns have none.

    `drawer` is at least 0; the data set has `DRAWERS`. DejaVu Sans must have the character.
    """
    habits = habits_of(drawer)
    rng = np.random.default_rng([SEED, drawer, ord(character)])
    printed = centre_line_of(character, habits.face)
    line = rounded(printed, habits.roundness)

    pen = habits.pen * np.exp(rng.normal(0.0, 0.05))
    dots = degrees(line) == 0
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


class Habits(NamedTuple):
    """The habits of a drawer, which apply to every character."""

    face: str  # name of the DejaVu face that the drawer imitates
    slant: float  # shear, columns to the right for each row upwards
    rotation: float  # radians, clockwise
    stretch: float  # natural logarithm of width over height
    roundness: int  # number of times that corners are rounded
    size: float  # longer side of a drawing in pixels
    pen: float  # radius of the pen in pixels
    dot: float  # radius of a dot divided by the radius of the pen
    offset: np.ndarray  # float64 [2], from the middle of the canvas to that of the drawing, pixels
    carelessness: float  # factor on the bending of single drawings


@functools.cache
def habits_of(drawer: int) -> Habits:
    """Returns the habits of a drawer, which its number decides."""
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


def stance(slant: float, rotation: float, stretch: float) -> np.ndarray:
    """Returns the matrix [2, 2] that points are multiplied by from the right; see `Habits`."""
    cosine, sine = np.cos(rotation), np.sin(rotation)
    scale = np.diag([np.exp(-stretch / 2), np.exp(stretch / 2)])
    shear = np.array([[1.0, -slant], [0.0, 1.0]])
    return scale @ shear @ np.array([[cosine, -sine], [sine, cosine]])


def bent(
    points: np.ndarray, rng: np.random.Generator, *, length: float, amount: float
) -> np.ndarray:
    """Displaces points by a smooth random field, so that near points move together.

    The field is a sum of waves in random directions. With many waves it is a Gaussian process
    whose covariance is a Gaussian of the distance (Rahimi and Recht, "Random features for
    large-scale kernel machines", NIPS 2007). `length` is the distance over which displacements
    become unrelated, and `amount` their standard deviation in each direction.
    """
    frequencies = rng.normal(0.0, 1.0 / length, size=(2, _WAVES))
    phases = rng.uniform(0.0, 2.0 * np.pi, size=_WAVES)
    heights = rng.normal(0.0, amount * np.sqrt(2.0 / _WAVES), size=(_WAVES, 2))
    return points + np.cos(points @ frequencies + phases) @ heights


def inside(points: np.ndarray, border: float) -> np.ndarray:
    """Moves points into the canvas, and shrinks their figure if it is too large.

    `border` is the smallest distance from the middle of an outermost pixel, in pixels.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    room = (CANVAS - 1) / 2 - border
    scale = min(1.0, room / max(room, np.max(half)))
    reach = room - scale * half
    centre = (CANVAS - 1) / 2
    return scale * (points - middle) + np.clip(middle, centre - reach, centre + reach)


def ink(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Draws a disc at each point: bool [CANVAS, CANVAS], True for pixels with their middle in one.

    Points must be farther from the edge of the canvas than their radius.
    """
    reach = int(np.ceil(np.max(radii)))
    steps = np.arange(-reach, reach + 1)
    pixels = np.rint(points).astype(np.int64)[..., np.newaxis] + steps
    rows, columns = pixels[:, 0, :, np.newaxis], pixels[:, 1, np.newaxis, :]
    heights, widths = np.moveaxis((pixels - points[..., np.newaxis]) ** 2, 1, 0)
    distances = heights[:, :, np.newaxis] + widths[:, np.newaxis, :]
    inked = distances <= radii[:, np.newaxis, np.newaxis] ** 2
    canvas = np.zeros(CANVAS * CANVAS, bool)
    canvas[(CANVAS * rows + columns)[inked]] = True
    return canvas.reshape(CANVAS, CANVAS)


class CentreLine(NamedTuple):
    """A thinned glyph: float64 points [points, 2] and int64 edges [edges, 2] between them."""

    points: np.ndarray
    edges: np.ndarray


def font_path(face: str) -> pathlib.Path:
    """Returns the file of a DejaVu face among the fonts that matplotlib installs."""
    return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")


@functools.cache
def code_points(face: str) -> frozenset[int]:
    """Returns the code points that a face has glyphs for."""
    return frozenset(FT2Font(str(font_path(face))).get_charmap())


@functools.lru_cache(maxsize=256)
def centre_line_of(character: str, face: str) -> CentreLine:
    """Returns the centre line of a printed character, of longer side 1 and around (0, 0)."""
    bitmap = printed(character, face)
    line = joined(thinned(bitmap))
    stroke_width = np.sum(bitmap) / len(line.points)
    points, edges = without_ends(line, times=round(0.4 * stroke_width))
    low, high = points.min(axis=0), points.max(axis=0)
    return CentreLine((points - (low + high) / 2) / max(1.0, np.max(high - low)), edges)


def printed(character: str, face: str) -> np.ndarray:
    """Prints a character, bool [height, width], with its longer side of about 72 pixels.

    A face that has no glyph for it is replaced by `FALLBACK_FACE`. The border has no ink.
    """
    face = face if ord(character) in code_points(face) else FALLBACK_FACE
    if ord(character) not in code_points(face):
        raise ValueError(f"{face} has no glyph for U+{ord(character):04X}. Use another letter.")
    left, top, right, bottom = _font(face, 100).getbbox(character)
    font = _font(face, round(100 * _PRINT_SIZE / max(right - left, bottom - top)))
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=255)
    return np.pad(np.asarray(image) >= 128, 1)


@functools.lru_cache(maxsize=64)
def _font(face, size):
    # The basic layout does not join or reorder characters.
    return ImageFont.truetype(str(font_path(face)), size, layout_engine=ImageFont.Layout.BASIC)


def thinned(bitmap: np.ndarray) -> np.ndarray:
    """Thins strokes to connected lines about one pixel wide. The border must have no ink.

    Source: Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 32(3), 1989.
    The better known algorithm of Zhang and Suen erases dots of two by two pixels.
    """
    bitmap = bitmap.copy()
    height, width = bitmap.shape
    inside = bitmap[1:-1, 1:-1]
    changed = True
    while changed:
        changed = False
        for removable in _removable():
            neighbours = np.zeros(inside.shape, np.uint8)
            for bit, (down, right) in enumerate(_AROUND):
                moved = bitmap[1 + down : height - 1 + down, 1 + right : width - 1 + right]
                neighbours |= moved.view(np.uint8) << bit
            gone = inside & removable[neighbours]
            inside &= ~gone
            changed = changed or bool(np.any(gone))
    return bitmap


@functools.cache
def _removable():
    """Returns for both subiterations whether a pixel may go, bool [256] by its inked neighbours."""
    n, ne, e, se, s, sw, w, nw = ((np.arange(256) >> np.arange(8)[:, np.newaxis]) & 1) > 0
    crossings = np.sum([~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)], axis=0)
    ahead = np.sum([n | ne, e | se, s | sw, w | nw], axis=0)
    behind = np.sum([nw | n, ne | e, se | s, sw | w], axis=0)
    neighbours = np.minimum(ahead, behind)
    free = (crossings == 1) & (neighbours >= 2) & (neighbours <= 3)
    return free & ~((n | ne | ~se) & e), free & ~((s | sw | ~nw) & w)


def joined(bitmap: np.ndarray) -> CentreLine:
    """Turns a thinned bitmap into a line whose points are the pixels, joined to their neighbours.

    Diagonal neighbours are joined only if no pixel next to both has ink.
    """
    pixels = np.argwhere(bitmap)
    number = np.full(np.add(bitmap.shape, 2), -1)
    row, column = (pixels + 1).T
    number[row, column] = np.arange(len(pixels))
    edges = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = number[row + down, column + right]
        touching = other >= 0
        if down and right:
            touching &= (number[row + down, column] < 0) & (number[row, column + right] < 0)
        edges.append(np.stack([np.flatnonzero(touching), other[touching]], axis=1))
    return CentreLine(pixels.astype(np.float64), np.concatenate(edges))


def degrees(line: CentreLine) -> np.ndarray:
    """Returns the number of edges of each point, int64 [points]: 0 for a dot, 1 for a loose end."""
    return np.bincount(line.edges.ravel(), minlength=len(line.points))


def without_ends(line: CentreLine, times: int) -> CentreLine:
    """Shortens loose ends by some points, since thinning bends them into corners of the stroke.

    A stroke that is too short becomes a dot or two points; it never vanishes.
    """
    for _ in range(times):
        degree = degrees(line)
        keep = degree != 1
        first, second = line.edges[np.all(degree[line.edges] == 1, axis=1)].T
        keep[first] = keep[second] = True
        edges = line.edges[np.all(keep[line.edges], axis=1)]
        line = CentreLine(line.points[keep], (np.cumsum(keep) - 1)[edges])
    return line


def rounded(line: CentreLine, times: int) -> CentreLine:
    """Rounds corners: repeatedly moves points half way to the middle of their two neighbours.

    Loose ends and forks do not move.
    """
    start, end = np.concatenate([line.edges, line.edges[:, ::-1]]).T
    order = np.argsort(start, kind="stable")
    degree = degrees(line)
    moved = np.flatnonzero(degree == 2)
    before, after = end[order][degree[start[order]] == 2].reshape(-1, 2).T
    points = line.points.copy()
    for _ in range(times):
        points[moved] = (points[moved] + (points[before] + points[after]) / 2) / 2
    return CentreLine(points, line.edges)
