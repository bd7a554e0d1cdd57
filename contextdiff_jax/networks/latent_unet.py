"""U-Net of latents: Stable Diffusion 1.x and 2.x, and the latent diffusion models before them.

Rombach et al. 2022. The layout of blocks and skips is that of ``unet``; the blocks are those of
``latent_blocks``. Its attention sites have names, by which their weights can be had.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks.attention_fusion import Fusion
from contextdiff_jax.networks.blocks import BlockStack, OutputHead, rematerialized
from contextdiff_jax.networks.conditioning import embedded_times
from contextdiff_jax.networks.latent_blocks import (
    AddedResBlock,
    Downsample,
    LatentUNetBlock,
    SpatialTransformer,
    Upsample,
)
from contextdiff_jax.networks.latent_config import LatentUNetConfig
from contextdiff_jax.networks.layers import Conv
from contextdiff_jax.networks.unet import Residuals, UNet
from contextdiff_jax.networks.video_config import VideoConfig
from contextdiff_jax.networks.video_layers import with_temporal_conv


class LatentUNet(UNet):
    """Denoiser f(x_t, t, context).

    Attributes:
      config: sizes, see LatentUNetConfig.
      dtype: compute dtype of matmuls and convolutions; parameters and output are float32, and so
        are norms, softmax and the embedding of the time.
      kept: names of attention sites (see attention_sites) that keep their weights in the
        collection latent_blocks.ATTENTION: apply(..., mutable=[ATTENTION]) returns them at the
        site's path, (B, heads, Q, K) float32.
      video: makes it a network of clips, whose frames are folded into the batch; None, the one of
        pictures.
    """

    config: LatentUNetConfig
    dtype: Any = jnp.float32
    kept: tuple[str, ...] = ()
    video: VideoConfig | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        context_mask: jax.Array | None = None,
        fusion: Fusion | None = None,
        residuals: Residuals | None = None,
    ) -> jax.Array:
        """Predicts eps or v (or x0), whatever it was trained for.

        Args:
          x: (B, H, W, C) float32 noisy latents; H and W multiples of config.reduction.
          t: (B,) timesteps 1..T, float32. Published weights count from 0: t - 1 is embedded. Or
            (B, 2), see conditioning.embedded_times.
          context: (B, L, config.context_dim) tokens of the condition. The null condition is one
            too: Stable Diffusion's is the encoded "".
          context_mask: (B, L) bool, True for what may be attended; None means all, as Stable
            Diffusion was trained.
          fusion: what attention of the edit's rows takes over from those of the source.
          residuals: of a control branch, see controlnet; None for none.

        Returns:
          (B, H, W, C) float32.

        Raises:
          ValueError: for inputs that do not fit the configuration.
        """
        h, conditions = self._enter(x, t, context, context_mask, fusion)
        return self._rest(h, conditions, residuals)

    def _enter(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        context_mask: jax.Array | None = None,
        fusion: Fusion | None = None,
    ) -> tuple[jax.Array, tuple]:
        config = self.config
        self._check_kept()
        config.check_resolution(x.shape[1], "height of x")
        config.check_resolution(x.shape[2], "width of x")
        for name, array, width in (
            ("x", x, config.image_channels),
            ("context", context, config.context_dim),
        ):
            if array.shape[-1] != width:
                raise ValueError(f"{name} has shape {array.shape}; its last axis must be {width}.")
        width = config.channels[0]
        embedding = embedded_times(t.astype(jnp.float32) - 1.0, width, 4 * width)
        conditions = (embedding, context, context_mask, fusion)
        h = Conv(config.channels[0], dtype=self.dtype, name="conv_in")(x)
        return with_temporal_conv(h, self.video, self.dtype, "conv_in"), conditions

    def _head(self, h: jax.Array) -> jax.Array:
        config, frames = self.config, 1 if self.video is None else self.video.joint_frames
        h = OutputHead(config.image_channels, config.groups, frames=frames, name="head")(h)
        return with_temporal_conv(h, self.video, jnp.float32, "head")

    def _check_kept(self) -> None:
        if not self.kept:
            return
        unknown = sorted(set(self.kept) - {site.name for site in attention_sites(self.config)})
        if unknown:
            raise ValueError(f"kept has {unknown[0]!r}, which is no attention site of the network")

    def _middle(self, h: jax.Array, conditions: tuple) -> jax.Array:
        config, (embedding, *context) = self.config, conditions
        channels, remat = config.channels[-1], config.remat_at(len(config.channels) - 1)
        res = rematerialized(AddedResBlock, remat)
        transformer = rematerialized(SpatialTransformer, remat)
        shared = {"dtype": self.dtype, "video": self.video}
        h = res(channels, config.groups, **shared, name="middle_res_0")(h, embedding)
        settings = self._transformer() | {"video": self._middle_video()}
        h = transformer(config.heads[-1], **settings, name="middle_attn")(h, *context)
        return res(channels, config.groups, **shared, name="middle_res_1")(h, embedding)

    def _middle_video(self) -> VideoConfig | None:
        """Returns how the middle sees frames: ControlVideo has no temporal attention there."""
        if self.video is None or self.video.temporal != "parallel":
            return self.video
        return dataclasses.replace(self.video, temporal=None)

    def _stack(self, level: int, count: int, name: str) -> BlockStack:
        config = self.config
        block = {
            "channels": config.channels[level],
            "heads": config.heads[level] if level in config.attention_levels else None,
            "transformer": self._transformer(),
            "groups": config.groups,
            "dtype": self.dtype,
            "video": self.video,
        }
        scan, remat = config.scan_blocks, config.remat_at(level)
        return BlockStack(count, block, scan, remat, LatentUNetBlock, name=name)

    def _transformer(self) -> dict[str, Any]:
        config = self.config
        return {
            "depth": config.depth,
            "groups": config.groups,
            "linear": config.linear_projection,
            "kept": self.kept,
            "dtype": self.dtype,
            "implementation": config.attention_implementation,
            "video": self.video,
        }

    def _resample(
        self, direction: str, level: int, h: jax.Array, embedding: jax.Array
    ) -> jax.Array:
        del embedding  # only ResBlocks take it
        name = f"{direction}_{level}_resample"
        if direction == "down":
            return Downsample(symmetric=True, dtype=self.dtype, video=self.video, name=name)(h)
        return Upsample(self.dtype, self.video, name=name)(h)


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One attention of a LatentUNet.

    name: its module's path, as in the parameter tree. kind: what it attends. heads: their number.
    channels: width of its tokens. reduction: factor between the resolutions of the latents and of
    its positions.
    """

    name: str
    kind: Literal["self", "cross"]
    heads: int
    channels: int
    reduction: int


def attention_sites(config: LatentUNetConfig) -> tuple[AttentionSite, ...]:
    """Returns the sites in the order of the forward pass.

    Raises ValueError for scan_blocks = True, where blocks of one name share a site.
    """
    if config.scan_blocks:
        raise ValueError("scan_blocks = True: must be False where attention sites are named")
    return tuple(_sites(config))


def _sites(config: LatentUNetConfig) -> Iterator[AttentionSite]:
    levels = range(len(config.channels))
    stacks = [(f"down_{level}", level, config.num_blocks) for level in levels]
    ups = [(f"up_{level}", level, config.num_blocks + 1) for level in reversed(levels)]

    def transformers(stacks: list[tuple[str, int, int]]) -> Iterator[tuple[str, int]]:
        for name, level, count in stacks:
            if level in config.attention_levels:
                yield from ((f"{name}/block_{index}/attn", level) for index in range(count))

    for name, level in (*transformers(stacks), ("middle_attn", levels[-1]), *transformers(ups)):
        for index in range(config.depth):
            for kind in ("self", "cross"):
                yield AttentionSite(
                    f"{name}/block_{index}/{kind}",
                    kind,
                    config.heads[level],
                    config.channels[level],
                    2**level,
                )
