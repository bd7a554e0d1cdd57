"""Resizing against PIL and closed forms. torch-fidelity and clean-fid: test_metric_agreement.py."""

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.encoders.preprocess import CLIP_MEAN, CLIP_STD
from contextdiff_jax.evaluation.resizing import (
    CLIP_PROTOCOL,
    PROTOCOLS,
    inception_protocol,
    tf1_bilinear,
    torch_bilinear,
)


def pictures(height, width, count=1):
    generator = np.random.default_rng(height)
    return generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def clip_by_pil(image, size):
    """Resize (shorter side), CenterCrop, ToTensor, Normalize, as OpenAI's code calls them."""
    height, width = image.shape[:2]
    short = min(height, width)
    sides = int(size * width / short), int(size * height / short)
    resized = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BICUBIC))
    top, left = round((sides[1] - size) / 2), round((sides[0] - size) / 2)
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(64, 64), (40, 61), (24, 24), (20, 90)])
def test_clip_is_pil_to_a_grey_level(shape):
    """Sums that lie at half a level may round otherwise: one level, one value in a thousand."""
    (image,) = pictures(*shape)
    ours = np.asarray(CLIP_PROTOCOL(image[None], 24))[0]
    levels = (ours * np.array(CLIP_STD) + np.array(CLIP_MEAN)) * 255
    difference = np.abs(levels - clip_by_pil(image, 24).astype(float))
    assert difference.max() < 1.01
    assert (difference > 0.01).mean() < 2e-3


@pytest.mark.parametrize("matrix", [tf1_bilinear, torch_bilinear])
@pytest.mark.parametrize(("size", "target"), [(1, 5), (2, 7), (7, 2), (299, 299), (640, 299)])
def test_rows_of_weights_sum_to_one(matrix, size, target):
    weights = matrix(size, target)
    assert weights.shape == (target, size)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    if size == target:
        np.testing.assert_array_equal(weights, np.eye(size, dtype=np.float32))


def test_the_conventions_differ():
    """2 -> 4 pixels: TensorFlow 1 samples at 0, 0.5, 1, 1.5; half-pixel centres at -0.25, ..."""
    np.testing.assert_array_equal(tf1_bilinear(2, 4)[:, 1], [0.0, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(torch_bilinear(2, 4)[:, 1], [0.0, 0.25, 0.75, 1.0])


def test_inputs_span_minus_one_to_one():
    ends = np.zeros((2, 4, 4, 3), np.uint8)
    ends[1] = 255
    expected = {"torch-fidelity": 127 / 128, "clean-fid": 127 / 128, "pytorch-fid": 1.0}
    for name, protocol in PROTOCOLS.items():
        low, high = np.asarray(protocol(ends, 6))
        np.testing.assert_allclose(low, -1.0, atol=1e-6)
        np.testing.assert_allclose(high, expected[name], atol=1e-6)


def test_other_images_and_protocols_are_refused():
    images = pictures(4, 4, 2)
    for wrong in (images[0], images[..., :1], images.astype(np.float32), images[:, :0]):
        with pytest.raises(ValueError, match=r"must be uint8 \(B, H, W, 3\)"):
            PROTOCOLS["clean-fid"](wrong, 8)
    with pytest.raises(ValueError, match="protocol = 'bilinear': must be one of torch-fidelity"):
        inception_protocol("bilinear")
