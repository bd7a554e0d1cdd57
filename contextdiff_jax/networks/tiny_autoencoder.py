"""Tiny distilled first stages: TAESD (4 latent channels) and TAEF2 (32, with pooled blocks).

Layers are numbered as in the published files (madebyollin/taesd); those without parameters count.
"""

from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks.latent_config import TinyAutoencoderConfig
from contextdiff_jax.networks.layers import Conv, GroupNorm, upsample_nearest

_POOL_GROUPS = 4
_POOL_EXPANSION = 4
_LARGEST_LATENT = 3.0

Kind = Literal["bounded", "in", "relu", "block", "pooled", "down", "up", "expand", "out"]
"""What a layer does: "bounded" keeps latents within 3, "expand" follows "up"."""


def encoder_layers(config: TinyAutoencoderConfig) -> tuple[Kind, ...]:
    """Returns what each layer of the encoder does, in order."""
    return tuple(_encoder_layers(config))


def _encoder_layers(config: TinyAutoencoderConfig) -> Iterator[Kind]:
    last = len(config.encoder_blocks) - 1
    for level, count in enumerate(config.encoder_blocks):
        yield "down" if level else "in"
        yield from ["pooled" if config.pooled and level == last else "block"] * count
    yield "out"


def decoder_layers(config: TinyAutoencoderConfig) -> tuple[Kind, ...]:
    """Returns what each layer of the decoder does, in order."""
    return ("bounded", "in", "relu", *_decoder_layers(config))


def _decoder_layers(config: TinyAutoencoderConfig) -> Iterator[Kind]:
    for level, count in enumerate(config.decoder_blocks):
        if level:
            yield from ("up", "expand")
        yield from ["pooled" if config.pooled and not level else "block"] * count
    yield "out"


class TinyBlock(nn.Module):
    """Three convolutions with ReLUs and a shortcut; optionally a pooled branch before them.

    Attributes:
      pooled: whether the branch is there. Its GroupNorm spans the whole picture.
      dtype: compute dtype.
    """

    pooled: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape."""
        width = x.shape[-1]
        settings = {"dtype": self.dtype}
        if self.pooled:
            bare = {"kernel_size": 1, "use_bias": False, **settings}
            h = Conv(_POOL_EXPANSION * width, **bare, name="pool_0")(x)
            h = nn.relu(GroupNorm(_POOL_GROUPS, dtype=self.dtype, name="pool_1")(h))
            x = x + Conv(width, **bare, name="pool_3")(h)
        h = nn.relu(Conv(width, **settings, name="conv_0")(x))
        h = nn.relu(Conv(width, **settings, name="conv_2")(h))
        return nn.relu(Conv(width, **settings, name="conv_4")(h) + x)


class TinyHalf(nn.Module):
    """A sequence of layers, encoder or decoder.

    Attributes:
      layers: what each does.
      width: channels in between.
      features: channels of the result.
      dtype: compute dtype.
    """

    layers: tuple[Kind, ...]
    width: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features) float32."""
        for index, kind in enumerate(self.layers):
            h = self._layer(kind, f"layers_{index}", h)
        return h.astype(jnp.float32)

    def _layer(self, kind: Kind, name: str, h: jax.Array) -> jax.Array:
        if kind == "bounded":
            return _LARGEST_LATENT * jnp.tanh(h.astype(jnp.float32) / _LARGEST_LATENT)
        if kind == "relu":
            return nn.relu(h)
        if kind == "up":
            return upsample_nearest(h)
        if kind in ("block", "pooled"):
            return TinyBlock(kind == "pooled", self.dtype, name=name)(h)
        return Conv(
            self.features if kind == "out" else self.width,
            stride=2 if kind == "down" else 1,
            use_bias=kind in ("in", "out"),
            dtype=self.dtype,
            name=name,
        )(h)


class TinyAutoencoder(nn.Module):
    """A tiny first stage; call its methods by apply(..., method="encode").

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters, latents and pictures are float32.
    """

    config: TinyAutoencoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates encoder and decoder."""
        config = self.config
        self.encoder = TinyHalf(
            encoder_layers(config), config.width, config.latent_channels, self.dtype
        )
        self.decoder = TinyHalf(
            decoder_layers(config), config.width, config.image_channels, self.dtype
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the pictures that decode the latents of images."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, None]:
        """Encodes images (B, H, W, image_channels) in [-1, 1], H and W multiples of reduction.

        Returns the latents (B, H', W', latent_channels) float32, and None: they have no variance.
        """
        return self.encoder((images + 1.0) / 2.0), None

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decodes latents (B, H', W', latent_channels), in effect limited to -3..3.

        Returns (B, H, W, image_channels) float32, about [-1, 1], not clipped.
        """
        return self.decoder(latents) * 2.0 - 1.0
