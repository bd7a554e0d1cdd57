"""Transformers over the tokens of a layout: LDM's, and the layers that other forms share."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.latent_blocks import SiteAttention
from contextdiff_jax.networks.layers import Dense, LayerNorm, with_axes
from contextdiff_jax.system.limits import most


@dataclasses.dataclass(frozen=True)
class LayoutTransformerConfig:
    """Sizes of LDM's transformer over layout tokens; the defaults are those published.

    vocab_size: tokens. max_length: of a sequence. width, layers, heads: of the transformer.
    """

    vocab_size: int = dataclasses.field(default=8192, metadata=most(2**20))
    max_length: int = dataclasses.field(default=92, metadata=most(2**12))
    width: int = dataclasses.field(default=512, metadata=most(2**14))
    layers: int = dataclasses.field(default=16, metadata=most(256))
    heads: int = dataclasses.field(default=8, metadata=most(1024))


class TokenLayer(nn.Module):
    """Pre-LayerNorm layer: self-attention without biases of q, k and v, then an MLP of exact GELU.

    Attributes:
      heads: attention heads; must divide the width.
      dtype: compute dtype.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps x (B, L, D) to the same shape; mask (B, L) bool, True for what may be attended."""
        h = LayerNorm(dtype=self.dtype, name="norm_1")(x)
        x = x + SiteAttention(self.heads, dtype=self.dtype, name="attention")(h, None, mask)
        h = LayerNorm(dtype=self.dtype, name="norm_2")(x)
        width = x.shape[-1]
        h = Dense(4 * width, (axes.EMBED, axes.MLP), dtype=self.dtype, name="mlp_in")(h)
        h = jax.nn.gelu(h, approximate=False)
        return x + Dense(width, (axes.MLP, axes.EMBED), dtype=self.dtype, name="mlp_out")(h)


class LayoutTransformer(nn.Module):
    """LDM's BERT-like encoder of layout tokens (Rombach et al. 2022); no mask, pads are tokens too.

    Attributes:
      config: sizes.
      dtype: compute dtype.
    """

    config: LayoutTransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens (B, L) int32, L at most max_length, to (B, L, width) float32."""
        c, normal = self.config, nn.initializers.normal(0.02)
        rows = with_axes(normal, axes.VOCAB, axes.EMBED)
        table = self.param("tokens", rows, (c.vocab_size, c.width))
        places = with_axes(normal, axes.POSITION, axes.EMBED)
        positions = self.param("positions", places, (c.max_length, c.width))
        h = jnp.take(table, tokens, axis=0) + positions[: tokens.shape[1]]
        for number in range(c.layers):
            h = TokenLayer(c.heads, self.dtype, name=f"layer_{number}")(h)
        return LayerNorm(name="norm")(h)
