"""Efficient U-Net for super-resolution, 64 -> 256 (Imagen, Saharia et al. 2022, appendix F.2).

A level is entered by a strided convolution and left by an upsampling one, so its blocks run at the
lower resolution; most blocks sit at the coarse levels. Every block on the way up takes the output
of its counterpart on the way down, scaled by 1/sqrt(2). The embedding is added once per level.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.blocks import AttentionBlock, BlockStack, OutputHead, rematerialized
from contextdiff_jax.networks.conditioning import Conditioning, join_low_res
from contextdiff_jax.networks.config import EfficientUNetConfig
from contextdiff_jax.networks.layers import Conv, Dense, upsample_nearest

SKIP_SCALE = 2**-0.5


class EfficientUNet(nn.Module):
    """Denoiser f(x_t, t, text, low_res).

    Attributes:
      config: sizes, see EfficientUNetConfig.
      dtype: compute dtype of matmuls and convolutions; parameters and output are float32.
    """

    config: EfficientUNetConfig
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
    ) -> jax.Array:
        """Predicts x0, eps or v; arguments, result and errors are those of UNet."""
        config = self.config
        config.check_resolution(x.shape[1], "height of x")
        config.check_resolution(x.shape[2], "width of x")
        conditions = Conditioning(
            config.channels[0],
            4 * config.channels[0],
            config.text_dim,
            config.text_width,
            config.heads,
            config.null,
            config.low_res,
            self.dtype,
            config.attention_implementation,
            name="conditioning",
        )(t, text, text_mask, keep, aug_level)
        joined = join_low_res(x, low_res, config.low_res)
        h = Conv(config.channels[0], dtype=self.dtype, name="conv_in")(joined)
        skips = []
        for level in range(len(config.channels)):
            h, outputs = self._down(level, h, conditions)
            skips.append(outputs)
        for level in reversed(range(len(config.channels))):
            h = self._up(level, h, skips.pop(), conditions)
        output = OutputHead(config.image_channels, config.groups, name="head")(h)
        return output + joined[..., config.image_channels :] if config.residual else output

    def _down(
        self, level: int, h: jax.Array, conditions: tuple
    ) -> tuple[jax.Array, list[jax.Array]]:
        config = self.config
        channels, stride = config.channels[level], config.strides[level]
        h = Conv(channels, stride=stride, dtype=self.dtype, name=f"down_{level}_conv")(h)
        return self._blocks(f"down_{level}", level, h, None, conditions)

    def _up(self, level: int, h: jax.Array, skips: list[jax.Array], conditions: tuple) -> jax.Array:
        config = self.config
        h, _ = self._blocks(f"up_{level}", level, h, skips[::-1], conditions)
        if config.strides[level] == 2:
            h = upsample_nearest(h)
        channels = config.channels[max(level - 1, 0)]
        return Conv(channels, dtype=self.dtype, name=f"up_{level}_conv")(h)

    def _blocks(
        self,
        name: str,
        level: int,
        h: jax.Array,
        skips: list[jax.Array] | None,
        conditions: tuple,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Adds the embedding, applies the level's ResBlocks and its attention, if any."""
        config, (embedding, text, text_mask) = self.config, conditions
        channels = config.channels[level]
        added = Dense(
            channels, (axes.EMBED, axes.CONV_OUT), dtype=self.dtype, name=f"{name}_embedding"
        )(nn.silu(embedding))
        block = {
            "channels": channels,
            "groups": config.groups,
            "always_project": True,
            "skip_scale": SKIP_SCALE,
            "dtype": self.dtype,
        }
        stack = BlockStack(
            config.num_blocks[level], block, config.scan_blocks, config.remat_at(level), name=name
        )
        h, outputs = stack(h + added[:, None, None], skips, None, None, None)
        if level in config.attention_levels:
            attention = rematerialized(AttentionBlock, config.remat_at(level))
            h = attention(
                config.heads,
                config.groups,
                self.dtype,
                config.attention_implementation,
                name=f"{name}_attn",
            )(h, text, text_mask)
        return h, outputs
