"""Dynamic image normalization: every picture by its own mean and deviation, known and undone.

For pictures that are a condition (context, query), never for what is drawn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from contextdiff_jax.diffusion.shapes import Array

FLOOR = 0.05
"""Least deviation that a picture in [-1, 1] is divided by: flat ones must not blow up."""


class Normalized(NamedTuple):
    """Pictures (..., H, W, C) of zero mean, with the mean and deviation (..., 1, 1, 1) they had."""

    pictures: jax.Array
    mean: jax.Array
    deviation: jax.Array

    def restored(self) -> jax.Array:
        """Returns the pictures as they were."""
        return self.pictures * self.deviation + self.mean


def normalized(pictures: Num[Array, "*batch h w c"], floor: float = FLOOR) -> Normalized:
    """Normalizes pictures (..., H, W, C), each over its pixels and channels together.

    Colours keep their relations, as channels are not normalized apart. The deviation is at least
    `floor`: a flat picture becomes zero. float32.
    """
    pictures = pictures.astype(jnp.float32)
    axes = (-3, -2, -1)
    mean = pictures.mean(axes, keepdims=True)
    centred = pictures - mean
    deviation = jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True))
    deviation = jnp.maximum(deviation, floor)
    return Normalized(centred / deviation, mean, deviation)
