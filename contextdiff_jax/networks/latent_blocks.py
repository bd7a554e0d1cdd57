"""Blocks of latent diffusion's U-Net and first stages (Rombach et al. 2022).

They differ from ``blocks``: the time is added, resampling is a layer of its own, attention to the
image and to the condition are two, and projections of queries, keys and values have no bias.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.attention import split_heads
from contextdiff_jax.networks.attention_fusion import Fusion
from contextdiff_jax.networks.dot_product_attention import (
    Implementation,
    attend,
    attention_weights,
    weighted_sum,
)
from contextdiff_jax.networks.layers import (
    Conv,
    Dense,
    GroupNorm,
    Initializer,
    LayerNorm,
    lecun,
    upsample_nearest,
    zeros,
)
from contextdiff_jax.networks.video_config import VideoConfig, frame_table
from contextdiff_jax.networks.video_layers import (
    back_in_frames,
    of_frames,
    over_time,
    with_temporal_conv,
)

# Collection that sites keep their attention weights in.
ATTENTION = "attention"
_WIDEST_CUDNN_HEAD = 128  # Stable Diffusion has 160, LDM up to 960; the TPU kernel has them all
# First stages' norms, and the norm that enters a transformer. ResBlocks of the U-Net have 1e-5.
FINE_EPSILON = 1e-6


class AddedResBlock(nn.Module):
    """GroupNorm-SiLU-convolution twice, with a shortcut; the embedding is added in between.

    Attributes:
      channels: output channels.
      groups: groups of the norms.
      epsilon: of the norms.
      out_init: initializer of the second convolution's kernel.
      dtype: compute dtype, also that of the output.
      video: of clips; None is of pictures.
    """

    channels: int
    groups: int = 32
    epsilon: float = 1e-5
    out_init: Initializer = zeros
    dtype: Any = jnp.float32
    video: VideoConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Maps x (B, H, W, C), embedding (B, E) float32 or None, to (B, H, W, channels)."""
        x = x.astype(self.dtype)
        frames = 1 if self.video is None else self.video.joint_frames
        norm = (self.groups, self.epsilon, self.dtype, frames)
        h = nn.silu(GroupNorm(*norm, name="norm_1")(x))
        h = Conv(self.channels, dtype=self.dtype, name="conv_1")(h)
        h = with_temporal_conv(h, self.video, self.dtype, "conv_1")
        if embedding is not None:
            dense = Dense(
                self.channels, (axes.EMBED, axes.CONV_OUT), dtype=self.dtype, name="embedding"
            )
            h = h + dense(nn.silu(embedding))[:, None, None]
        h = nn.silu(GroupNorm(*norm, name="norm_2")(h))
        h = Conv(self.channels, kernel_init=self.out_init, dtype=self.dtype, name="conv_2")(h)
        h = with_temporal_conv(h, self.video, self.dtype, "conv_2")
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, kernel_size=1, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Attributes:
      symmetric: whether one pixel is padded on every side (the U-Net), or only right and below
        (first stages).
      dtype: compute dtype.
      video: of clips; None is of pictures.
    """

    symmetric: bool
    dtype: Any = jnp.float32
    video: VideoConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C), H and W even, to (B, H/2, W/2, C)."""
        side = (1, 1) if self.symmetric else (0, 1)
        conv = Conv(x.shape[-1], stride=2, padding=(side, side), dtype=self.dtype, name="conv")
        return with_temporal_conv(conv(x), self.video, self.dtype, "conv")


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution.

    Attributes:
      dtype: compute dtype.
      video: of clips; None is of pictures.
    """

    dtype: Any = jnp.float32
    video: VideoConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, 2H, 2W, C)."""
        h = Conv(x.shape[-1], dtype=self.dtype, name="conv")(upsample_nearest(x))
        return with_temporal_conv(h, self.video, self.dtype, "conv")


