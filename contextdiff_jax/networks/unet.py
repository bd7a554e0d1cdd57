"""Base U-Net of the 64x64 model (Imagen, Saharia et al. 2022, appendix F.1).

Resampling inside ResBlocks, scale-shift time conditioning, self- and text-attention sharing one
softmax at the coarser levels, a Res-Attn-Res middle. The layout of blocks and skips is ADM's
(Dhariwal & Nichol 2021): every block on the way down leaves a skip, every block on the way up
takes one, so there is one block more per level on the way up.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks.blocks import (
    AttentionBlock,
    BlockStack,
    OutputHead,
    ResBlock,
    rematerialized,
)
from contextdiff_jax.networks.conditioning import Conditioning, join_low_res
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.layers import Conv

Residuals = Sequence[jax.Array]
"""What is added to the skips, in the order in which they arise, and last to the middle's output."""


class UNet(nn.Module):
    """Denoiser f(x_t, t, text).

    Attributes:
      config: sizes, see UNetConfig.
      dtype: compute dtype of matmuls and convolutions; parameters and output are float32.
    """

    config: UNetConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        keep: jax.Array | None = None,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
        residuals: Residuals | None = None,
    ) -> jax.Array:
        """Predicts x0, eps or v, whatever it is trained for.

        Args:
          x: (B, H, W, C) float32 noisy images; H and W multiples of config.reduction.
          t: (B,) timesteps 1..T, float32; or (B, 2), see conditioning.embedded_times.
          text: (B, L, config.text_dim), or None for the null condition (or no text at all).
          text_mask: (B, L) bool, True for real tokens; None means all are.
          keep: (B,) bool, False replaces the prompt by the null condition; None keeps all.
          low_res: (B, h, w, C) in [-1, 1], noise-augmented; with config.low_res only.
          aug_level: (B,) in [0, 1], noise level of low_res; with config.low_res only.
          residuals: of a control branch, see controlnet; None for none.

        Returns:
          (B, H, W, C) float32.

        Raises:
          ValueError: for inputs that do not fit the configuration.
        """
        h, conditions = self._enter(x, t, text, text_mask, keep, low_res, aug_level)
        return self._rest(h, conditions, residuals)

    def _enter(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        keep: jax.Array | None = None,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple]:
        """Returns the first features, and what every block is conditioned on."""
        config = self.config
        config.check_resolution(x.shape[1], "height of x")
        config.check_resolution(x.shape[2], "width of x")
        conditions = Conditioning(
            config.width,
            4 * config.width,
            config.text_dim,
            config.text_width,
            (config.text_width or config.text_dim or 0) // config.head_dim,
            config.null,
            config.low_res,
            self.dtype,
            config.attention_implementation,
            name="conditioning",
        )(t, text, text_mask, keep, aug_level)
        h = join_low_res(x, low_res, config.low_res)
        return Conv(config.width, dtype=self.dtype, name="conv_in")(h), conditions

    def _rest(self, h: jax.Array, conditions: tuple, residuals: Residuals | None) -> jax.Array:
        h, skips = self._down(h, conditions)
        h = self._middle(h, conditions)
        if residuals is not None:
            *outer, last = residuals
            h = h + last
            skips = [skip + each for skip, each in zip(skips, outer, strict=True)]
        return self._head(self._up(h, skips, conditions))

    def _head(self, h: jax.Array) -> jax.Array:
        return OutputHead(self.config.image_channels, self.config.groups, name="head")(h)

    def _down(self, h: jax.Array, conditions: tuple) -> tuple[jax.Array, list[jax.Array]]:
        skips = [h]
        for level in range(len(self.config.channels)):
            if level > 0:
                h = self._resample("down", level - 1, h, conditions[0])
                skips.append(h)
            stack = self._stack(level, self.config.num_blocks, f"down_{level}")
            h, outputs = stack(h, None, *conditions)
            skips.extend(outputs)
        return h, skips

    def _middle(self, h: jax.Array, conditions: tuple) -> jax.Array:
        config, (embedding, text, text_mask) = self.config, conditions
        channels = config.channels[-1]
        remat = config.remat_at(len(config.channels) - 1)
        res = rematerialized(ResBlock, remat)
        attention = rematerialized(AttentionBlock, remat)
        h = res(channels, config.groups, dtype=self.dtype, name="middle_res_0")(h, embedding)
        h = attention(
            channels // config.head_dim,
            config.groups,
            self.dtype,
            config.attention_implementation,
            name="middle_attn",
        )(h, text, text_mask)
        return res(channels, config.groups, dtype=self.dtype, name="middle_res_1")(h, embedding)

    def _up(self, h: jax.Array, skips: list[jax.Array], conditions: tuple) -> jax.Array:
        count = self.config.num_blocks + 1
        for level in reversed(range(len(self.config.channels))):
            taken = [skips.pop() for _ in range(count)]
            h, _ = self._stack(level, count, f"up_{level}")(h, taken, *conditions)
            if level > 0:
                h = self._resample("up", level, h, conditions[0])
        return h

    def _stack(self, level: int, count: int, name: str) -> BlockStack:
        config = self.config
        channels = config.channels[level]
        block = {
            "channels": channels,
            "heads": channels // config.head_dim if level in config.attention_levels else None,
            "groups": config.groups,
            "dtype": self.dtype,
            "implementation": config.attention_implementation,
        }
        return BlockStack(count, block, config.scan_blocks, config.remat_at(level), name=name)

    def _resample(
        self, direction: str, level: int, h: jax.Array, embedding: jax.Array
    ) -> jax.Array:
        config = self.config
        finer = level if direction == "down" else level - 1  # where most of its pixels are
        block = rematerialized(ResBlock, config.remat_at(finer))(
            config.channels[level],
            config.groups,
            direction,
            dtype=self.dtype,
            name=f"{direction}_{level}_resample",
        )
        return block(h, embedding)
