"""Dynamic image normalization, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.conditions.image_normalization import normalized

RNG = np.random.default_rng(0)
FLOOR = 0.05
PICTURES = {
    "photos": RNG.uniform(-1, 1, (3, 7, 5, 3)),
    "flat": np.full((1, 6, 6, 3), 0.3),
    "black": np.full((1, 6, 6, 3), -1.0),
    "one pixel": RNG.uniform(-1, 1, (2, 1, 1, 3)),
    "nearly flat": 0.2 + 0.01 * RNG.uniform(-1, 1, (1, 9, 9, 3)),
    "of several examples": RNG.uniform(-1, 1, (2, 3, 4, 4, 3)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_by_its_own_mean_and_deviation(name):
    pictures = PICTURES[name]
    found = normalized(jnp.asarray(pictures, jnp.float32), FLOOR)
    for place in np.ndindex(pictures.shape[:-3]):
        one = pictures[place]
        deviation = max(np.sqrt(np.mean((one - one.mean()) ** 2)), FLOOR)
        expected = (one - one.mean()) / deviation
        np.testing.assert_allclose(found.pictures[place], expected, atol=1e-4)
        np.testing.assert_allclose(found.deviation[place].item(), deviation, rtol=1e-5)
        np.testing.assert_allclose(found.mean[place].item(), one.mean(), atol=1e-6)
    assert found.pictures.dtype == jnp.float32 and np.isfinite(found.pictures).all()
    np.testing.assert_allclose(found.restored(), pictures, atol=1e-6)


def test_it_is_undone_to_the_very_levels_of_8_bits():
    levels = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    levels[1] = 255
    levels[2] = levels[2] // 128
    found = jax.jit(normalized)(levels / np.float32(127.5) - 1)
    np.testing.assert_array_equal(np.round((found.restored() + 1) * 127.5), levels)
    assert np.abs(found.pictures[1]).max() < 1e-5  # a flat picture does not blow up
