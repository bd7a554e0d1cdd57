"""Segmentation maps beside pictures: PNG files whose pixels are numbers of classes."""

import numpy as np
from PIL import Image

from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample

MASK_UNUSABLE = "no usable mask"
MASK_MISSING = "no usable mask: missing"
MASK_NOT_INDICES = "no usable mask: no PNG of numbers of classes"
MASK_SIZE = "no usable mask: of another size than its picture"

NAME = "segmentation"  # of the array in an example, and in a batch
NO_LABEL = -1  # of a border's pixels
_MOST_PIXELS = DataConfig.max_pixels
_MODES = ("L", "P", "I;16")  # grey or palette of 8 bits, grey of 16


def mask_size(data: bytes, key: str) -> tuple[int, int]:
    """Returns width and height of a map. Raises DamagedSample for what is none."""
    return _open(data, key).size


def read_mask(
    data: bytes, key: str, size: tuple[int, int], resolution: int, mode: str
) -> np.ndarray:
    """Returns the map, int32 (resolution, resolution), made square as its picture is.

    size: width and height that it must have, those of its upright picture. mode: of
    `decode.to_square`; each pixel takes the number at its centre, a border's NO_LABEL. Raises
    DamagedSample.
    """
    image = _open(data, key)
    if image.size != size:  # before a pixel is decoded: the picture's size is a sane one
        raise DamagedSample(key, MASK_SIZE)
    try:
        values = np.asarray(image).astype(np.int32)
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedSample(key, MASK_NOT_INDICES) from error
    columns, rows = (_centres(length, size, resolution, mode) for length in size)
    square = values[np.maximum(rows, 0)][:, np.maximum(columns, 0)]
    return np.where((rows >= 0)[:, None] & (columns >= 0), square, np.int32(NO_LABEL))


def _open(data: bytes, key: str) -> Image.Image:
    """Returns the map with its pixels still to be read. Raises DamagedSample."""
    try:
        image = decode.open_image(data, ("PNG",))
    except MemoryError:
        raise
    except Exception as error:  # whatever PIL stumbles on, it is the sample's fault
        raise DamagedSample(key, MASK_NOT_INDICES) from error
    if image.mode not in _MODES or image.width * image.height > _MOST_PIXELS:
        raise DamagedSample(key, MASK_NOT_INDICES)
    return image


def _centres(length: int, size: tuple[int, int], resolution: int, mode: str) -> np.ndarray:
    """Returns which pixel of a side each of `resolution` shows, -1 for a border's."""
    inner, offset, start, edge = resolution, 0, 0.0, float(length)
    if mode == "border":
        inner = max(1, round(length * (resolution / max(size))))
        offset = (resolution - inner) // 2
    elif mode == "center_crop":
        edge = min(size)
        start = (length - edge) / 2
    places = np.arange(resolution) - offset
    pixels = np.floor(start + (places + 0.5) * edge / inner).astype(int)
    return np.where((places >= 0) & (places < inner), np.clip(pixels, 0, length - 1), -1)
