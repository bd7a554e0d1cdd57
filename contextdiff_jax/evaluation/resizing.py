"""How tools resize 8-bit images to a network's input: protocols that FID and CLIP scores depend on.

Every one is linear and separable: two matrices per image size, with the weights of the original's
own arithmetic, so that one function serves all of them on any device. Agreement with the packages
is to the rounding of float32.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.preprocess import CLIP_MEAN, CLIP_STD
from contextdiff_jax.spaces.pil_resizing import (
    Matrix,
    pil_bicubic,
    resize_height,
    resize_width,
    round_to_levels,
)


def tf1_bilinear(size: int, target: int) -> np.ndarray:
    """Returns the matrix (target, size) of TensorFlow 1's resize_bilinear: corners at the origin.

    No half-pixel centres, no antialiasing; positions in float32, as in the original.
    """
    positions = np.arange(target, dtype=np.float32) * np.float32(size / target)
    return _two_taps(positions, size)


def torch_bilinear(size: int, target: int) -> np.ndarray:
    """Returns the matrix (target, size) of torch's interpolate, bilinear, align_corners=False.

    Half-pixel centres, no antialiasing; positions are float32, rounded once (a fused multiply-add).
    """
    scale = np.float64(np.float32(size) / np.float32(target))
    positions = (scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    return _two_taps(np.maximum(positions, np.float32(0)), size)


def _two_taps(positions: np.ndarray, size: int) -> np.ndarray:
    low = np.minimum(positions.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = positions - low.astype(np.float32)
    matrix = np.zeros((len(positions), size), np.float32)
    rows = np.arange(len(positions))
    matrix[rows, low] += np.float32(1) - share
    matrix[rows, high] += share
    return matrix


@dataclasses.dataclass(frozen=True)
class ResizeProtocol:
    """How 8-bit images become a network's input.

    name: recorded with features. matrix: of the interpolation. mean, scale: of the normalization
    (x - mean) * scale per RGB channel, x in [0, 255]. keep_aspect: the shorter side is resized and
    the centre square kept; otherwise each side is resized. eight_bit: each of the two passes is
    rounded to 8 bits, as PIL does with 8-bit images.
    """

    name: str
    matrix: Matrix
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    keep_aspect: bool = False
    eight_bit: bool = False

    def __call__(self, images: jax.Array | np.ndarray, size: int) -> jax.Array:
        """Resizes and normalizes images (B, H, W, 3) uint8 to (B, size, size, 3) float32.

        Raises ValueError for images of another kind.
        """
        check_images(images)
        height, width = images.shape[1:3]
        heights, widths = self._targets(height, width, size)
        x = jnp.asarray(images).astype(jnp.float32)
        # The width first, as in `pil_resizing`.
        x = self._pass(resize_width, x, 2, widths, size)
        x = self._pass(resize_height, x, 1, heights, size)
        x = jnp.clip(x, 0.0, 255.0)  # bicubic weights overshoot
        return (x - jnp.array(self.mean)) * jnp.array(self.scale)

    def _targets(self, height: int, width: int, size: int) -> tuple[int, int]:
        if not self.keep_aspect:
            return size, size
        short = min(height, width)
        return int(size * height / short), int(size * width / short)

    def _pass(self, resize, x: jax.Array, axis: int, target: int, size: int) -> jax.Array:
        """Resizes the side of this axis to `target`, of which the middle `size` are kept."""
        first = round((target - size) / 2)
        side = x.shape[axis]
        if side == target:
            return jax.lax.slice_in_dim(x, first, first + size, axis=axis)
        x = resize(x, self.matrix(side, target)[first : first + size])
        return round_to_levels(x) if self.eight_bit else x


def check_images(images: jax.Array | np.ndarray) -> None:
    """Raises ValueError unless images are (B, H, W, 3) uint8, with pixels."""
    shape = images.shape
    if len(shape) != 4 or shape[-1] != 3 or images.dtype != np.uint8 or 0 in shape[1:]:
        raise ValueError(f"images are {images.dtype} of shape {shape}; must be uint8 (B, H, W, 3)")


PROTOCOLS: Mapping[str, ResizeProtocol] = MappingProxyType(
    {
        "torch-fidelity": ResizeProtocol(
            "torch-fidelity", tf1_bilinear, (128.0,) * 3, (1 / 128.0,) * 3
        ),
        "clean-fid": ResizeProtocol("clean-fid", pil_bicubic, (128.0,) * 3, (1 / 128.0,) * 3),
        "pytorch-fid": ResizeProtocol(
            "pytorch-fid", torch_bilinear, (127.5,) * 3, (1 / 127.5,) * 3
        ),
    }
)
"""What the packages of these names feed to Inception: by default, in clean-fid's mode "clean"."""

CLIP_PROTOCOL = ResizeProtocol(
    "clip",
    pil_bicubic,
    tuple(255.0 * mean for mean in CLIP_MEAN),
    tuple(1.0 / (255.0 * deviation) for deviation in CLIP_STD),
    keep_aspect=True,
    eight_bit=True,
)
"""CLIP's published preprocessing of 8-bit images; encoders/preprocess.py is its smooth form."""


def inception_protocol(name: str) -> ResizeProtocol:
    """Returns the protocol of this name; ValueError naming those there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol = {name!r}: must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
