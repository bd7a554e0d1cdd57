"""The low-resolution picture that super-resolution enlarges, with noise.

Noise-conditioning augmentation (Imagen, section 2.5): the condition is diffused by the
variance-preserving process to a level in [0, 1] which the network is told; 0 is clean.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from contextdiff_jax.conditions.condition import Batch, Condition, Given
from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import Array, Data, PerExample
from contextdiff_jax.spaces.pil_resizing import pil_lanczos, resize_square, round_to_levels

_AUGMENT = 0x7FFFFFFF  # a stream beside the sampler's, which folds in step numbers


@dataclasses.dataclass(frozen=True)
class LowResolution(Condition):
    """side: of the conditioning picture. augmentation: largest training level, in [0, 1]."""

    name: ClassVar[str] = "low_resolution"
    captioned: ClassVar[bool] = False
    droppable: ClassVar[bool] = False
    of_picture: ClassVar[bool] = True

    schedule: Schedule
    side: int = 64
    augmentation: float = 1.0

    @property
    def most_augmentation(self) -> float:
        """The largest training level."""
        return self.augmentation

    def of_target(self, pictures: jax.Array, key: jax.Array | None) -> dict[str, jax.Array]:
        """Returns the pictures' own low-resolution versions, noised to uniform levels."""
        if key is None:
            low = downsample(pictures, self.side)
            return {"low_res": low, "aug_level": jnp.zeros(low.shape[:1])}
        level_key, noise_key = jax.random.split(key)
        low = downsample(pictures, self.side)
        level = jax.random.uniform(level_key, low.shape[:1], maxval=self.augmentation)
        noise = jax.random.normal(noise_key, low.shape)
        return {"low_res": augment(self.schedule, low, level, noise), "aug_level": level}

    def of_before(self, images: jax.Array, level: float, keys: jax.Array) -> dict[str, jax.Array]:
        """Returns the pictures of the stage before, noised.

        images (B, h, w, C) in [-1, 1]; level in [0, 1], 0 is clean; keys (B,), one per picture.
        """
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, _AUGMENT), images.shape[1:])  # noqa: E731
        levels = jnp.full(images.shape[:1], level, jnp.float32)
        low = jnp.clip(images, -1.0, 1.0)
        noised = augment(self.schedule, low, levels, jax.vmap(draw)(keys))
        return {"low_res": noised, "aug_level": levels}

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the picture and its level as inputs of the denoiser."""
        inputs = {name: batch[name] for name in ("low_res", "aug_level")}
        return Given(jnp.ones(inputs["aug_level"].shape, bool), inputs=inputs)

    def protocol(self) -> dict[str, str]:
        """Says how it is made: earlier versions resized otherwise."""
        return {"low resolution": "PIL's Lanczos, 8 bits"}


def downsample(
    images: Num[Array, "batch h w c"], side: int
) -> Float[Array, "batch {side} {side} c"]:
    """Resizes pictures (B, H, W, C) to (B, side, side, C) as the data pipeline does: PIL's Lanczos.

    Both in [-1, 1], float32. What a base learns to draw are 8-bit pictures made by PIL, so this
    rounds and clips where PIL does: a condition of another sharpness, or with the overshoot of the
    kernel's negative lobes left in it, would be met in training only. `images` are rounded to 8
    bits first, as they are when written. No gradient passes. Rendered scenes are not resized but
    drawn anew at each side: at 16 px they lie 4.2 levels from this, without its overshoot.
    """
    levels = round_to_levels((images.astype(jnp.float32) + 1.0) * 127.5)
    return resize_square(levels, side, pil_lanczos) / 127.5 - 1.0


def augment(schedule: Schedule, low: Data, level: PerExample, noise: Data) -> Data:
    """Diffuses `low` to time level * T; level 0 returns it unchanged."""
    t = jnp.round(level * schedule.num_steps).astype(jnp.int32)
    return expand(schedule.signal(t), low) * low + expand(schedule.sigma(t), low) * noise
