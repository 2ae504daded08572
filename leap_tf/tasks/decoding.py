"""Decoding image files that may be broken, as files collected from the web are."""

from typing import BinaryIO

import numpy as np
import PIL.Image


def decode(file: BinaryIO, mode: str, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """Decodes an image file, if that can be done.

    Args:
        file: any format Pillow reads; must be seekable.
        mode: Pillow's name of the colours, "L" for grey or "RGB".
        size: width and height to scale the whole image to, smoothed; otherwise its own.

    Returns:
        uint8 [height, width, channels], or None if the file is empty, cut off or no image.
    """
    try:
        with PIL.Image.open(file) as image:
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises, depending on the defect
        return None
    if size:
        pixels = pixels.resize(size, PIL.Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(pixels))
