"""Decoding large latents tile by tile, in the memory of one tile."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float


def decode_in_tiles(
    decode: Callable[[jax.Array], jax.Array],
    latents: Float[ArrayLike, "batch h w latent"],
    tile: int,
    overlap: int,
    reduction: int,
) -> Float[ArrayLike, "batch height width c"]:
    """Returns what `decode` makes of latents (B, h, w, c), put together from overlapping tiles.

    Where tiles overlap, one fades into the next linearly: the border of a tile, which cannot see
    its neighbours, weighs least.

    Args:
      decode: maps (B, t, t', c) to (B, t * reduction, t' * reduction, C).
      latents: (B, h, w, c).
      tile: side of a tile in latents; a smaller side of `latents` is decoded whole.
      overlap: in latents, from 0 to below `tile`.
      reduction: factor between the resolutions of pictures and latents.
    """
    batch, height, width, channels = latents.shape
    rows, columns = (_Axis.of(side, tile, overlap, reduction) for side in (height, width))
    weights, covered = (
        np.outer(getattr(rows, name), getattr(columns, name))[None, :, :, None]
        for name in ("ramp", "covered")
    )
    shape = (batch, rows.tile, columns.tile, channels)

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        part = lax.dynamic_slice(latents, (0, start[0], start[1], 0), shape)
        picture = decode(part).astype(jnp.float32) * weights
        at = (0, start[0] * reduction, start[1] * reduction, 0)
        before = lax.dynamic_slice(total, at, picture.shape)
        return lax.dynamic_update_slice(total, before + picture, at), None

    one = jax.eval_shape(decode, jax.ShapeDtypeStruct(shape, latents.dtype))
    total = jnp.zeros((batch, height * reduction, width * reduction, one.shape[-1]), jnp.float32)
    places = jnp.asarray([(y, x) for y in rows.starts for x in columns.starts], jnp.int32)
    return lax.scan(add, total, places)[0] / covered


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Tiles along one axis: their side and starts in latents, and in pixels the weights of one
    tile and the sums of all tiles' weights."""

    tile: int
    starts: list[int]
    ramp: np.ndarray
    covered: np.ndarray

    @classmethod
    def of(cls, side: int, tile: int, overlap: int, reduction: int) -> "_Axis":
        step, tile = tile - overlap, min(tile, side)
        starts = [*range(0, side - tile, step), side - tile]
        place = np.arange(tile * reduction) + 0.5
        edge = np.minimum(place, tile * reduction - place)
        ramp = np.minimum(edge / max(overlap * reduction, 0.5), 1.0).astype(np.float32)
        covered = np.zeros(side * reduction, np.float32)
        for start in starts:
            covered[start * reduction : (start + tile) * reduction] += ramp
        return cls(tile, starts, ramp, covered)
