"""What is learned of a layout: tokens of its objects, and its boxes painted into a picture.

Objects come as arrays: classes (B, N) int32, boxes (B, N, 4) float32 (x0, y0, x1, y1 in sides, y
downwards) and real (B, N) bool, False for places that hold none. Nothing here depends on the order
of the objects, and there may be none.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num, Shaped

from contextdiff_jax.conditions.class_label import Embedding
from contextdiff_jax.diffusion.shapes import Array
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.blocks import ResBlock
from contextdiff_jax.networks.layers import Conv, Dense, GroupNorm, LayerNorm
from contextdiff_jax.networks.layout_transformer import TokenLayer
from contextdiff_jax.system.limits import most

PAINTED = 4
"""Channels of a painted map beside the classes' vectors: coverage, edge, x and y in the box."""

_FREQUENCIES = 6  # of a corner's sinusoids, each twice the one before


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """Sizes of what is learned of a map of classes.

    width: of the denoiser's tokens, its text_dim. painted: of the classes' painted vectors.
    adapter_width: of the adapter's tokens, its text_dim. grid: side of the map that they are made
    of, a multiple of 4; there are (grid / 4)^2. channels, groups: of its ResNet blocks, channels
    doubled twice.
    """

    width: int = dataclasses.field(default=512, metadata=most(2**14))
    painted: int = dataclasses.field(default=64, metadata=most(2**14))
    adapter_width: int = dataclasses.field(default=512, metadata=most(2**14))
    grid: int = dataclasses.field(default=32, metadata=most(256))
    channels: int = dataclasses.field(default=128, metadata=most(2**12))
    groups: int = dataclasses.field(default=32, metadata=most(2**14))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        for key in ("width", "painted", "adapter_width", "grid", "channels", "groups"):
            if getattr(self, key) < 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least 1")
        if self.channels % self.groups:
            raise ValueError(
                f"{where}.groups = {self.groups}: must divide {where}.channels = {self.channels}"
            )
        if self.grid % 4:
            raise ValueError(f"{where}.grid = {self.grid}: must be a multiple of 4")


class ObjectTokens(nn.Module):
    """One token for each object, of its class and corners, through a transformer over all of them.

    Attributes:
      count: number of classes.
      width: of the tokens.
      layers: of the transformer; 0 for none.
      heads: attention heads.
      dtype: compute dtype.
    """

    count: int
    width: int
    layers: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, classes: jax.Array, boxes: jax.Array, real: jax.Array) -> jax.Array:
        """Returns the tokens (B, N, width) float32."""
        place = Dense(self.width, (axes.CONTEXT, axes.EMBED), dtype=self.dtype, name="place")
        h = Embedding(self.count, self.width, name="embedding")(classes)
        h = h + place(_sinusoids(boxes))
        for number in range(self.layers):
            h = TokenLayer(self.heads, self.dtype, name=f"layer_{number}")(h, real)
        return LayerNorm(name="norm")(h)


class Painted(nn.Module):
    """A picture of the layout: every object paints its class's learned vector over its box.

    Attributes:
      count: number of classes.
      width: of the vectors.
      side: of the picture.
    """

    count: int
    width: int
    side: int

    @nn.compact
    def __call__(self, classes: jax.Array, boxes: jax.Array, real: jax.Array) -> jax.Array:
        """Returns the map (B, side, side, width + PAINTED) float32."""
        vectors = Embedding(self.count, self.width, name="embedding")(classes)
        return paint(vectors, boxes, real, self.side)


