"""PIL's resizing of 8-bit pictures as two matrix products, for any device.

The one definition for whatever must agree with PIL there: the low-resolution condition of
super-resolution (data/decode.py makes the base's pictures by PIL's LANCZOS) and the features of
the scores. It is linear and separable but for PIL's rounding to 8 bits after each of the two
passes, which also cuts off what the negative lobes of a kernel add beyond black and white.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

Matrix = Callable[[int, int], np.ndarray]
"""(size, target) -> the weights (target, size) that resize a side; each row sums to one."""


def pil_bicubic(size: int, target: int) -> np.ndarray:
    """Returns the matrix (target, size) of PIL's BICUBIC: a = -0.5, antialiased where it shrinks.

    The weights of precompute_coeffs in Pillow's Resample.c, float64 rounded to float32.
    """
    return _pil_matrix(_cubic, 2.0, size, target)


def pil_lanczos(size: int, target: int) -> np.ndarray:
    """Returns the matrix (target, size) of PIL's LANCZOS: 3 lobes, antialiased where it shrinks.

    The weights of precompute_coeffs in Pillow's Resample.c, float64 rounded to float32.
    """
    return _pil_matrix(_lanczos, 3.0, size, target)


def _pil_matrix(
    kernel: Callable[[np.ndarray], np.ndarray], support: float, size: int, target: int
) -> np.ndarray:
    scale = size / target
    stretch = max(scale, 1.0)
    matrix = np.zeros((target, size))
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), size)
        weights = kernel((np.arange(first, last) - centre + 0.5) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


@jax.named_scope("pil_resizing")
def resize_height(
    images: Float[ArrayLike, "batch h w c"], matrix: Float[ArrayLike, "target h"]
) -> Float[ArrayLike, "batch target w c"]:
    """Resizes (B, H, W, C) to (B, target, W, C) by a matrix (target, H), in full float32."""
    return jnp.einsum("oi,biwc->bowc", matrix, images, precision=lax.Precision.HIGHEST)


@jax.named_scope("pil_resizing")
def resize_width(
    images: Float[ArrayLike, "batch h w c"], matrix: Float[ArrayLike, "target w"]
) -> Float[ArrayLike, "batch h target c"]:
    """Resizes (B, H, W, C) to (B, H, target, C) by a matrix (target, W), in full float32."""
    return jnp.einsum("oi,bhic->bhoc", matrix, images, precision=lax.Precision.HIGHEST)


def round_to_levels(levels: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """Rounds to the levels 0..255 that 8 bits hold, as PIL does; float32 stays float32."""
    return jnp.clip(jnp.floor(levels + 0.5), 0.0, 255.0)


def resize_square(
    levels: Float[ArrayLike, "batch h w c"], side: int, matrix: Matrix
) -> Float[ArrayLike, "batch {side} {side} c"]:
    """Resizes pictures (B, H, W, C) to (B, side, side, C) as PIL resizes them in 8 bits.

    levels: float32, whole numbers 0..255, as is the result. A side that has the size is left
    alone. Agrees with PIL but for sums half-way between two levels, which may fall otherwise.
    """
    height, width = levels.shape[1:3]
    # PIL's order, which matters because of the rounding in between. Pillow 13 turns it round for
    # some tall images and then differs.
    if width != side:
        levels = round_to_levels(resize_width(levels, matrix(width, side)))
    if height != side:
        levels = round_to_levels(resize_height(levels, matrix(height, side)))
    return levels
