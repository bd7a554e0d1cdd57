"""The small networks of the flow's relations: raw numbers of an affine r, and the coupling.

All begin where there is no relation: r = 0, and z = eps.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.blocks import ResBlock
from contextdiff_jax.networks.layers import Conv, Dense, GroupNorm, with_axes, zeros

_MAP = (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, axes.PATCH)
GROUPS = 8  # of the coupling's norms


class AffineRelation(nn.Module):
    """Raw slope and offset of each mode: a table, and what a condition adds.

    Attributes:
      modes: side of the block of lowest frequencies that a condition changes.
      width: of the network that reads the condition.
    """

    modes: int
    width: int

    @nn.compact
    def __call__(
        self, shape: tuple[int, int, int], context: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Returns the raw numbers, float32.

        Args:
          shape: (H, W, C) of x0.
          context: (B, D) float32, what the relation knows of the condition; None for nothing.

        Returns:
          The slope of each mode and the offset of each pixel, (H, W, C) or (B, H, W, C); and what
          the condition adds to the offset, in modes (B, H, W, C), None without one.
        """
        slope = self.param("slope", with_axes(zeros, *_MAP), shape)
        offset = self.param("offset", with_axes(zeros, *_MAP), shape)
        if context is None:
            return slope, offset, None
        height, width, channels = shape
        rows, columns = min(self.modes, height), min(self.modes, width)
        h = nn.silu(Dense(self.width, (axes.CONTEXT, axes.EMBED), name="hidden")(context))
        raw = Dense(
            2 * rows * columns * channels, (axes.EMBED, axes.PATCH), kernel_init=zeros, name="out"
        )(h).reshape(-1, 2, rows, columns, channels)
        around = ((0, 0), (0, 0), (0, height - rows), (0, width - columns), (0, 0))
        of_slope, of_offset = jnp.moveaxis(jnp.pad(raw, around), 1, 0)
        # A mode of an offset seen in every pixel is large: the root of their number.
        return slope + of_slope, offset, (height * width) ** 0.5 * of_offset


class Coupling(nn.Module):
    """Mean and log of the standard deviation of z, given x0 and the condition.

    Attributes:
      width: channels, a multiple of 8.
      dtype: compute dtype; parameters and results are float32.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x0: jax.Array, context: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Maps x0 (B, H, W, C), H and W even, and context (B, D) to mean and log std like x0."""
        channels, settings = x0.shape[-1], {"groups": GROUPS, "dtype": self.dtype}
        if context is not None:
            context = Dense(self.width, (axes.CONTEXT, axes.EMBED), name="context")(context)
        h = skip = Conv(self.width, dtype=self.dtype, name="conv_in")(x0)
        h = ResBlock(self.width, resample="down", name="down", **settings)(h, context)
        h = ResBlock(self.width, name="middle", **settings)(h, context)
        h = ResBlock(self.width, resample="up", name="up", **settings)(h, context) + skip
        h = nn.silu(GroupNorm(GROUPS, name="norm_out")(h))
        mean, log_std = jnp.split(Conv(2 * channels, kernel_init=zeros, name="out")(h), 2, axis=-1)
        return mean, log_std
