"""Attention that is taken over, against explicit maps; masks against SciPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from contextdiff_jax.networks.attention_fusion import Fusion
from contextdiff_jax.networks.attention_masks import site_mask, word_heat
from contextdiff_jax.networks.dot_product_attention import attend

FRAMES, ROWS, HEADS, TOKENS = 2, 3, 2, 5
SIDE = (8, 4)  # of the latents; the site has 4 x 2 positions
RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


FUSION = Fusion(
    self_on=jnp.array(True),
    heat=jnp.asarray(RNG.random((FRAMES, 4, 2)), jnp.float32),
    threshold=jnp.float32(0.5),
    projection=jnp.asarray(RNG.random((TOKENS, TOKENS)), jnp.float32),
    alpha=jnp.array([1, 0, 1, 1, 0.0]),
    equalizer=jnp.array([1, 1, 2, 1, 0.5]),
    weight=jnp.array([1, 0, 1, 0.3, 1.0]),
    rows=ROWS,
    side=SIDE,
    finest=2,
)
QUERY, KEY, VALUE = (normal(FRAMES * ROWS, n, HEADS, 3) for n in (8, 16, 16))


def explicit_maps(query, key):
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(3)
    return special.softmax(logits, axis=-1)


def rows(x):
    return np.asarray(x).reshape(FRAMES, ROWS, *np.shape(x)[1:])


@pytest.mark.parametrize("masked", [True, False])
def test_fused_self_attention_is_that_of_explicit_maps(masked):
    fusion = FUSION if masked else dataclasses.replace(FUSION, heat=None)
    maps = rows(explicit_maps(QUERY, KEY))
    heat = np.asarray(FUSION.heat)
    free = (heat > 0.5 * heat.max((1, 2), keepdims=True)).reshape(FRAMES, 1, 8, 1)
    assert 0 < free.mean() < 1
    free = free if masked else np.zeros_like(free)
    maps[:, 1] = free * maps[:, 1] + (1 - free) * maps[:, 0]
    expected = np.einsum("frhqk,frkhd->frqhd", maps, rows(VALUE))
    assert fusion.applies(8)
    got = fusion.fused_self(attend, *map(jnp.asarray, (QUERY, KEY, VALUE)))
    np.testing.assert_allclose(rows(got), expected, atol=1e-5)


def test_outside_its_steps_and_at_fine_sites_nothing_is_taken_over():
    given = tuple(map(jnp.asarray, (QUERY, KEY, VALUE)))
    plain = attend(*given)
    off = dataclasses.replace(FUSION, self_on=jnp.array(False))
    np.testing.assert_allclose(off.fused_self(attend, *given), plain, atol=1e-6)
    # Of 8 x 4 latents a site of 4 x 2 is coarse enough for a factor of 2, not for one of 4.
    assert not dataclasses.replace(FUSION, finest=4).applies(8)
    assert dataclasses.replace(FUSION, finest=4).applies(2)


def test_fused_cross_attention_is_the_formula():
    weights = special.softmax(normal(FRAMES * ROWS, HEADS, 8, TOKENS), axis=-1)
    expected = rows(weights.copy())
    w, eq, alpha, projection = (
        np.asarray(getattr(FUSION, name)) for name in ("weight", "equalizer", "alpha", "projection")
    )
    for frame, head, query in np.ndindex(FRAMES, HEADS, 8):
        source, own = rows(weights)[frame, :2, head, query]
        for token in range(TOKENS):
            carried = sum(source[k] * projection[k, token] for k in range(TOKENS))
            aligned = alpha[token] * carried + (1 - alpha[token]) * own[token]
            mixed = w[token] * eq[token] * aligned + (1 - w[token]) * own[token]
            expected[frame, 1, head, query, token] = mixed
    got = FUSION.fused_cross(jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(rows(got), expected, atol=1e-6)


def test_the_masks_recipe():
    maps = RNG.random((FRAMES, 16 * 12, TOKENS)).astype(np.float32)
    words = np.array([0, 1, 0, 1, 0], np.float32)
    heat = word_heat(jnp.asarray(maps), jnp.asarray(words), (16, 12))
    summed = maps[..., [1, 3]].sum(-1).reshape(FRAMES, 16, 12)
    pooled = ndimage.maximum_filter(summed, (1, 3, 3), mode="constant", cval=-np.inf)
    np.testing.assert_allclose(heat, pooled, rtol=1e-6)
    torch = pytest.importorskip("torch")
    for size in ((8, 6), (32, 24), (16, 12)):
        resized = torch.nn.functional.interpolate(torch.from_numpy(pooled)[:, None], size)[:, 0]
        resized = resized.numpy()
        expected = resized / resized.max((1, 2), keepdims=True) > 0.9
        np.testing.assert_array_equal(site_mask(heat, 0.9, size), expected)
        assert 0 < expected.mean() < 1
    assert not np.any(site_mask(heat, 2.0, (8, 6)))  # everything is copied