class SiteAttention(nn.Module):
    """Multi-head attention to the tokens themselves or to a context: a site with a name.

    The name is the module's path, e.g. "down_0/block_1/attn/block_0/cross".

    Attributes:
      heads: number of heads; must divide the input width.
      use_bias: whether the projections of queries, keys and values have biases.
      out_init: initializer of the output projection's kernel.
      kept: names of sites that keep their weights (B, heads, Q, K) float32 in the collection
        ATTENTION; these compute attention plainly.
      dtype: compute dtype.
      implementation: of the attention, see dot_product_attention. With "cudnn", heads wider than
        128, which it does not have, take "xla".
      out_bias_init: initializer of the output projection's bias.
      keys_from, frames: frames whose tokens are attended to, of clips of so many; () is the frame
        alone. See video_config.VideoConfig.
    """

    heads: int
    use_bias: bool = False
    out_init: Initializer = lecun
    kept: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"
    out_bias_init: Initializer = zeros
    keys_from: tuple[str, ...] = ()
    frames: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        fusion: Fusion | None = None,
    ) -> jax.Array:
        """Attends from x (B, Q, C) to itself, or to context (B, L, D) where it is given.

        context_mask: (B, L) bool, True for what may be attended; None means all. fusion: what is
        taken over from another row. Returns (B, Q, C).
        """
        channels = x.shape[-1]

        def project(tokens: jax.Array, source: str, name: str) -> jax.Array:
            dense = Dense(
                channels, (source, axes.HEADS), self.use_bias, dtype=self.dtype, name=name
            )
            return split_heads(dense(tokens), self.heads)

        source = axes.EMBED if context is None else axes.CONTEXT
        tokens = x if context is None else context
        query = project(x, axes.EMBED, "query")
        key, value = project(tokens, source, "key"), project(tokens, source, "value")
        if self.keys_from:
            table = frame_table(self.keys_from, self.frames)
            key, value = of_frames(key, table), of_frames(value, table)
        kept = "/".join(self.path) in self.kept
        fused = fusion is not None and fusion.applies(query.shape[1])
        if fused and context is None:
            attended = fusion.fused_self(self._attend, query, key, value)
        elif fused or kept:
            weights = attention_weights(query, key, context_mask)
            weights = fusion.fused_cross(weights) if fused else weights
            if kept:
                self.sow(ATTENTION, "weights", weights, reduce_fn=lambda _, new: new)
            attended = weighted_sum(weights, value)
        else:
            attended = self._attend(query, key, value, context_mask)
        out = Dense(
            channels,
            (axes.HEADS, axes.EMBED),
            kernel_init=self.out_init,
            bias_init=self.out_bias_init,
            dtype=self.dtype,
            name="out",
        )
        return out(attended.reshape(x.shape))

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        wide = query.shape[-1] > _WIDEST_CUDNN_HEAD
        implementation = "xla" if wide and self.implementation == "cudnn" else self.implementation
        return attend(query, key, value, mask, implementation)


