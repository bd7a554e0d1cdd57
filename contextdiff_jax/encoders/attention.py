"""Self-attention of the pretrained text and image encoders."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.layers import Dense


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017).

    Attributes:
      heads: number of heads.
      head_dim: width of a head; heads * head_dim need not be the width of the tokens (T5).
      use_bias: whether the four projections have biases (CLIP has, T5 has not).
      scale: factor on the logits; None is 1 / sqrt(head_dim).
      causal: whether a token sees only itself and the tokens before it.
      query_std, key_value_std, out_std: standard deviations of the initial kernels.
      dtype: compute dtype of the matmuls; logits and softmax are float32.
    """

    heads: int
    head_dim: int
    use_bias: bool
    scale: float | None
    causal: bool
    query_std: float
    key_value_std: float
    out_std: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps tokens x (B, L, D) to (B, L, D) in `dtype`.

        bias: (1, heads, L, L) float32, added to the logits. mask: (B, L) bool, keys to attend to.
        """
        query = self._heads("q", self.query_std, x)
        key = self._heads("k", self.key_value_std, x)
        value = self._heads("v", self.key_value_std, x)
        attended = jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=bias,
            mask=None if mask is None else mask[:, None, None, :],
            scale=self.scale,
            is_causal=self.causal,
            implementation="xla",
        )
        attended = attended.reshape(*x.shape[:-1], self.heads * self.head_dim)
        return Dense(
            x.shape[-1],
            (axes.HEADS, axes.EMBED),
            self.use_bias,
            nn.initializers.normal(self.out_std),
            self.dtype,
            name="out",
        )(attended)

    def _heads(self, name: str, std: float, x: jax.Array) -> jax.Array:
        projected = Dense(
            self.heads * self.head_dim,
            (axes.EMBED, axes.HEADS),
            self.use_bias,
            nn.initializers.normal(std),
            self.dtype,
            name=name,
        )(x)
        return projected.reshape(*x.shape[:-1], self.heads, self.head_dim)
