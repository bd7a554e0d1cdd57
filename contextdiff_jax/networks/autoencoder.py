"""Convolutional first stages: Stable Diffusion's AutoencoderKL, and the VQ stages of LDM.

Esser et al. 2021, Rombach et al. 2022. Encoder and decoder are the same but for what the encoder
gives: mean and logarithm of the variance of a Gaussian ("kl"), or the latents themselves ("vq"),
which the decoder replaces by their nearest codes. Frozen here: published weights are read, and
none are trained. Latents are as the stage has them; scaling is the latent space's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.blocks import OutputHead
from contextdiff_jax.networks.latent_blocks import (
    FINE_EPSILON,
    AddedResBlock,
    Downsample,
    SiteAttention,
    Upsample,
)
from contextdiff_jax.networks.latent_config import AutoencoderConfig
from contextdiff_jax.networks.layers import Conv, GroupNorm, lecun, with_axes

LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE = -30.0, 20.0


class StageAttention(nn.Module):
    """Residual attention of one head between the positions of a feature map.

    Attributes:
      groups: groups of the norm.
      dtype: compute dtype.
    """

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, FINE_EPSILON, self.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        h = SiteAttention(1, use_bias=True, dtype=self.dtype, name="attention")(h)
        return x + h.reshape(x.shape)


class StageBlock(nn.Module):
    """One ResBlock, optionally followed by attention.

    Attributes:
      channels: output channels.
      attends: whether attention follows.
      groups: groups of the norms.
      dtype: compute dtype.
    """

    channels: int
    attends: bool
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H, W, channels)."""
        h = AddedResBlock(self.channels, self.groups, FINE_EPSILON, lecun, self.dtype, name="res")(
            h
        )
        return StageAttention(self.groups, self.dtype, name="attn")(h) if self.attends else h


class StageLevel(nn.Module):
    """The blocks of one level.

    Attributes:
      config: of the first stage.
      level: which; 0 is the finest.
      count: number of blocks.
      dtype: compute dtype.
    """

    config: AutoencoderConfig
    level: int
    count: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H, W, channels of the level)."""
        config = self.config
        attends = self.level in config.attention_levels
        for index in range(self.count):
            h = StageBlock(
                config.channels[self.level],
                attends,
                config.groups,
                self.dtype,
                name=f"block_{index}",
            )(h)
        return h


class Middle(nn.Module):
    """Res-Attn-Res at the coarsest resolution.

    Attributes:
      groups: groups of the norms.
      dtype: compute dtype.
    """

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape."""
        settings = (h.shape[-1], self.groups, FINE_EPSILON, lecun, self.dtype)
        h = AddedResBlock(*settings, name="res_0")(h)
        h = StageAttention(self.groups, self.dtype, name="attn")(h)
        return AddedResBlock(*settings, name="res_1")(h)


class Encoder(nn.Module):
    """From pictures to what the latents are made of.

    Attributes:
      config: of the first stage.
      dtype: compute dtype.
    """

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (B, H, W, image_channels) to (B, H', W', latent_channels), twice that for "kl"."""
        config = self.config
        h = Conv(config.channels[0], dtype=self.dtype, name="conv_in")(images)
        for level in range(len(config.channels)):
            if level > 0:
                name = f"down_{level - 1}_resample"
                h = Downsample(symmetric=False, dtype=self.dtype, name=name)(h)
            h = StageLevel(config, level, config.num_blocks, self.dtype, name=f"down_{level}")(h)
        h = Middle(config.groups, self.dtype, name="middle")(h)
        channels = config.latent_channels * (2 if config.kind == "kl" else 1)
        return OutputHead(channels, config.groups, FINE_EPSILON, name="head")(h)


class Decoder(nn.Module):
    """From latents to pictures.

    Attributes:
      config: of the first stage.
      dtype: compute dtype.
    """

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps (B, H', W', latent_channels) to (B, H, W, image_channels) float32."""
        config = self.config
        h = Conv(config.channels[-1], dtype=self.dtype, name="conv_in")(latents)
        h = Middle(config.groups, self.dtype, name="middle")(h)
        for level in reversed(range(len(config.channels))):
            h = StageLevel(config, level, config.num_blocks + 1, self.dtype, name=f"up_{level}")(h)
            if level > 0:
                h = Upsample(self.dtype, name=f"up_{level}_resample")(h)
        return OutputHead(config.image_channels, config.groups, FINE_EPSILON, name="head")(h)


class Autoencoder(nn.Module):
    """A first stage; call its methods by apply(..., method="encode").

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters, latents and pictures are float32.
    """

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates encoder, decoder, the 1x1 convolutions between, and the codes."""
        config = self.config
        channels = config.latent_channels
        self.encoder = Encoder(config, self.dtype)
        self.decoder = Decoder(config, self.dtype)
        self.quant_conv = Conv(channels * (2 if config.kind == "kl" else 1), kernel_size=1)
        self.post_quant_conv = Conv(channels, kernel_size=1)
        if config.kind == "vq":
            init = with_axes(nn.initializers.normal(1.0), axes.VOCAB, axes.EMBED)
            self.codebook = self.param("codebook", init, (config.codes, channels))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the pictures that decode the latents (the mean, for "kl") of images."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Encodes images (B, H, W, image_channels) in [-1, 1], H and W multiples of reduction.

        Returns the mean (B, H', W', latent_channels) float32 and the logarithm of the variance,
        limited to -30..20; for "vq" the latents before quantization, and None.
        """
        moments = self.quant_conv(self.encoder(images))
        if self.config.kind == "vq":
            return moments, None
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decodes latents (B, H', W', latent_channels); "vq" takes their nearest codes first.

        Returns (B, H, W, image_channels) float32, about [-1, 1], not clipped. Codes pass no
        gradient on.
        """
        latents = latents.astype(jnp.float32)
        if self.config.kind == "vq":
            latents = self.codebook[self.indices(latents)]
        return self.decoder(self.post_quant_conv(latents))

    def indices(self, latents: jax.Array) -> jax.Array:
        """Returns the number (B, H', W') int32 of each latent's nearest code; "vq" alone has it."""
        # |z - e|^2 without |z|^2. The default of TPUs would round operands to bfloat16.
        products = jnp.einsum(
            "...d,kd->...k", latents, self.codebook, precision=lax.Precision.HIGHEST
        )
        return jnp.argmin(jnp.square(self.codebook).sum(-1) - 2.0 * products, axis=-1)