class TransformerBlock(nn.Module):
    """Pre-LayerNorm block: self-attention, attention to the context, a gated MLP.

    Attributes:
      heads: attention heads.
      kept, dtype, implementation: as SiteAttention's.
      video: of clips; None is of pictures.
    """

    heads: int
    kept: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"
    video: VideoConfig | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        context_mask: jax.Array | None,
        fusion: Fusion | None = None,
    ) -> jax.Array:
        """Maps x (B, Q, C) to the same shape; context (B, L, D), context_mask (B, L) or None."""
        settings = {
            "kept": self.kept,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        temporal = None if self.video is None else self.video.temporal
        h = LayerNorm(dtype=self.dtype, name="norm_1")(x)
        attended = SiteAttention(self.heads, **self._frames(x), **settings, name="self")
        x = x + attended(h, fusion=fusion)
        if temporal == "parallel":
            x = x + self._beside(h)
        h = LayerNorm(dtype=self.dtype, name="norm_2")(x)
        cross = SiteAttention(self.heads, **settings, name="cross")
        x = x + cross(h, context, context_mask, fusion)
        x = x + self._mlp(x)
        return x + self._after(x) if temporal == "after_feedforward" else x

    def _frames(self, x: jax.Array) -> dict[str, Any]:
        """Returns what self-attention is told of the frames, for tokens x."""
        video = self.video
        if video is None:
            return {}
        return {"keys_from": video.attended(x.shape[-1]), "frames": video.frames}

    def _after(self, x: jax.Array) -> jax.Array:
        """Temporal attention that begins as zero (Tune-A-Video, FateZero)."""
        bias = zeros if self.video.zero_bias else torch_uniform(x.shape[-1])
        h = LayerNorm(dtype=self.dtype, name="norm_temporal")(over_time(x, self.video.frames))
        attention = SiteAttention(
            self.heads, out_init=zeros, out_bias_init=bias, dtype=self.dtype, name="temporal"
        )
        return back_in_frames(attention(h), x)

    def _beside(self, h: jax.Array) -> jax.Array:
        """Temporal attention behind a layer that begins as zero (ControlVideo)."""
        attention = SiteAttention(self.heads, dtype=self.dtype, name="temporal")
        names, channels = (axes.HEADS, axes.EMBED), h.shape[-1]
        out = Dense(channels, names, kernel_init=zeros, dtype=self.dtype, name="temporal_out")
        return back_in_frames(out(attention(over_time(h, self.video.frames))), h)

    def _mlp(self, x: jax.Array) -> jax.Array:
        h = LayerNorm(dtype=self.dtype, name="norm_3")(x)
        width = 4 * x.shape[-1]
        h = Dense(2 * width, (axes.EMBED, axes.MLP), dtype=self.dtype, name="mlp_in")(h)
        value, gate = jnp.split(h, 2, axis=-1)
        h = value * jax.nn.gelu(gate, approximate=False)
        return Dense(x.shape[-1], (axes.MLP, axes.EMBED), dtype=self.dtype, name="mlp_out")(h)


def torch_uniform(width: int) -> Initializer:
    """Returns what torch draws the biases of a linear layer of this input width from."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(width**-0.5), width**-0.5)

    return init


class SpatialTransformer(nn.Module):
    """Residual transformer over the positions of a feature map.

    Attributes:
      heads: attention heads.
      depth: transformer blocks.
      groups: groups of the norm.
      linear: whether linear layers or 1x1 convolutions enter and leave it; the same computation.
      kept, dtype, implementation: as SiteAttention's.
      video: of clips; None is of pictures.
    """

    heads: int
    depth: int = 1
    groups: int = 32
    linear: bool = False
    kept: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    implementation: Implementation = "auto"
    video: VideoConfig | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        context_mask: jax.Array | None,
        fusion: Fusion | None = None,
    ) -> jax.Array:
        """Maps x (B, H, W, C) to the same shape; context (B, L, D), context_mask (B, L) or None."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, FINE_EPSILON, self.dtype, name="norm")(x)
        h = self._projected(h, (axes.CONV_IN, axes.EMBED), lecun, "proj_in")
        h = h.reshape(batch, height * width, channels)
        for index in range(self.depth):
            settings = (self.kept, self.dtype, self.implementation, self.video)
            block = TransformerBlock(self.heads, *settings, name=f"block_{index}")
            h = block(h, context, context_mask, fusion)
        h = h.reshape(x.shape)
        return x + self._projected(h, (axes.EMBED, axes.CONV_OUT), zeros, "proj_out")

    def _projected(
        self, h: jax.Array, names: tuple[str, str], init: Initializer, name: str
    ) -> jax.Array:
        settings = {"kernel_init": init, "dtype": self.dtype, "name": name}
        if self.linear:
            return Dense(h.shape[-1], names, **settings)(h)
        return Conv(h.shape[-1], kernel_size=1, **settings)(h)


class LatentUNetBlock(nn.Module):
    """One ResBlock, optionally followed by a transformer; concatenates a skip where one is given.

    Attributes:
      channels: output channels.
      heads: attention heads, or None for no transformer.
      transformer: further keyword arguments of SpatialTransformer.
      groups: groups of the norms.
      dtype: compute dtype.
      video: of clips; None is of pictures.
    """

    channels: int
    heads: int | None = None
    transformer: dict[str, Any] | None = None
    groups: int = 32
    dtype: Any = jnp.float32
    video: VideoConfig | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skip: jax.Array | None,
        embedding: jax.Array,
        context: jax.Array,
        context_mask: jax.Array | None,
        fusion: Fusion | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the pair that UNetBlock does."""
        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        shared = {"dtype": self.dtype, "video": self.video}
        h = AddedResBlock(self.channels, self.groups, **shared, name="res")(h, embedding)
        if self.heads is not None:
            transformer = SpatialTransformer(self.heads, **(self.transformer or {}), name="attn")
            h = transformer(h, context, context_mask, fusion)
        return h, (h if skip is None else None)
