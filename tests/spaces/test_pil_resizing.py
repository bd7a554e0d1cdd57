"""Resizing against PIL itself."""

import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.spaces.pil_resizing import pil_bicubic, pil_lanczos, resize_square

BY_PIL = {pil_lanczos: Image.Resampling.LANCZOS, pil_bicubic: Image.Resampling.BICUBIC}


def by_pil(pictures, side, kernel):
    resize = lambda p: Image.fromarray(p).resize((side, side), BY_PIL[kernel])  # noqa: E731
    return np.stack([np.asarray(resize(picture)) for picture in pictures]).astype(np.float32)


@pytest.mark.parametrize("kernel", [pil_lanczos, pil_bicubic])
@pytest.mark.parametrize(
    ("shape", "side"),
    [((64, 64), 16), ((100, 100), 37), ((90, 61), 24), ((24, 90), 24), ((1, 7), 5), ((16, 16), 40)],
)
def test_it_is_pil_to_a_grey_level(shape, side, kernel):
    """Sums that lie at half a level may round otherwise: one level, one value in a thousand.

    Black and white pixels at random: the kernel leaves 0..255 in either pass and is cut off.
    """
    rng = np.random.default_rng(side)
    smooth = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    hard = 255 * rng.integers(0, 2, (2, *shape, 3), dtype=np.uint8)
    for pictures in (smooth, hard):
        ours = np.asarray(resize_square(pictures.astype(np.float32), side, kernel))
        difference = np.abs(ours - by_pil(pictures, side, kernel))
        assert ours.dtype == np.float32 and ours.shape == (2, side, side, 3)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3


def test_a_picture_that_has_the_size_is_left_alone():
    pictures = np.arange(2 * 8 * 8 * 3, dtype=np.float32).reshape(2, 8, 8, 3) % 256
    np.testing.assert_array_equal(resize_square(pictures, 8, pil_lanczos), pictures)


def test_the_products_are_of_full_precision_on_every_device():
    """A TPU multiplies in bfloat16 unless told otherwise, to three digits of 255 levels."""
    pictures = np.zeros((1, 64, 64, 3), np.float32)
    program = str(jax.make_jaxpr(lambda p: resize_square(p, 16, pil_lanczos))(pictures))
    assert program.count("dot_general") == 2
    assert program.count("Precision.HIGHEST, Precision.HIGHEST") == 2, program
