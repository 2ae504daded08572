"""From a character to the centre line of its printed glyph: print, thin, join, tidy.

Points are (row, column) pairs.
"""

import functools
import pathlib
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

FALLBACK_FACE = "DejaVuSans"
_PRINT_SIZE = 72  # pixels; larger prints take longer to thin and look much the same afterwards
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


class CentreLine(NamedTuple):
    """A thinned glyph: float64 points [points, 2] and int64 edges [edges, 2] between them."""

    points: np.ndarray
    edges: np.ndarray


def font_path(face: str) -> pathlib.Path:
    """Returns the file of a DejaVu face among the fonts that matplotlib installs."""
    return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")


@functools.cache
def code_points(face: str) -> frozenset[int]:
    """Returns the code points that a face has glyphs for. All others print as a box."""
    return frozenset(FT2Font(str(font_path(face))).get_charmap())


@functools.lru_cache(maxsize=256)
def centre_line_of(character: str, face: str) -> CentreLine:
    """Returns the centre line of a printed character.

    Args:
        character: one character that `FALLBACK_FACE` has a glyph for.
        face: name of a DejaVu face; the fallback stands in if this one lacks the glyph.

    Returns:
        A line whose longer side is 1 and whose middle is at (0, 0).

    Raises:
        ValueError: there is no glyph for the character.
    """
    bitmap = printed(character, face)
    line = joined(thinned(bitmap))
    stroke_width = np.sum(bitmap) / len(line.points)
    points, edges = without_ends(line, times=round(0.4 * stroke_width))
    low, high = points.min(axis=0), points.max(axis=0)
    return CentreLine((points - (low + high) / 2) / max(1.0, np.max(high - low)), edges)


def printed(character: str, face: str) -> np.ndarray:
    """Prints a character so that its longer side has about 72 pixels.

    Args:
        character, face: as for `centre_line_of`.

    Returns:
        Bool [height, width], True where there is ink, with none in the outermost rows and
        columns.

    Raises:
        ValueError: there is no glyph for the character.
    """
    face = face if ord(character) in code_points(face) else FALLBACK_FACE
    if ord(character) not in code_points(face):
        raise ValueError(f"{face} has no glyph for U+{ord(character):04X}. Take another letter.")
    left, top, right, bottom = _font(face, 100).getbbox(character)
    font = _font(face, round(100 * _PRINT_SIZE / max(right - left, bottom - top)))
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=255)
    return np.pad(np.asarray(image) >= 128, 1)


@functools.lru_cache(maxsize=64)
def _font(face, size):
    # The basic layout sets single characters as they are: it neither joins nor reorders them.
    return ImageFont.truetype(str(font_path(face)), size, layout_engine=ImageFont.Layout.BASIC)


def thinned(bitmap: np.ndarray) -> np.ndarray:
    """Thins strokes to lines about one pixel wide. What was connected stays connected.

    Z. Guo and R. W. Hall, "Parallel thinning with two-subiteration algorithms", CACM 32(3),
    1989. Zhang and Suen's better known algorithm erases dots of two by two pixels.

    Args:
        bitmap: bool [height, width] with nothing in the outermost rows and columns.
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
    """Returns the two tables, bool [256]: may a pixel go, given which neighbours have ink?"""
    n, ne, e, se, s, sw, w, nw = ((np.arange(256) >> np.arange(8)[:, np.newaxis]) & 1) > 0
    crossings = np.sum([~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)], axis=0)
    ahead = np.sum([n | ne, e | se, s | sw, w | nw], axis=0)
    behind = np.sum([nw | n, ne | e, se | s, sw | w], axis=0)
    neighbours = np.minimum(ahead, behind)
    free = (crossings == 1) & (neighbours >= 2) & (neighbours <= 3)
    return free & ~((n | ne | ~se) & e), free & ~((s | sw | ~nw) & w)


def joined(bitmap: np.ndarray) -> CentreLine:
    """Turns a thinned bitmap into a line: pixels are points, and neighbours are joined.

    Diagonal neighbours are joined only where no pixel beside both has ink.
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
    """Returns int64 [points], how many edges each point has: 0 for a dot, 1 for a loose end."""
    return np.bincount(line.edges.ravel(), minlength=len(line.points))


def without_ends(line: CentreLine, times: int) -> CentreLine:
    """Shortens loose ends by so many points: thinning bends them into the stroke's corners.

    A stroke too short for that becomes a dot, or two points, but never vanishes.
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
    """Rounds corners: moves points half way to the middle of their two neighbours, repeatedly.

    Loose ends and forks stay where they are.
    """
    start, end = np.concatenate([line.edges, line.edges[:, ::-1]]).T
    order = np.argsort(start, kind="stable")
    degree = degrees(line)
    neighbours = end[order][degree[start[order]] == 2].reshape(-1, 2)
    points = line.points.copy()
    for _ in range(times):
        points[degree == 2] = (points[degree == 2] + points[neighbours].mean(axis=1)) / 2
    return CentreLine(points, line.edges)
