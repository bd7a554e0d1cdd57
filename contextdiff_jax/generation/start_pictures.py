"""Pictures to start from or to follow, masks of what is drawn anew: files of users, checked."""

import numpy as np
from etils import epath
from PIL import Image

from contextdiff_jax.arguments import existing_file
from contextdiff_jax.data.decode import IMAGE_HUGE, decode_upright
from contextdiff_jax.data.example import DamagedSample
from contextdiff_jax.tasks.latent_text_to_image import Start

MOST_SIDE = 4096  # pixels
_WHITE = 128  # from here a mask is white
_STRENGTH, _STRENGTH_MASKED = 0.8, 1.0  # of diffusers' pipelines


def read_start(
    picture: epath.PathLike, mask: epath.PathLike | None, strength: float | None
) -> Start:
    """Returns what --init_image, --mask and --strength ask for.

    The mask is read as grey; white is drawn anew. Raises ValueError, naming the flag, for files
    that are missing or no pictures, and for a mask of another size.
    """
    pixels = _read(picture, "init_image")
    if mask is None:
        return Start(pixels, _STRENGTH if strength is None else strength)
    white = _grey(_read(mask, "mask")) >= _WHITE
    if white.shape != pixels.shape[:2]:
        raise ValueError(
            f"--mask={mask}: is {_size(white)}: must be {_size(pixels)} as --init_image={picture}"
        )
    return Start(pixels, _STRENGTH_MASKED if strength is None else strength, white)


def read_control(picture: epath.PathLike) -> np.ndarray:
    """Returns the picture of --control, uint8 (H, W, 3); ValueError as `read_start`."""
    return _read(picture, "control")


def _read(path: epath.PathLike, flag: str) -> np.ndarray:
    """Returns uint8 (H, W, 3), as pictures of data are read: upright, on white, of 8 bits."""
    data = existing_file(path, flag).read_bytes()
    try:
        pixels = decode_upright(data, str(path), MOST_SIDE**2)
    except DamagedSample as damaged:
        huge = damaged.reason == IMAGE_HUGE
        reason = f"must be at most {MOST_SIDE} pixels a side" if huge else damaged.reason
        raise ValueError(f"--{flag}={path}: cannot be read as a picture: {reason}") from damaged
    if max(pixels.shape) > MOST_SIDE:
        raise ValueError(
            f"--{flag}={path}: is {_size(pixels)}: must be at most {MOST_SIDE} pixels a side"
        )
    return pixels


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
