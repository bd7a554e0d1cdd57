"""Masks of what an edit may change, of cross-attention to the words that name it (FateZero)."""

import jax
import jax.numpy as jnp
import numpy as np


def word_heat(maps: jax.Array, words: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns how much each position attends to some words, (F, m, n): summed, and 3x3 max-pooled.

    maps: (F, m * n, L), cross-attention averaged over sites and heads. words: (L,), 1 for their
    tokens. size: (m, n).
    """
    heat = (maps @ words).reshape(-1, *size)
    around = jnp.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-jnp.inf)
    rows, columns = size
    shifted = [
        around[:, down : down + rows, right : right + columns]
        for down in range(3)
        for right in range(3)
    ]
    return jnp.max(jnp.stack(shifted), axis=0)


def site_mask(heat: jax.Array, threshold: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns where the heat (F, m, n), brought to a size, is above a share of its maximum, bool.

    Resized to the nearest as torch does it: output i reads input floor(i m / size).
    """
    for axis, length in ((1, size[0]), (2, size[1])):
        taken = np.arange(length) * heat.shape[axis] // length
        heat = jnp.take(heat, taken, axis=axis)
    return heat > threshold * heat.max((1, 2), keepdims=True)
