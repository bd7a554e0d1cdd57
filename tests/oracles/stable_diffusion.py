"""diffusers' Stable Diffusion pipeline, begun at our noise."""

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.sampling.noise import sample_keys, step_noise


def noise(shape, count):
    """The noise that `Cascade.draw` starts pictures from, seed 3."""
    keys = sample_keys(3, jnp.arange(count))
    return step_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), 0, shape)


def theirs(folder, scheduler, prompts, size, **call):
    """Pictures (B, H, W, 3) in [0, 1] of diffusers' pipeline, from our noise."""
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, low_cpu_mem_usage=False
    )
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler).from_pretrained(folder / "scheduler")
    pipe.set_progress_bar_config(disable=True)
    height, width = size
    start = np.moveaxis(noise((height // 4, width // 4, 4), len(prompts)), -1, 1)
    latents = torch.from_numpy(np.array(start))
    return pipe(prompts, height, width, latents=latents, output_type="np", **call).images


def assert_same(images, expected):
    """Within 1 of 255; neither black nor white nearly everywhere, which would hide everything."""
    assert np.mean((expected > 0) & (expected < 1)) > 0.5
    assert np.abs((images + 1) / 2 - expected).max() < 1 / 255
