"""Latents: x0 is what a frozen first stage encodes a picture to, normalized.

The stage's own latents are normalized once each way, by one factor (Stable Diffusion) or by the
mean and the standard deviation of each channel, measured on the data a run is trained on. Either is
part of the trained weights: latents of another normalization are another space.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from contextdiff_jax.networks.autoencoder import Autoencoder
from contextdiff_jax.networks.tiny_autoencoder import TinyAutoencoder
from contextdiff_jax.spaces.pixels import from_uint8
from contextdiff_jax.spaces.tiling import decode_in_tiles


@dataclasses.dataclass(frozen=True)
class Normalization:
    """x0 = (latents - mean) / std, each with one number for every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def validate(self, channels: int, where: str = "normalization") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        for key in ("mean", "std"):
            value = getattr(self, key)
            if len(value) != channels or not np.isfinite(value).all():
                raise ValueError(
                    f"{where}.{key} = {value}: must be {channels} numbers, one for each channel of "
                    "the latents"
                )
        if min(self.std) <= 0:
            raise ValueError(f"{where}.std = {self.std}: must be positive numbers")


def scaled(channels: int, factor: float) -> Normalization:
    """Returns the normalization that multiplies every channel by `factor`."""
    return Normalization((0.0,) * channels, (1.0 / factor,) * channels)


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """Latents of pictures. `bind` gives it parameters; encode, decode, pixels need them.

    stage: the first stage. resolution: height of the pictures in pixels.
    normalization: None multiplies by the stage's scaling factor.
    tile, overlap: sides in latents; latents with a larger side than `tile` are decoded in tiles
      that overlap. Of a stage with norms the tiles are close to the whole, not the same: each has
      statistics of its own. None decodes any size whole.
    cheap: a tiny decoder of the same stage's latents, for `pixels`; None decodes by the stage.
    width: of the pictures in pixels; None makes them square.
    params: {"stage": ..., "cheap": ...} of the modules above, the latter where there is one.
    bounds: x0 has none: nothing may be clipped or thresholded.
    """

    stage: Autoencoder | TinyAutoencoder
    resolution: int
    normalization: Normalization | None = None
    tile: int | None = None
    overlap: int = 16
    cheap: TinyAutoencoder | None = None
    width: int | None = None
    params: Any = dataclasses.field(default=None, compare=False, repr=False)
    bounds: ClassVar[tuple[float, float] | None] = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x0, (h, w, latent_channels)."""
        factor, (height, width) = self.stage.config.reduction, self.image_shape[:2]
        return (height // factor, width // factor, self.stage.config.latent_channels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one picture, (H, W, C)."""
        width = self.resolution if self.width is None else self.width
        return (self.resolution, width, self.stage.config.image_channels)

    def validate(self, where: str = "space") -> None:
        """Raises ValueError for settings that cannot work; `where` prefixes the keys."""
        config = self.stage.config
        for key in ("resolution", "width"):
            side = getattr(self, key)
            if side is not None and (side < config.reduction or side % config.reduction):
                raise ValueError(
                    f"{where}.{key} = {side}: must be a multiple of {config.reduction}"
                )
        if self.normalization is not None:
            self.normalization.validate(config.latent_channels, f"{where}.normalization")
        if self.tile is not None:
            self._validate_tiles(where)
        if self.cheap is None:
            return
        for key in ("latent_channels", "reduction", "image_channels"):
            own, other = getattr(config, key), getattr(self.cheap.config, key)
            if own != other:
                raise ValueError(
                    f"{where}.cheap has {key} = {other}, the stage has {own}: it must decode the "
                    "stage's latents."
                )

    def _validate_tiles(self, where: str) -> None:
        if self.stage.config.tiles == "none":
            raise ValueError(
                f"{where}.tile = {self.tile}: must be None for this stage, whose norms span the "
                "picture: tiles would see parts of it"
            )
        if self.tile < 1:
            raise ValueError(f"{where}.tile = {self.tile}: must be at least 1, or None")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(
                f"{where}.overlap = {self.overlap}: must be from 0 to tile - 1 = {self.tile - 1}"
            )

    def bind(self, params: Any) -> "LatentSpace":
        """Returns the space with parameters, traced ones too: {"stage": ..., "cheap": ...}."""
        return dataclasses.replace(self, params=params)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns x0 (B, h, w, c) float32 of pictures (B, H, W, C), uint8 or in [-1, 1].

        key: draws from the stage's Gaussian, each time anew; None takes its mean. Stages without
        one do not read it.
        """
        return self.drawn(*self.moments(images), key)

    def moments(self, images: ArrayLike) -> tuple[jax.Array, jax.Array | None]:
        """Returns the stage's own latents of pictures, and the logarithm of their variance.

        Both (B, h, w, c) float32; None for the latter where the stage's encoder gives no Gaussian.
        """
        self._check_images(images.shape)
        if images.dtype == jnp.uint8:
            images = from_uint8(images)
        return self._apply("stage", "encode", images)

    def drawn(
        self, latents: jax.Array, log_variance: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """Returns x0 of what `moments` gave; key as in `encode`."""
        if key is not None and log_variance is not None:
            noise = jax.random.normal(key, latents.shape, latents.dtype)
            latents = latents + jnp.exp(0.5 * log_variance) * noise
        return self.normalized(latents)

    def mean_and_deviation(self, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns mean and standard deviation of x0 (B, h, w, c), float32, of pictures.

        The deviation is None of a stage without a Gaussian.
        """
        latents, log_variance = self.moments(images)
        if log_variance is None:
            return self.normalized(latents), None
        return self.normalized(latents), jnp.exp(0.5 * log_variance) / self._statistics()[1]

    def decode(
        self, x0: Float[ArrayLike, "batch h w latent"]
    ) -> Float[ArrayLike, "batch height width c"]:
        """Returns the pictures (B, H, W, C) float32 in [-1, 1] that x0 (B, h, w, c) stands for."""
        latents = self.raw(x0)

        def whole(part: jax.Array) -> jax.Array:
            return self._apply("stage", "decode", part)

        if self.tile is not None and max(latents.shape[1:3]) > self.tile:
            reduction = self.stage.config.reduction
            pictures = decode_in_tiles(whole, latents, self.tile, self.overlap, reduction)
        else:
            pictures = whole(latents)
        return jnp.clip(pictures, -1.0, 1.0)

    def pixels(self, x0: jax.Array) -> jax.Array:
        """Returns what CLIP looks at: pictures by the cheap decoder where there is one.

        Differentiable in x0, except through the codes of a VQ stage. The cheap decoder reads
        latents in the units of the stage's scaling factor.
        """
        if self.cheap is None:
            return self.decode(x0)
        latents = self.raw(x0) * self.stage.config.scaling_factor
        return jnp.clip(self._apply("cheap", "decode", latents), -1.0, 1.0)

    def normalized(self, latents: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
        """Returns x0 of the stage's own latents, float32."""
        mean, std = self._statistics()
        return (latents.astype(jnp.float32) - mean) / std

    def raw(self, x0: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
        """Returns the stage's own latents of x0, float32; ValueError for those of another."""
        channels = self.stage.config.latent_channels
        if x0.shape[-1] != channels:
            raise ValueError(f"latents have shape {x0.shape}: the last axis must be {channels}.")
        mean, std = self._statistics()
        return x0.astype(jnp.float32) * std + mean

    def _check_images(self, shape: tuple[int, ...]) -> None:
        factor, channels = self.stage.config.reduction, self.stage.config.image_channels
        if len(shape) != 4 or shape[-1] != channels or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"pictures have shape {shape}: must be (B, H, W, {channels}) with H and W "
                f"multiples of {factor}."
            )

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        config = self.stage.config
        known = self.normalization or scaled(config.latent_channels, config.scaling_factor)
        return np.asarray(known.mean, np.float32), np.asarray(known.std, np.float32)

    def _apply(self, name: str, method: str, *inputs: jax.Array) -> Any:
        if self.params is None:
            raise ValueError("the latent space has no parameters: bind() gives it some")
        module = getattr(self, name)
        return module.apply({"params": self.params[name]}, *inputs, method=method)
