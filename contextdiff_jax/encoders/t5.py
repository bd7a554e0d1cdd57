"""The T5 v1.1 encoder (Raffel et al. 2020; Shazeer 2020 for its gated MLPs).

Blocks are stacked and scanned as in clip.py. The residual stream, norms and softmax are float32
(float16 overflows in T5, and bfloat16 residuals lose digits); matmuls run in `dtype`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.attention import SelfAttention
from contextdiff_jax.encoders.config import T5Config
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.activation_sharding import gathered
from contextdiff_jax.networks.layers import Dense, ones, with_axes

_normal = nn.initializers.normal


class RMSNorm(nn.Module):
    """Division by the root mean square of the last axis (Zhang & Sennrich 2019), in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes (..., width) float32."""
        scale = self.param("scale", with_axes(ones, axes.NORM), x.shape[-1:])
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale


class Block(nn.Module):
    """Attention and gated MLP, each behind an RMS norm; shaped for nn.scan."""

    config: T5Config
    keep_hidden: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps the residual stream x (B, L, D) float32; bias (1, heads, L, L), mask (B, L)."""
        config = self.config
        h = RMSNorm(config.norm_eps, name="attention_norm")(x)
        x = x + SelfAttention(
            config.heads,
            config.head_dim,
            use_bias=False,
            scale=1.0,  # T5 folds 1 / sqrt(head_dim) into the query kernel's initial deviation.
            causal=False,
            query_std=(config.width * config.head_dim) ** -0.5,
            key_value_std=config.width**-0.5,
            out_std=(config.heads * config.head_dim) ** -0.5,
            dtype=self.dtype,
            name="self_attention",
        )(h, bias, mask)
        h = RMSNorm(config.norm_eps, name="mlp_norm")(x)
        gate = jax.nn.gelu(self._mlp_input("wi_0", h), approximate=True)
        h = Dense(
            config.width,
            (axes.MLP, axes.EMBED),
            use_bias=False,
            kernel_init=_normal(config.mlp_width**-0.5),
            dtype=self.dtype,
            name="wo",
        )(gate * self._mlp_input("wi_1", h))
        x = x + h
        return x, (x if self.keep_hidden else None)

    def _mlp_input(self, name: str, x: jax.Array) -> jax.Array:
        return Dense(
            self.config.mlp_width,
            (axes.EMBED, axes.MLP),
            use_bias=False,
            kernel_init=_normal(self.config.width**-0.5),
            dtype=self.dtype,
            name=name,
        )(x)


class T5Encoder(nn.Module):
    """The encoder of T5 v1.1.

    Attributes:
      config: sizes.
      dtype: compute dtype; outputs are float32.
    """

    config: T5Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, mask: jax.Array, keep_hidden: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Encodes input_ids (B, L) int; mask (B, L) bool is True on tokens, False on padding.

        Returns tokens (B, L, width) float32 after the final norm; those of padding are to be
        masked. With `keep_hidden` also every residual stream (layers + 1, B, L, width).
        """
        config = self.config
        table = self.param(
            "token_embedding",
            with_axes(_normal(1.0), axes.VOCAB, axes.EMBED),
            (config.vocab_size, config.width),
        )
        # An id outside the table becomes NaN (jnp.take's rule) instead of a wrong row.
        table = gathered(table, (axes.VOCAB, axes.EMBED))
        x = jnp.take(table, input_ids, axis=0).astype(jnp.float32)
        distances = self.param(
            "relative_attention_bias",
            with_axes(_normal(config.width**-0.5), axes.POSITION, axes.HEADS),
            (config.num_buckets, config.heads),
        )
        offsets = np.arange(input_ids.shape[1])
        buckets = relative_buckets(
            offsets[None, :] - offsets[:, None], config.num_buckets, config.max_distance
        )
        bias = distances.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        last, outputs = blocks(config, keep_hidden, self.dtype, name="layers")(x, bias, mask)
        tokens = RMSNorm(config.norm_eps, name="final_norm")(last)
        return (tokens, jnp.concatenate([x[None], outputs])) if keep_hidden else tokens


def relative_buckets(relative: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each relative position, key minus query (Raffel et al. 2020, 2.1).

    The upper half of the buckets is for keys after the query. Within a sign the first half of the
    buckets is one distance each, the rest logarithmic up to `max_distance`. Static: computed in
    numpy, in float32 as the published models were trained with.
    """
    per_sign = num_buckets // 2
    exact = per_sign // 2
    distance = np.abs(relative)
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scale = np.float32(np.log(max_distance / exact))
    far = exact + (octaves / scale * np.float32(per_sign - exact)).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(far, per_sign - 1))
    return (bucket + np.where(relative > 0, per_sign, 0)).astype(np.int32)
