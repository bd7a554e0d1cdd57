"""Pixels: x0 is the picture itself."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Num


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Square pictures with values in [-1, 1].

    resolution: their side in pixels.
    bounds: the least and the largest value of x0; None for a space without any.
    """

    resolution: int
    channels: int = 3
    bounds: ClassVar[tuple[float, float] | None] = (-1.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x0, (H, W, C)."""
        return (self.resolution, self.resolution, self.channels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one picture as the data has it, (H, W, C)."""
        return self.shape

    def encode(
        self, images: Num[ArrayLike, "batch h w c"], key: jax.Array | None = None
    ) -> Float[ArrayLike, "batch h w c"]:
        """Returns x0 float32 of pictures (B, H, W, C) uint8. key: of spaces that draw; not read."""
        del key
        return from_uint8(images)

    def decode(self, x0: Float[ArrayLike, "batch h w c"]) -> Float[ArrayLike, "batch h w c"]:
        """Returns the pictures (B, H, W, C) in [-1, 1] that x0 stands for."""
        return x0

    def pixels(self, x0: Float[ArrayLike, "batch h w c"]) -> Float[ArrayLike, "batch h w c"]:
        """Returns what CLIP looks at, (B, h, w, 3) in [-1, 1], differentiable in x0."""
        return x0


def from_uint8(images: Num[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """Maps 0..255 to [-1, 1] in float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0
