"""Images as pictures: pixels, grids, PNG files."""

import math

import numpy as np
from etils import epath
from jax.typing import ArrayLike
from jaxtyping import Float, Num, UInt8
from PIL import Image

from contextdiff_jax.system.atomic_write import written_whole


def to_uint8(images: Num[ArrayLike, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Maps [-1, 1] to 0..255, rounding; values outside are clipped."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(
        np.uint8
    )


def grid(
    images: Float[ArrayLike, "count h w c"], columns: int | None = None, gap: int = 2
) -> UInt8[np.ndarray, "height width c"]:
    """Returns (N, H, W, 3) images in [-1, 1] as one uint8 picture on white, row by row."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    picture = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def side_by_side(
    left: Float[ArrayLike, "count h w c"], right: Float[ArrayLike, "count h w c"], gap: int = 8
) -> UInt8[np.ndarray, "height width c"]:
    """Returns two equal grids (e.g. raw and EMA samples) beside each other."""
    one, other = grid(left), grid(right)
    return np.concatenate([one, np.full((one.shape[0], gap, 3), 255, np.uint8), other], axis=1)


def write_png(path: epath.Path, pixels: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) as a PNG that appears whole or not at all."""
    with written_whole(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, "PNG")
