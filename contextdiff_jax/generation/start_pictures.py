"""Pictures to start from or to follow, masks of what is drawn anew: files of users, checked."""

import warnings

import numpy as np
from etils import epath

from contextdiff_jax.arguments import existing_file
from contextdiff_jax.data.decode import open_image
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
    pixels = _read(picture, "init_image", "RGB")
    if mask is None:
        return Start(pixels, _STRENGTH if strength is None else strength)
    white = _read(mask, "mask", "L") >= _WHITE
    if white.shape != pixels.shape[:2]:
        raise ValueError(
            f"--mask={mask}: is {_size(white)}: must be {_size(pixels)} as --init_image={picture}"
        )
    return Start(pixels, _STRENGTH_MASKED if strength is None else strength, white)


def read_control(picture: epath.PathLike) -> np.ndarray:
    """Returns the picture of --control, uint8 (H, W, 3); ValueError as `read_start`."""
    return _read(picture, "control", "RGB")


def _read(path: epath.PathLike, flag: str, mode: str) -> np.ndarray:
    file = existing_file(path, flag)
    try:
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are refused here
            image = open_image(opened)
            if max(image.size) > MOST_SIDE:
                raise ValueError(f"must be at most {MOST_SIDE} pixels a side")
            return np.asarray(image.convert(mode))
    except Exception as error:  # PIL raises whatever a broken file makes it stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"--{flag}={path}: cannot be read as a picture: {reason}") from error


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
