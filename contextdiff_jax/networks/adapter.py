"""Context-aware adapter: the relation r(x0, c, t) (ContextDiff, Yang et al., ICLR 2024).

Query tokens (patches of x0 plus CLIP image tokens plus position) attend each other and the CLIP
text tokens; t enters by adaptive LayerNorm. A zero-initialized linear layer writes the relation
back into pixels, so that at first the model is the plain diffusion model. The result is bounded,
r = s tanh(raw / s): nothing in the training loss stops an unbounded r from growing.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.attention import MultiHeadAttention
from contextdiff_jax.networks.causal_frames import CausalFrames
from contextdiff_jax.networks.conditioning import SinusoidMLP
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.dot_product_attention import Implementation
from contextdiff_jax.networks.layers import (
    Dense,
    LayerNorm,
    resize_bilinear,
    sinusoidal_embedding,
    with_axes,
    zeros,
)

# A scale and a shift for each of self-attention, cross-attention and MLP.
MODULATIONS = 6


class Adapter(nn.Module):
    """Relation r(x0, c, t) between an image and its condition.

    The adaptive LayerNorms share one projection of the time embedding, to which every block adds
    a table of its own (adaLN-single, Chen et al. 2023).

    Attributes:
      config: sizes, see AdapterConfig.
      dtype: compute dtype of the transformer; parameters, last layer and output are float32.
      frames: of the clips whose frames are the batch, see causal_frames; 0 for pictures.
    """

    config: AdapterConfig
    dtype: Any = jnp.float32
    frames: int = 0

    @nn.compact
    def __call__(
        self,
        x0: jax.Array,
        t: jax.Array,
        image_tokens: jax.Array | None,
        text_tokens: jax.Array,
        text_mask: jax.Array | None = None,
        return_maps: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Computes the relation.

        Args:
          x0: (B, H, W, C) in [-1, 1], the clean image or its estimate.
          t: (B,) timesteps, float32.
          image_tokens: (B, 1 + g*g, config.image_dim), CLS first, of the image encoder for x0;
            None where config.image_dim is.
          text_tokens: (B, L, config.text_dim) of the text encoder.
          text_mask: (B, L) bool, True for real tokens; None means all are. A row may be empty.
          return_maps: also return the cross-attention weights.

        Returns:
          r (B, H, W, C) float32 with |r| <= config.limit, and, if asked for, the weights
          (B, blocks, heads, H*W/patch_size^2, L) float32, query tokens row by row.

        Raises:
          ValueError: for inputs that do not fit the configuration.
        """
        config = self.config
        _, height, width, channels = x0.shape
        self._check(x0, image_tokens, text_tokens)
        if text_mask is None:
            text_mask = jnp.ones(text_tokens.shape[:2], bool)
        h = self._queries(x0, image_tokens)
        time = SinusoidMLP(config.time_width, config.time_width, name="time")(t)
        shared = Dense(
            MODULATIONS * config.width, (axes.EMBED, axes.MODULATION), name="modulation"
        )(nn.silu(time)).reshape(-1, MODULATIONS, config.width)
        maps = []
        for i in range(config.num_blocks):
            block = AdapterBlock(
                config.heads,
                config.mlp_ratio,
                self.dtype,
                config.attention_implementation,
                self.frames,
                name=f"block_{i}",
            )
            text = text_tokens.astype(self.dtype)
            h, weights = block(h, shared, text, text_mask, return_maps)
            maps.append(weights)
        h = LayerNorm(name="norm_out")(h)
        features = config.patch_size**2 * channels
        raw = Dense(features, (axes.EMBED, axes.PATCH), kernel_init=zeros, name="out")(h)
        raw = unpatchify(raw, height, width, config.patch_size)
        relation = raw if config.limit is None else config.limit * jnp.tanh(raw / config.limit)
        return (relation, jnp.stack(maps, axis=1)) if return_maps else relation

    def _queries(self, x0: jax.Array, image_tokens: jax.Array | None) -> jax.Array:
        """Patch embedding plus image tokens resized to the query grid plus position."""
        config = self.config
        rows, columns = x0.shape[1] // config.patch_size, x0.shape[2] // config.patch_size
        patches = Dense(config.width, (axes.PATCH, axes.EMBED), dtype=self.dtype, name="patches")
        position = grid_positions(rows, columns, config.width).astype(self.dtype)
        queries = patches(patchify(x0, config.patch_size))
        if image_tokens is None:
            return queries + position
        image = LayerNorm(name="image_norm")(image_tokens[:, 1:])
        side = math.isqrt(image.shape[1])
        image = resize_bilinear(image.reshape(-1, side, side, config.image_dim), rows, columns)
        image = image.reshape(-1, rows * columns, config.image_dim)
        project = Dense(config.width, (axes.CONTEXT, axes.EMBED), dtype=self.dtype, name="image")
        return queries + project(image) + position

    def _check(self, x0: jax.Array, image_tokens: jax.Array | None, text_tokens: jax.Array) -> None:
        config = self.config
        config.check_resolution(x0.shape[1], "height of x0")
        config.check_resolution(x0.shape[2], "width of x0")
        width = None if image_tokens is None else image_tokens.shape[-1]
        grid = 1 if image_tokens is None else image_tokens.shape[1] - 1
        if grid < 1 or math.isqrt(grid) ** 2 != grid:
            raise ValueError(
                f"image_tokens = {grid + 1} tokens: must be 1 + g*g (CLS and a square grid)"
            )
        for name, value, allowed in (
            ("channels of x0", x0.shape[-1], config.image_channels),
            ("width of image_tokens", width, config.image_dim),
            ("width of text_tokens", text_tokens.shape[-1], config.text_dim),
        ):
            if value != allowed:
                raise ValueError(f"{name} = {value}: must be {allowed}, which the adapter takes")


