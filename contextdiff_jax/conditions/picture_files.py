"""Pictures that requests name: files, read safely and inside limits.

In a batch a picture is RGBA, uint8: transparent everywhere where there is none.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Num, UInt8

from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample
from contextdiff_jax.data.listed_files import NotReadable, read_listed
from contextdiff_jax.diffusion.shapes import Array
from contextdiff_jax.system.scalars import shown
from contextdiff_jax.system.suggestions import nearest_path


def check_path(value: Any) -> None:
    """Raises ValueError for what is no path of a file that is there; nothing is read."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)}: must be the path of a picture file")
    try:
        path = pathlib.Path(value)
        there, regular = path.exists(), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ValueError(f"{shown(value)}: no file can have its name") from error
    if not there:
        raise ValueError(f"{value}: no such file{nearest_path(value)}")
    if not regular:
        raise ValueError(f"{value}: is no regular file: must be the path of a picture file")


def read_picture(path: str, side: int) -> UInt8[np.ndarray, "{side} {side} 4"]:
    """Returns the picture of a file, uint8 (side, side, 4), opaque; cut to its central square.

    Nothing but a regular file of a picture is read, up to the limits of `data.max_pixels`. Raises
    ValueError naming the file.
    """
    most = DataConfig.max_pixels
    try:
        # A link may lead anywhere: the path is the user's own.
        folder, name = os.path.split(os.path.realpath(path))
        data = read_listed(folder, name, decode.most_bytes(most))
        pixels, _ = decode.decode_image(data, path, side, max_pixels=most)
    except (NotReadable, DamagedSample) as error:
        raise ValueError(f"{path}: cannot be read as a picture: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    return np.concatenate([pixels, np.full((side, side, 1), 255, np.uint8)], axis=-1)


def read_pictures(
    paths: Sequence[str], count: int, side: int
) -> UInt8[np.ndarray, "{side} {side} {count} 4"]:
    """Returns `count` pictures, uint8 (side, side, count, 4); those without a path are not there.

    Raises as `read_picture` does.
    """
    pictures = np.zeros((side, side, count, 4), np.uint8)
    for number, path in enumerate(paths):
        pictures[:, :, number] = read_picture(path, side)
    return pictures


def is_there(pictures: Num[Array, "batch h w *counts 4"]) -> Bool[Array, "batch *counts"]:
    """Returns which of the pictures (B, H, W, ..., 4) are there, bool (B, ...)."""
    return jnp.any(pictures[..., 3] > 0, axis=(1, 2))