class MapTokens(nn.Module):
    """Tokens of a map for the adapter, by ResNet blocks at three scales.

    Attributes:
      config: sizes.
      dtype: compute dtype.
    """

    config: MapConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, grid, grid, D) to tokens (B, (grid / 4)^2, adapter_width) float32."""
        c = self.config
        h = Conv(c.channels, dtype=self.dtype, name="conv_in")(h)
        for level, resample in enumerate((None, "down", "down")):
            for number in range(2):
                h = ResBlock(
                    c.channels * 2**level,
                    c.groups,
                    resample if number == 0 else None,
                    dtype=self.dtype,
                    name=f"res_{level}_{number}",
                )(h)
        h = GroupNorm(c.groups, name="norm")(h)
        h = h.reshape(h.shape[0], -1, h.shape[-1])
        return Dense(c.adapter_width, (axes.EMBED, axes.CONTEXT), name="project")(h)


class LayoutTokens(nn.Module):
    """Tokens of a layout for the adapter: those of its boxes, painted.

    Attributes:
      count: number of classes.
      config: sizes.
      dtype: compute dtype.
    """

    count: int
    config: MapConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, classes: jax.Array, boxes: jax.Array, real: jax.Array) -> jax.Array:
        """Returns the tokens (B, (grid / 4)^2, adapter_width) float32."""
        painted = Painted(self.count, self.config.painted, self.config.grid, name="painted")
        return MapTokens(self.config, self.dtype, name="blocks")(painted(classes, boxes, real))


def paint(
    vectors: Float[Array, "batch n depth"],
    boxes: Num[Array, "batch n 4"],
    real: Shaped[Array, "batch n"],
    side: int,
) -> Float[Array, "batch {side} {side} painted"]:
    """Returns vectors (B, N, D) painted over their boxes, (B, side, side, D + PAINTED) float32.

    Each pixel has the mean over the boxes on it, weighted by the share of it that they cover; where
    they cover less than all of it the rest counts as nothing. After the D channels: how much is
    covered and how much of that is a box's outermost pixel (both at most 1), and where in the box
    the pixel lies, -1 to 1 across and down.
    """
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    shown = real.astype(jnp.float32)[..., None]
    across, down = _covered(x0, x1, side), _covered(y0, y1, side) * shown
    one = 1 / side
    inner_across = _covered(x0 + one, x1 - one, side)
    inner_down = _covered(y0 + one, y1 - one, side) * shown
    rows, columns = _place(y0, y1, side), _place(x0, x1, side)

    def over(down: jax.Array, across: jax.Array) -> jax.Array:
        return jnp.einsum("bni,bnj->bij", down, across)

    total = over(down, across)
    edge = total - over(inner_down, inner_across)
    extra = jnp.stack([over(down, across * columns), over(down * rows, across)], axis=-1)
    colours = jnp.einsum("bni,bnj,bnd->bijd", down, across, vectors.astype(jnp.float32))
    mean = jnp.concatenate([colours, extra], axis=-1) / jnp.maximum(total, 1.0)[..., None]
    covered = jnp.stack([jnp.minimum(total, 1.0), jnp.minimum(edge, 1.0)], axis=-1)
    depth = vectors.shape[-1]
    return jnp.concatenate([mean[..., :depth], covered, mean[..., depth:]], axis=-1)


def _covered(low: jax.Array, high: jax.Array, side: int) -> jax.Array:
    """Returns the share of each of `side` pixels between low and high (B, N), (B, N, side)."""
    pixel = jnp.arange(side)
    start = jnp.maximum(low[..., None] * side, pixel)
    end = jnp.minimum(high[..., None] * side, pixel + 1)
    return jnp.maximum(end - start, 0.0)


def _place(low: jax.Array, high: jax.Array, side: int) -> jax.Array:
    """Returns where each pixel's centre lies between low and high (B, N), -1 to 1; (B, N, side)."""
    centre = (jnp.arange(side) + 0.5) / side
    length = jnp.maximum(high - low, 1 / side)[..., None]
    return jnp.clip((2 * centre - (low + high)[..., None]) / length, -1.0, 1.0)


def _sinusoids(boxes: jax.Array) -> jax.Array:
    """Returns sines and cosines of the corners, (..., 8 _FREQUENCIES) float32."""
    frequencies = math.pi * 2.0 ** jnp.arange(_FREQUENCIES)
    angles = boxes.astype(jnp.float32)[..., None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*boxes.shape[:-1], -1)
