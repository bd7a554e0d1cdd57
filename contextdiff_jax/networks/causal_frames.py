"""Attention of a frame's tokens to those of the frames just before it: the adapter's part of clips.

Yang et al. 2024 (ContextDiff): "causal attention over 3 frames".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.networks.dot_product_attention import Implementation
from contextdiff_jax.networks.latent_blocks import SiteAttention
from contextdiff_jax.networks.layers import LayerNorm, zeros

_SEEN = ("-2", "-1", "0")


class CausalFrames(nn.Module):
    """LayerNorm, and attention to the tokens of frames i - 2, i - 1 and i; it begins as zero.

    Attributes:
      heads: attention heads.
      frames: of each clip, folded into the batch as in video_config.VideoConfig.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention.
    """

    heads: int
    frames: int
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens x (F * R, Q, C) to the same shape; frames before the first are not there."""
        own = np.arange(self.frames)[:, None] + [int(offset) for offset in _SEEN]
        rows = x.shape[0] // self.frames
        there = np.repeat(np.repeat(own >= 0, rows, axis=0), x.shape[1], axis=1)
        attention = SiteAttention(
            self.heads,
            out_init=zeros,
            dtype=self.dtype,
            implementation=self.implementation,
            keys_from=_SEEN,
            frames=self.frames,
            name="attention",
        )
        h = LayerNorm(dtype=self.dtype, name="norm")(x)
        return attention(h, context_mask=jnp.asarray(there))
