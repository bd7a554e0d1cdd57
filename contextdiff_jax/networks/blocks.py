"""Residual and attention blocks of the U-Nets, and the stacking of identical blocks.

Blocks of the same shapes are either unrolled (one set of parameters each, named ``block_0``,
``block_1``, ...) or scanned (``blocks_1_3``: the parameters of blocks 1 to 3 stacked on a leading
axis), which compiles one block instead of many.
"""

import itertools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.attention import MultiHeadAttention
from contextdiff_jax.networks.dot_product_attention import Implementation
from contextdiff_jax.networks.layers import (
    Conv,
    Dense,
    GroupNorm,
    downsample_mean,
    upsample_nearest,
    zeros,
)

RESAMPLE = {None: lambda x: x, "up": upsample_nearest, "down": downsample_mean}


def rematerialized(
    block: type[nn.Module], remat: Literal["none", "blocks"], in_scan: bool = False
) -> type[nn.Module]:
    """Returns `block`, recomputing its activations in the backward pass if `remat` says so."""
    if remat == "none":
        return block
    # A scan's loop already keeps XLA from merging the recomputation with the forward pass.
    return nn.remat(block, prevent_cse=not in_scan)


class ResBlock(nn.Module):
    """GroupNorm-SiLU-convolution twice, with a shortcut (Dhariwal & Nichol 2021, BigGAN blocks).

    Resampling happens inside: after the first activation, and on the shortcut. The embedding, if
    given, scales and shifts the second norm. The second convolution starts at zero.

    Attributes:
      channels: output channels.
      groups: groups of the norms.
      resample: None, "up" (nearest, x2) or "down" (mean, /2).
      always_project: 1x1 convolution on the shortcut even where the channels agree (Imagen's
        Efficient U-Net); otherwise only where they differ.
      dtype: compute dtype, also that of the output.
    """

    channels: int
    groups: int = 32
    resample: Literal["up", "down"] | None = None
    always_project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Maps x (B, H, W, C), embedding (B, E) float32 or None, to (B, H', W', channels)."""
        resample = RESAMPLE[self.resample]
        x = x.astype(self.dtype)
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_1")(x))
        h = Conv(self.channels, dtype=self.dtype, name="conv_1")(resample(h))
        scale = shift = None
        if embedding is not None:
            modulation = Dense(
                2 * self.channels,
                (axes.EMBED, axes.CONV_OUT),
                dtype=self.dtype,
                name="embedding",
            )(nn.silu(embedding))
            scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_2")(h, scale, shift))
        h = Conv(self.channels, kernel_init=zeros, dtype=self.dtype, name="conv_2")(h)
        x = resample(x)
        if self.always_project or x.shape[-1] != self.channels:
            x = Conv(self.channels, kernel_size=1, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual attention of image positions to each other and to the text tokens.

    Attributes:
      heads: number of heads.
      groups: groups of the norm.
      dtype: compute dtype, also that of the output.
      implementation: of the attention, see dot_product_attention.
    """

    heads: int
    groups: int = 32
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array | None, text_mask: jax.Array | None
    ) -> jax.Array:
        """Maps x (B, H, W, C) to the same shape; text (B, L, D) or None, text_mask (B, L)."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        attention = MultiHeadAttention(
            self.heads,
            keys="self" if text is None else "both",
            out_init=zeros,
            dtype=self.dtype,
            implementation=self.implementation,
            name="attention",
        )
        h, _ = attention(h.reshape(batch, height * width, channels), text, text_mask)
        return x + h.reshape(x.shape)


class OutputHead(nn.Module):
    """GroupNorm, SiLU and a zero-initialized convolution to the prediction, in float32.

    Attributes:
      channels: channels of the prediction.
      groups: groups of the norm.
      epsilon: of the norm.
      frames: pictures that share the norm's statistics, see GroupNorm.
    """

    channels: int
    groups: int = 32
    epsilon: float = 1e-5
    frames: int = 1

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H, W, channels) float32."""
        h = nn.silu(GroupNorm(self.groups, self.epsilon, frames=self.frames, name="norm")(h))
        return Conv(self.channels, kernel_init=zeros, name="conv")(h)


