"""Affine relations r(x0) on the linear path: a diagonal in a cosine basis, and an offset.

r = B^-1 slope B x0 + offset, where B is the orthonormal DCT-II over height, width and channels
(scipy.fft.dctn, type 2, norm "ortho"). Of three colours its channel axis is grey, red against blue,
and green against both. slope and offset may depend on the condition; neither depends on the time.

An affine r is the one kind for which x0_hat follows from the velocity, and E[r(x0) | x_t] from
x0_hat: nothing that a sampler does with it is an approximation.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from contextdiff_jax.diffusion.shapes import Array

_LEAST = 0.1  # of a mode's factor in x0 + t^2 r: nearer to 0, x0 can hardly be told from it


class Affine(NamedTuple):
    """slope: of each mode, (H, W, C), (B, H, W, C), or () for all. offset: in pixels, likewise."""

    slope: jax.Array
    offset: jax.Array

    def __call__(self, x0: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
        """Returns r like x0 (B, H, W, C)."""
        return from_modes(self.slope * to_modes(x0)) + self.offset

    def x0_of(self, landing: jax.Array, t: jax.Array) -> jax.Array:
        """Returns x0 of x0 + t^2 r(x0) (B, H, W, C); t () or (B, 1, 1, 1).

        Where a mode of x0 all but vanishes there, as at a slope near -1 / t^2, its factor is taken
        to be 0.1 of its own sign.
        """
        factor = 1 + jnp.square(t) * self.slope
        factor = jnp.where(jnp.abs(factor) < _LEAST, jnp.copysign(_LEAST, factor), factor)
        return from_modes(to_modes(landing - jnp.square(t) * self.offset) / factor)


def bounded(slope: jax.Array, offset: jax.Array, limit: float) -> Affine:
    """Returns the relation of raw numbers, each between -limit and limit: limit tanh(raw/limit)."""
    return Affine(*(limit * jnp.tanh(raw / limit) for raw in (slope, offset)))


def whitened(mean: Float[Array, "h w c"], std: Float[Array, "h w c"]) -> Affine:
    """Returns r = rho (x0 - mean) with rho = 1.2 std^-0.8 of each mode's standard deviation.

    mean: in pixels. std: of the modes; both (H, W, C). Were the data Gaussian, the least kinetic
    energy would need a rho that depends on t; this one number a mode comes near it at all t.
    Modes that hardly vary (below 1e-3) are taken as that.
    """
    slope = 1.2 * jnp.maximum(std, 1e-3) ** -0.8
    return Affine(slope, -from_modes(slope * to_modes(mean[None]))[0])


def to_modes(x: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
    """Returns the orthonormal DCT-II of (..., H, W, C) over its last three axes."""
    height, width, channels = (cosines(side) for side in x.shape[-3:])
    return jnp.einsum("uh,vw,kc,...hwc->...uvk", height, width, channels, x, precision="highest")


def from_modes(modes: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
    """Returns the inverse of `to_modes`."""
    height, width, channels = (cosines(side) for side in modes.shape[-3:])
    spread = "uh,vw,kc,...uvk->...hwc"
    return jnp.einsum(spread, height, width, channels, modes, precision="highest")


@functools.cache
def cosines(side: int) -> Float[np.ndarray, "{side} {side}"]:
    """Returns the orthonormal DCT-II of `side` values as a matrix, float32 (modes, places)."""
    mode, place = np.mgrid[:side, :side]
    matrix = np.cos(np.pi * mode * (place + 0.5) / side) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)
