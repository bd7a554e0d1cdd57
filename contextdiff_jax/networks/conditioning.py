"""What the denoisers are conditioned on: time, noise augmentation, text, the low-resolution image.

Dropped text becomes one learned (or zero) null token. Everything the network sees of the text,
pooled vector included, is computed from the tokens after that replacement, so the null condition
is a single state that does not depend on the prompt it replaces.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.attention import AttentionPooling
from contextdiff_jax.networks.dot_product_attention import Implementation
from contextdiff_jax.networks.layers import (
    Dense,
    lecun,
    resize_bilinear,
    sinusoidal_embedding,
    with_axes,
    zeros,
)

# Levels in [0, 1] span the same range of sinusoid arguments as the timesteps 0..1000.
AUG_LEVEL_SCALE = 1000.0


class SinusoidMLP(nn.Module):
    """Sinusoidal embedding followed by Dense, SiLU, Dense; float32 whatever the compute dtype.

    Attributes:
      sinusoids: width of the sinusoidal embedding.
      features: width of the result and of the hidden layer.
      zero: whether the last layer begins as zero.
    """

    sinusoids: int
    features: int
    zero: bool = False

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Embeds numbers (B,) to (B, features) float32."""
        h = sinusoidal_embedding(t, self.sinusoids)
        h = nn.silu(Dense(self.features, (axes.EMBED, axes.MLP), name="hidden")(h))
        start = zeros if self.zero else lecun
        return Dense(self.features, (axes.MLP, axes.EMBED), kernel_init=start, name="out")(h)


def embedded_times(t: jax.Array, sinusoids: int, features: int) -> jax.Array:
    """Embeds times t (B,), or times and the ends of the steps from there (B, 2), to (B, features).

    The lengths of the steps add to the embedding what is zero at first. To be called in a compact
    method: it makes the modules "time", and "span" of pairs.
    """
    if t.ndim == 1:
        return SinusoidMLP(sinusoids, features, name="time")(t)
    time, end = t[:, 0], t[:, 1]
    span = SinusoidMLP(sinusoids, features, zero=True, name="span")(time - end)
    return SinusoidMLP(sinusoids, features, name="time")(time) + span


