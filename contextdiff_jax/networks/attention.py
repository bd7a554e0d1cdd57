"""Multi-head attention over self and context tokens, and IF-style attention pooling."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.dot_product_attention import (
    Implementation,
    attend,
    attention_weights,
    weighted_sum,
)
from contextdiff_jax.networks.layers import Dense, Initializer, LayerNorm, lecun, with_axes


class MultiHeadAttention(nn.Module):
    """Attention whose keys and values come from the input, from context tokens, or from both.

    With "both" the context's keys and values are concatenated to those of self-attention (Imagen,
    Saharia et al. 2022). Context tokens pass a LayerNorm first.

    Attributes:
      heads: number of heads; must divide the input width.
      keys: "self", "context" or "both".
      out_init: initializer of the output projection's kernel.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention.
    """

    heads: int
    keys: Literal["self", "context", "both"]
    out_init: Initializer = lecun
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attends from x (B, Q, C), already normalized.

        Args:
          x: (B, Q, C).
          context: (B, L, D), needed unless `keys` is "self".
          context_mask: (B, L) bool, True for real tokens; None means all are.
          return_weights: also return the weights, for which attention is computed plainly.

        Returns:
          (B, Q, C) in `dtype`, and the weights (B, heads, Q, keys) float32, self keys first, or
          None where they are not asked for.
        """
        batch, queries, channels = x.shape
        sources = []
        if self.keys != "context":
            sources.append(("", x, jnp.ones((batch, queries), bool)))
        if self.keys != "self":
            if context_mask is None:
                context_mask = jnp.ones(context.shape[:2], bool)
            context = LayerNorm(dtype=self.dtype, name="context_norm")(context)
            sources.append(("context_", context, context_mask))
        query = self._project(x, channels, "query")
        key = jnp.concatenate([self._project(s, channels, n + "key") for n, s, _ in sources], 1)
        value = jnp.concatenate([self._project(s, channels, n + "value") for n, s, _ in sources], 1)
        mask = None if self.keys == "self" else jnp.concatenate([m for *_, m in sources], 1)
        weights = attention_weights(query, key, mask) if return_weights else None
        if weights is None:
            real_keys = queries if self.keys == "both" else 0
            attended = attend(query, key, value, mask, self.implementation, real_keys)
        else:
            attended = weighted_sum(weights, value)
        out = Dense(
            channels,
            (axes.HEADS, axes.EMBED),
            kernel_init=self.out_init,
            dtype=self.dtype,
            name="out",
        )
        return out(attended.reshape(batch, queries, channels)), weights

    def _project(self, tokens: jax.Array, channels: int, name: str) -> jax.Array:
        dense = Dense(channels, (axes.EMBED, axes.HEADS), dtype=self.dtype, name=name)
        return split_heads(dense(tokens), self.heads)


class AttentionPooling(nn.Module):
    """Pools tokens into one vector, as DeepFloyd IF does.

    LayerNorm, one query (the mean of the real tokens plus a learned vector) attends itself and the
    real tokens, Dense, LayerNorm. It attends itself so that an empty prompt is defined.

    Attributes:
      features: width of the pooled vector.
      heads: number of heads; must divide the token width.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention.
    """

    features: int
    heads: int
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Pools tokens (B, L, D) under mask (B, L) bool to (B, features) float32."""
        batch, _, width = tokens.shape
        tokens = LayerNorm(name="token_norm")(tokens)
        count = jnp.maximum(mask.sum(1, keepdims=True), 1)
        mean = jnp.where(mask[..., None], tokens, 0.0).sum(1) / count
        learned = self.param(
            "query_offset", with_axes(nn.initializers.normal(0.02), axes.EMBED), (width,)
        )
        query = (mean + learned)[:, None]
        tokens = jnp.concatenate([query, tokens], axis=1)
        mask = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)

        def project(x: jax.Array, name: str) -> jax.Array:
            dense = Dense(width, (axes.EMBED, axes.HEADS), dtype=self.dtype, name=name)
            return split_heads(dense(x), self.heads)

        key, value = project(tokens, "key"), project(tokens, "value")
        pooled = attend(project(query, "query"), key, value, mask, self.implementation, real_keys=1)
        out = Dense(self.features, (axes.HEADS, axes.EMBED), dtype=self.dtype, name="out")
        return LayerNorm(name="pooled_norm")(out(pooled.reshape(batch, width)))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Splits (B, L, heads * D) into (B, L, heads, D)."""
    batch, length, width = x.shape
    if width % heads:
        raise ValueError(
            f"attention: width {width} cannot be split into heads={heads}; heads must divide it."
        )
    return x.reshape(batch, length, heads, width // heads)
