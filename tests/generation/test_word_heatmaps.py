"""The sum of attention to words over an edit, against loops, and how it is drawn."""

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.generation.clip_programs import HeatSum
from contextdiff_jax.sampling.lockstep import NoBlend
from contextdiff_jax.spaces.clips import heated


def test_attention_to_each_word_is_summed_over_steps():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 2, 6, 5)).astype(np.float32)  # steps, frames, positions, tokens
    words = np.array([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], np.float32)
    blend = HeatSum(NoBlend(), jnp.asarray(words), (2, 3))
    x = jnp.ones((2, 4, 6, 3))
    state = blend.init(x)
    for number, each in enumerate(maps):
        same, state = blend.after(x, -x, jnp.asarray(each), number, state)
        np.testing.assert_array_equal(same, x)
    for frame in range(2):
        for position in range(6):
            row, column = divmod(position, 3)
            seen = maps[:, frame, position].sum(0)
            expected = seen[1] + seen[2], seen[4]
            np.testing.assert_allclose(state[1][frame, row, column], expected, rtol=1e-5)


def test_heat_is_red_where_it_is_largest_and_blue_where_least():
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    heat = np.zeros((2, 2, 2))
    heat[1, 0, 0] = 1.0
    over = heated(frames, heat).astype(int)
    red, green, blue = over[1, 0, 0]
    assert red > blue and red > green
    for pixel in (over[0, 3, 3], over[1, 7, 7]):
        assert pixel[2] > pixel[0] and pixel[2] > pixel[1]
    assert (heated(frames, np.ones((2, 2, 2))) == over[0, 3, 3]).all()  # one scale for all frames