class TextConditioning(nn.Module):
    """Projects text tokens, replaces dropped prompts by the null token, pools.

    Attributes:
      text_width: width the tokens are projected to; None keeps theirs, `text_dim`.
      text_dim: width of the incoming tokens.
      pooled_width: width of the pooled vector.
      pool_heads: heads of the pooling attention.
      null: "learned" or "zeros".
      dtype: compute dtype.
      implementation: of the pooling attention, see dot_product_attention.
    """

    text_dim: int
    text_width: int | None
    pooled_width: int
    pool_heads: int
    null: Literal["learned", "zeros"] = "learned"
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        batch: int,
        text: jax.Array | None,
        text_mask: jax.Array | None,
        keep: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the tokens (batch, L, width), their mask (batch, L) and the pooled vector.

        Args:
          batch: batch size.
          text: (batch, L, text_dim), or None for the null condition throughout.
          text_mask: (batch, L) bool, True for real tokens; None means all are.
          keep: (batch,) bool, False replaces the prompt by the null condition; None keeps all.
        """
        width = self.text_width or self.text_dim
        if text is None:
            # Traced even so, to create the same parameters whether or not text is given.
            text, keep = jnp.zeros((batch, 1, self.text_dim)), jnp.zeros((batch,), bool)
        if text.shape[0] != batch or text.shape[-1] != self.text_dim:
            raise ValueError(
                f"text has shape {text.shape}; allowed is (batch={batch}, tokens, "
                f"text_dim={self.text_dim})."
            )
        mask = jnp.ones(text.shape[:2], bool) if text_mask is None else text_mask.astype(bool)
        tokens = text.astype(self.dtype)
        if self.text_width is not None:
            projection = Dense(width, (axes.CONTEXT, axes.EMBED), dtype=self.dtype, name="project")
            tokens = projection(tokens)
        tokens, mask = self._replace_dropped(tokens, mask, keep)
        pool = AttentionPooling(
            self.pooled_width, self.pool_heads, self.dtype, self.implementation, name="pool"
        )
        return tokens, mask, pool(tokens, mask)

    def _replace_dropped(
        self, tokens: jax.Array, mask: jax.Array, keep: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        null = jnp.zeros(tokens.shape[-1:])
        if self.null == "learned":
            null = self.param(
                "null_token", with_axes(nn.initializers.normal(1.0), axes.EMBED), tokens.shape[-1:]
            )
        if keep is None:
            return tokens, mask
        keep = keep.astype(bool)
        null_mask = jnp.arange(mask.shape[1]) == 0
        tokens = jnp.where(keep[:, None, None], tokens, null.astype(tokens.dtype))
        return tokens, jnp.where(keep[:, None], mask, null_mask)


class Conditioning(nn.Module):
    """Joins time, noise-augmentation level and pooled text into one embedding vector.

    Attributes:
      sinusoids: width of the sinusoidal embeddings.
      features: width of the embedding vector.
      text_dim: width of the incoming text tokens; None for a network without text.
      text_width: width they are projected to; None keeps theirs.
      pool_heads: heads of the pooling attention.
      null: "learned" or "zeros", the null condition.
      low_res: whether a noise-augmented low-resolution image is a condition.
      dtype: compute dtype.
      implementation: of the pooling attention, see dot_product_attention.
    """

    sinusoids: int
    features: int
    text_dim: int | None
    text_width: int | None
    pool_heads: int
    null: Literal["learned", "zeros"] = "learned"
    low_res: bool = False
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        t: jax.Array,
        text: jax.Array | None,
        text_mask: jax.Array | None,
        keep: jax.Array | None,
        aug_level: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Returns the embedding (B, features) float32, the text tokens and their mask.

        Tokens and mask are None for a network without text. Arguments: see the denoisers.
        """
        embedding = embedded_times(t, self.sinusoids, self.features)
        if self.low_res:
            if aug_level is None:
                raise ValueError(
                    "aug_level is missing: a network with low_res=True needs the noise level (B,) "
                    "in [0, 1] of low_res; 0 means a clean image."
                )
            level = aug_level.astype(jnp.float32) * AUG_LEVEL_SCALE
            embedding += SinusoidMLP(self.sinusoids, self.features, name="aug_level")(level)
        elif aug_level is not None:
            raise ValueError("aug_level is given, but the network has low_res=False.")
        if self.text_dim is None:
            if text is not None:
                raise ValueError("text is given, but the network has text_dim=None (no text).")
            return embedding, None, None
        conditioning = TextConditioning(
            self.text_dim,
            self.text_width,
            self.features,
            self.pool_heads,
            self.null,
            self.dtype,
            self.implementation,
            name="text",
        )
        tokens, mask, pooled = conditioning(t.shape[0], text, text_mask, keep)
        return embedding + pooled, tokens, mask


def join_low_res(x: jax.Array, low_res: jax.Array | None, expected: bool) -> jax.Array:
    """Concatenates the bilinearly upsampled low-resolution image to the noisy image.

    Args:
      x: (B, H, W, C) noisy image.
      low_res: (B, h, w, C) in [-1, 1], or None.
      expected: whether the network is built for it.

    Returns:
      (B, H, W, 2C) float32, or x itself where no low_res is expected.
    """
    if expected != (low_res is not None):
        given = "given" if low_res is not None else "missing"
        raise ValueError(f"low_res is {given}, but the network has low_res={expected}.")
    if low_res is None:
        return x
    if low_res.shape[0] != x.shape[0] or low_res.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"low_res has shape {low_res.shape}; batch and channels must be those of x, {x.shape}."
        )
    upsampled = resize_bilinear(low_res, x.shape[1], x.shape[2])
    return jnp.concatenate([x.astype(jnp.float32), upsampled], axis=-1)
