"""Any batches in, the features of each image once and in order out; on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.evaluation.extraction import (
    Extraction,
    FeatureExtractor,
    collect,
    statistics_of,
)
from contextdiff_jax.evaluation.resizing import PROTOCOLS
from contextdiff_jax.evaluation.statistics import FeatureIdentity

SIDE = 6


def extractor(seen=None):
    """Two layers of simple features; notes the shape of every compilation of the network."""

    def apply(params, pixels):
        if seen is not None:
            seen.append(pixels.shape)
        means = pixels.mean((1, 2))
        return {"mean": means, "corner": pixels[:, 0, 0] @ params["kernel"]}

    weights = {"mean": "sha256:00", "corner": "sha256:01"}
    params = {"kernel": np.eye(3, 5, dtype=np.float32)}
    return FeatureExtractor("simple", params, apply, PROTOCOLS["torch-fidelity"], SIDE, weights)


def images(count, height=SIDE, width=SIDE, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def expected_means(pictures):
    return (pictures.astype(np.float64) / 128 - 1).mean((1, 2))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("sizes", [(21,), (8, 8, 5), (1,) * 3 + (18,), (0, 20, 0, 1)])
def test_batches_of_any_size(devices, sizes):
    seen = []
    extraction = Extraction(extractor(seen), 8, jax.local_devices()[:devices])
    pictures = images(21)
    batches = np.split(pictures, np.cumsum(sizes)[:-1])
    parts = list(extraction(batches, total=21))
    assert [len(part["mean"]) for part in parts] == [8, 8, 5]
    features = collect(parts)
    np.testing.assert_allclose(features["mean"], expected_means(pictures), atol=1e-5)
    corners = pictures[:, 0, 0] / 128 - 1
    np.testing.assert_allclose(features["corner"][:, :3], corners, atol=1e-5)
    assert features["corner"].dtype == np.float32
    assert seen == [(8, SIDE, SIDE, 3)]  # compiled once, for full batches


def test_the_batch_size_is_a_multiple_of_the_devices():
    assert Extraction(extractor(), 3, jax.local_devices()[:2]).batch_size == 4
    with pytest.raises(ValueError, match="batch_size = 0: must be at least 1"):
        Extraction(extractor(), 0)


def test_sizes_may_differ_from_batch_to_batch():
    sizes = ((3, 9), (SIDE, SIDE), (20, 4), (3, 9))
    batches = [images(2, *size, seed=index) for index, size in enumerate(sizes)]
    features = collect(Extraction(extractor(), 3, jax.local_devices()[:1])(batches))["mean"]
    resized = [np.asarray(PROTOCOLS["torch-fidelity"](batch, SIDE)) for batch in batches]
    np.testing.assert_allclose(features, np.concatenate(resized).mean((1, 2)), atol=1e-5)


def test_statistics_are_those_of_all_features():
    pictures = images(21)
    extraction = Extraction(extractor(), 8)
    statistics = statistics_of(extraction, [pictures], "mean", "drawn")
    means = expected_means(pictures)
    np.testing.assert_allclose(statistics.mean, means.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.covariance, np.cov(means, rowvar=False), atol=1e-6)
    assert statistics.count == 21
    assert statistics.identity == FeatureIdentity("simple", "mean", "sha256:00", "torch-fidelity")


def test_bad_images_and_features_are_refused():
    extraction = Extraction(extractor(), 2, jax.local_devices()[:1])
    with pytest.raises(ValueError, match=r"float32 of shape \(2, 6, 6, 3\); must be uint8"):
        collect(extraction([images(2).astype(np.float32)]))
    with pytest.raises(ValueError, match="layer = 'pool3': must be one of mean, corner"):
        statistics_of(extraction, [images(2)], "pool3", "drawn")
    with pytest.raises(ValueError, match="'nothing' has 0 images"):
        statistics_of(extraction, [], "mean", "nothing")
    with pytest.raises(ValueError, match="0 images: features need at least 1"):
        collect(extraction([images(0)]))

    def broken(params, pixels):
        return {"mean": jnp.full((len(pixels), 3), jnp.nan)}

    bad = FeatureExtractor("broken", {}, broken, PROTOCOLS["clean-fid"], SIDE, {"mean": "none"})
    with pytest.raises(ValueError, match="features 'mean': 9 of 9 values, in 3 of 3 rows"):
        collect(Extraction(bad, 4, jax.local_devices()[:1])([images(3)]))
