"""Boxes drawn over pictures, for people to look at."""

import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from contextdiff_jax.data.boxes import Box

_LEAST_SIDE = 128  # pixels, below which a picture is enlarged: names would hide it
_HUES = 360


def with_boxes(picture: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """Returns uint8 (H, W, 3), enlarged by whole pixels where small, with named boxes over it.

    A name has the same colour everywhere.
    """
    factor = -(-_LEAST_SIDE // min(picture.shape[:2]))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    image = Image.fromarray(np.ascontiguousarray(large))
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for box in boxes:
        colour = ImageColor.getrgb(f"hsl({zlib.crc32(box.name.encode()) % _HUES}, 100%, 35%)")
        x0, y0, x1, y1 = (
            value * length for value, length in zip(box.corners, (width, height) * 2, strict=True)
        )
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour)
        # PIL's own font has Latin letters alone.
        draw.text((x0 + 2, y0 + 1), box.name.encode("latin-1", "replace").decode("latin-1"), colour)
    return np.asarray(image)
