"""Super-resolution: the same process, conditioned on a low-resolution image with noise.

Noise-conditioning augmentation (Imagen, section 2.5): the condition is diffused by the
variance-preserving process to a level in [0, 1] which the network is told; 0 is clean.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.pil_resizing import pil_lanczos, resize_square, round_to_levels
from contextdiff_jax.tasks.diffusion import DiffusionTask, from_uint8
from contextdiff_jax.training.task import Batch, Metrics, Params

_AUGMENT = 0x7FFFFFFF  # a stream beside the sampler's, which folds in step numbers


@dataclasses.dataclass(frozen=True)
class SuperResolutionTask(DiffusionTask):
    """low_resolution: side of the conditioning image. augmentation: largest training level."""

    low_resolution: int = 64
    augmentation: float = 1.0

    def _example_extras(self) -> dict[str, jax.Array]:
        low = jnp.zeros((1, self.low_resolution, self.low_resolution, 3))
        return {"low_res": low, "aug_level": jnp.zeros((1,))}

    def extras(self, images: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the images' own low-resolution versions, noised to uniform levels."""
        level_key, noise_key = jax.random.split(key)
        low = downsample(images, self.low_resolution)
        level = jax.random.uniform(level_key, low.shape[:1], maxval=self.augmentation)
        noise = jax.random.normal(noise_key, low.shape)
        return {"low_res": augment(self.schedule, low, level, noise), "aug_level": level}

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Adds how far the upsampled result is from its input, once downsampled (0 is perfect).

        A model that ignores its input scores like two unrelated pictures (`unrelated`).
        """
        metrics = super().diagnose(params, frozen, batch, key)
        sampler = dataclasses.replace(self.sampler, num_steps=10, name="ddim", eta=0.0)
        batch = jax.tree.map(lambda leaf: leaf[:8], dict(batch))
        low = downsample(from_uint8(batch["image"]), self.low_resolution)
        extras = {"low_res": low, "aug_level": jnp.zeros(low.shape[:1])}
        keys = jax.random.split(key, low.shape[0])
        images = self.sample(params, frozen, batch, keys, sampler, extras)
        again = downsample(images, self.low_resolution)
        rms = lambda difference: jnp.sqrt(jnp.mean(jnp.square(difference)))  # noqa: E731
        return metrics | {
            "consistency_rms": rms(again - low),
            "consistency_rms_unrelated": rms(again - jnp.roll(low, 1, axis=0)),
        }

    def clean_extras(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the images' own low-resolution versions, clean."""
        low = downsample(from_uint8(batch["image"]), self.low_resolution)
        return {"low_res": low, "aug_level": jnp.zeros(low.shape[:1])}

    def condition_on(self, low: jax.Array, level: float, keys: jax.Array) -> dict[str, jax.Array]:
        """Returns the denoiser's inputs in a cascade: the images of the stage before, noised.

        low (B, h, w, 3) in [-1, 1]; level in [0, 1], 0 is clean; keys (B,), one per picture.
        """
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, _AUGMENT), low.shape[1:])  # noqa: E731
        levels = jnp.full(low.shape[:1], level, jnp.float32)
        low = augment(self.schedule, jnp.clip(low, -1.0, 1.0), levels, jax.vmap(draw)(keys))
        return {"low_res": low, "aug_level": levels}


def downsample(images: jax.Array, side: int) -> jax.Array:
    """Resizes pictures (B, H, W, C) to (B, side, side, C) as the data pipeline does: PIL's Lanczos.

    Both in [-1, 1], float32. What a base learns to draw are 8-bit pictures made by PIL, so this
    rounds and clips where PIL does: a condition of another sharpness, or with the overshoot of the
    kernel's negative lobes left in it, would be met in training only. `images` are rounded to 8
    bits first, as they are when written. No gradient passes. Rendered scenes are not resized but
    drawn anew at each side: at 16 px they lie 4.2 levels from this, without its overshoot.
    """
    levels = round_to_levels((images.astype(jnp.float32) + 1.0) * 127.5)
    return resize_square(levels, side, pil_lanczos) / 127.5 - 1.0


def augment(schedule: Schedule, low: jax.Array, level: jax.Array, noise: jax.Array) -> jax.Array:
    """Diffuses `low` to time level * T; level 0 returns it unchanged."""
    t = jnp.round(level * schedule.num_steps).astype(jnp.int32)
    return expand(schedule.signal(t), low) * low + expand(schedule.sigma(t), low) * noise
