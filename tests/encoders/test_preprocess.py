"""clip_preprocess against PIL's float bicubic resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.encoders.preprocess import clip_preprocess

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def pil_preprocess(image, size):
    """image (H, W, 3) in [-1, 1] -> PIL, shorter side to `size`, centre crop, normalized."""
    height, width, _ = image.shape
    short = min(height, width)
    new = (int(size * width / short), int(size * height / short))
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(new, Image.Resampling.BICUBIC))
        for plane in np.moveaxis((image + 1) / 2, -1, 0)
    ]
    resized = np.stack(planes, -1)
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return (resized[top : top + size, left : left + size] - MEAN) / STD


@pytest.mark.parametrize(
    ("shape", "size"), [((64, 64), 224), ((256, 256), 224), ((90, 61), 32), ((33, 50), 48)]
)
def test_agrees_with_pil(shape, size):
    image = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    ours = clip_preprocess(image[None], size)
    assert ours.shape == (1, size, size, 3)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[0], pil_preprocess(image, size), atol=2e-4)


def test_agrees_with_pil_on_a_photograph(shared_data):
    path = sorted(shared_data("photos").rglob("*.jpg"))[0]
    image = np.asarray(Image.open(path).convert("RGB"), np.float32) / 127.5 - 1
    ours = clip_preprocess(image[None], 224)
    np.testing.assert_allclose(ours[0], pil_preprocess(image, 224), atol=2e-4)


def test_the_right_size_is_only_normalized():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(
        clip_preprocess(image, 32), ((image + 1) / 2 - MEAN) / STD, atol=1e-5
    )


def test_gradients_reach_every_pixel():
    # The map is affine: gradients are exact differences.
    key = jax.random.key(0)
    image, direction = jax.random.uniform(key, (2, 1, 40, 40, 3), minval=-1)
    weights = jax.random.normal(key, (1, 32, 32, 3))

    def loss(x):
        return jnp.sum(weights * clip_preprocess(x, 32))

    gradient = jax.grad(loss)(image)
    assert jnp.all(gradient != 0)
    difference = loss(image + direction) - loss(image)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-3)


def test_resizes_bfloat16_images_in_float32():
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)), jnp.bfloat16)
    exact = clip_preprocess(image.astype(jnp.float32), 32)
    np.testing.assert_array_equal(clip_preprocess(image, 32), exact)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((32, 32, 3), np.float32), ((1, 3, 32, 32), np.float32), ((1, 32, 32, 3), np.uint8)],
)
def test_other_arrays_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"must be float of \(B, H, W, 3\)"):
        clip_preprocess(np.zeros(shape, dtype), 32)