class AdapterBlock(nn.Module):
    """Self-attention, cross-attention to text and MLP, each behind an adaptive LayerNorm.

    Attributes:
      heads: attention heads.
      mlp_ratio: hidden width of the MLP in units of the token width.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention.
      frames: as Adapter's.
    """

    heads: int
    mlp_ratio: int
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"
    frames: int = 0

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        modulation: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        return_maps: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Transforms query tokens.

        Args:
          h: (B, Q, C) query tokens.
          modulation: (B, 6, C) float32, shared by all blocks.
          text: (B, L, D) text tokens.
          text_mask: (B, L) bool.
          return_maps: also return the cross-attention weights.

        Returns:
          (B, Q, C), and the cross-attention weights (B, heads, Q, L) float32, or None.
        """
        width = h.shape[-1]
        table = self.param(
            "modulation",
            with_axes(nn.initializers.normal(width**-0.5), axes.MODULATION, axes.EMBED),
            (MODULATIONS, width),
        )
        modulation = modulation + table

        def adapted(i: int) -> jax.Array:
            scale, shift = modulation[:, 2 * i, None], modulation[:, 2 * i + 1, None]
            return (LayerNorm(affine=False)(h) * (1.0 + scale) + shift).astype(self.dtype)

        settings = {"dtype": self.dtype, "implementation": self.implementation}
        attend_self = MultiHeadAttention(self.heads, "self", **settings, name="self")
        h = h + attend_self(adapted(0))[0]
        if self.frames:
            h = h + CausalFrames(self.heads, self.frames, **settings, name="frames")(h)
        attend_text = MultiHeadAttention(self.heads, "context", **settings, name="cross")
        attended, weights = attend_text(adapted(1), text, text_mask, return_maps)
        h = h + attended
        hidden = self.mlp_ratio * width
        y = Dense(hidden, (axes.EMBED, axes.MLP), dtype=self.dtype, name="mlp_in")(adapted(2))
        y = nn.gelu(y, approximate=False)
        y = Dense(width, (axes.MLP, axes.EMBED), dtype=self.dtype, name="mlp_out")(y)
        return h + y, weights


def patchify(x: jax.Array, size: int) -> jax.Array:
    """Cuts (B, H, W, C) into patches (B, H/size * W/size, size * size * C), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatchify(patches: jax.Array, height: int, width: int, size: int) -> jax.Array:
    """Inverse of patchify, to (B, height, width, C)."""
    batch = patches.shape[0]
    x = patches.reshape(batch, height // size, width // size, size, size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def grid_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Sinusoidal positions (rows * columns, width) f32: half of the width for each direction.

    Coordinates are relative to a grid of 16, so that grids of any size cover the same range.
    """

    def encode(count: int) -> jax.Array:
        centres = (jnp.arange(count) + 0.5) / count * 16.0
        return sinusoidal_embedding(centres, width // 2)

    row = jnp.repeat(encode(rows), columns, axis=0)
    return jnp.concatenate([row, jnp.tile(encode(columns), (rows, 1))], axis=-1)