class UNetBlock(nn.Module):
    """One ResBlock, optionally followed by attention; concatenates a skip where one is given.

    Attributes:
      channels: output channels.
      heads: attention heads, or None for no attention.
      groups: groups of the norms.
      always_project: see ResBlock.
      skip_scale: factor on the skip.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention.
    """

    channels: int
    heads: int | None = None
    groups: int = 32
    always_project: bool = False
    skip_scale: float = 1.0
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skip: jax.Array | None,
        embedding: jax.Array | None,
        text: jax.Array | None,
        text_mask: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns (output, output) on the way down and (output, None) where a skip was consumed.

        The pair is what a scan expects: the carry, and what is stacked over the blocks.
        """
        if skip is not None:
            h = jnp.concatenate([h, skip * self.skip_scale], axis=-1)
        h = ResBlock(
            self.channels,
            self.groups,
            always_project=self.always_project,
            dtype=self.dtype,
            name="res",
        )(h, embedding)
        if self.heads is not None:
            attention = AttentionBlock(
                self.heads, self.groups, self.dtype, self.implementation, name="attn"
            )
            h = attention(h, text, text_mask)
        return h, (h if skip is None else None)


class BlockStack(nn.Module):
    """Consecutive blocks of one level, identical neighbours scanned where wanted.

    On the way up every block consumes one skip; blocks are identical where the channels of their
    inputs and skips agree.

    Attributes:
      count: number of blocks.
      block: keyword arguments of `kind`.
      scan: whether runs of identical blocks are scanned.
      remat: "none", or "blocks" to recompute each block's activations in the backward pass.
      kind: class of the blocks, called as UNetBlock is.
    """

    count: int
    block: dict[str, Any]
    scan: bool = False
    remat: Literal["none", "blocks"] = "none"
    kind: type[nn.Module] = UNetBlock

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skips: list[jax.Array] | None,
        *conditions: Any,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Applies the blocks to h (B, H, W, C).

        Args:
          h: input of the first block.
          skips: `count` arrays in the order of consumption, or None on the way down.
          conditions: further arguments of every block, the same for all.

        Returns:
          The last output, and the list of all outputs (empty on the way up).
        """
        outputs = []
        for start, length in self._runs(h, skips):
            taken = None if skips is None else skips[start : start + length]
            if length == 1:
                block = rematerialized(self.kind, self.remat)(**self.block, name=f"block_{start}")
                h, output = block(h, None if taken is None else taken[0], *conditions)
                outputs.append(output)
            else:
                h, stacked = self._scanned(start, length, len(conditions))(
                    h, None if taken is None else jnp.stack(taken), *conditions
                )
                outputs.extend([None] * length if stacked is None else list(stacked))
        return h, [] if skips is not None else outputs

    def _runs(self, h: jax.Array, skips: list[jax.Array] | None) -> list[tuple[int, int]]:
        """(start, length) of the runs of blocks that one scan can traverse."""
        if not self.scan:
            return [(i, 1) for i in range(self.count)]
        inputs = [h.shape[-1]] + [self.block["channels"]] * (self.count - 1)
        skip_channels = [0] * self.count if skips is None else [s.shape[-1] for s in skips]
        shapes = list(zip(inputs, skip_channels, strict=True))
        groups = [list(g) for _, g in itertools.groupby(range(self.count), lambda i: shapes[i])]
        return [(g[0], len(g)) for g in groups]

    def _scanned(self, start: int, length: int, conditions: int) -> nn.Module:
        scanned = nn.scan(
            rematerialized(self.kind, self.remat, in_scan=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *[nn.broadcast] * conditions),
            length=length,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        return scanned(**self.block, name=f"blocks_{start}_{start + length - 1}")
