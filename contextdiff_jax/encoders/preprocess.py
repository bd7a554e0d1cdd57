"""CLIP's image preprocessing as a differentiable function."""

import jax
import jax.numpy as jnp

# Mean and standard deviation of the original training images, per RGB channel in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_preprocess(images: jax.Array, size: int) -> jax.Array:
    """Resizes, crops and normalizes images for CLIP (Radford et al. 2021, published code).

    The shorter side is resized to `size` by antialiased bicubic interpolation (the filter of PIL),
    the centre square of the result is kept. Unlike the published preprocessing, which resizes
    8-bit images, nothing is rounded or clipped: overshoot at edges stays, and gradients exist.

    Args:
      images: (B, H, W, 3) in [-1, 1], any float dtype.
      size: side of the model's input, CLIPConfig.image_size.

    Returns:
      (B, size, size, 3) float32, zero mean and unit deviation over natural images.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images is {images.dtype} of shape {images.shape}; must be float of (B, H, W, 3)"
        )
    # jax.image.resize computes its weights in the dtype of its input.
    images = (images.astype(jnp.float32) + 1.0) / 2.0
    batch, height, width, _ = images.shape
    short = min(height, width)
    shape = (batch, size * height // short, size * width // short, 3)
    if shape[1:3] != (height, width):
        images = jax.image.resize(images, shape, "cubic", antialias=True)
    top, left = (round((side - size) / 2) for side in shape[1:3])
    images = images[:, top : top + size, left : left + size]
    return (images - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)
