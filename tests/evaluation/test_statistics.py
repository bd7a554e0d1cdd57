"""Streaming moments against numpy on all rows; what is stored; what is refused."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics

IDENTITY = FeatureIdentity("inception_v3_2015", "2048", "sha256:00", "torch-fidelity")


def rows(count=60, width=7, seed=0):
    """Features far from zero, where sums of squares would cancel."""
    generator = np.random.default_rng(seed)
    return 1e4 + generator.normal(size=(count, width)) @ generator.normal(size=(width, width))


def assert_moments(statistics, features):
    assert statistics.count == len(features)
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-14)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(60,), (1, 58, 1), (0, 30, 0, 30), (1,) * 60])
def test_any_batches_give_the_moments_of_all_rows(sizes):
    features = rows()
    statistics = FeatureStatistics(IDENTITY, 7, "drawn")
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        statistics.update(part)
    assert_moments(statistics, features)


def test_merged_sets_are_the_set_of_both():
    features = rows().astype(np.float32)
    parts = [FeatureStatistics.of(part, IDENTITY, "part") for part in np.split(features, [7, 50])]
    whole = FeatureStatistics(IDENTITY, 7, "whole")
    for part in parts:
        whole.merge(part)
    assert_moments(whole, features.astype(np.float64))


def test_a_stored_set_goes_on_where_it_was(tmp_path):
    features = rows()
    for count in (0, 1, 25):
        statistics = FeatureStatistics(IDENTITY, 7, "photos, first half")
        statistics.update(features[:count])
        statistics.save(tmp_path / "deep" / "photos.npz")
        again = FeatureStatistics.load(tmp_path / "deep" / "photos.npz")
        assert (again.identity, again.source) == (IDENTITY, "photos, first half")
        again.update(features[count:])
        assert_moments(again, features)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["photos.npz"]


def test_files_hold_what_other_tools_read(tmp_path):
    features = rows()
    FeatureStatistics.of(features, IDENTITY, "x").save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as content:
        np.testing.assert_allclose(content["mu"], features.mean(0))
        np.testing.assert_allclose(content["sigma"], np.cov(features, rowvar=False), rtol=1e-7)


def test_moments_of_other_tools_are_taken_with_a_stated_identity():
    features = rows()
    taken = FeatureStatistics.from_moments(
        features.mean(0), np.cov(features, rowvar=False), 60, IDENTITY, "theirs"
    )
    assert_moments(taken, features)
    with pytest.raises(ValueError, match=r"mean has shape \(7,\), covariance \(6, 6\)"):
        FeatureStatistics.from_moments(features.mean(0), np.eye(6), 60, IDENTITY, "theirs")
    with pytest.raises(ValueError, match="count = 0: must be at least 1"):
        FeatureStatistics.from_moments(np.zeros(2), np.eye(2), 0, IDENTITY, "theirs")


@pytest.mark.parametrize("field", ["network", "layer", "weights", "protocol"])
def test_other_features_are_refused(field):
    ours = FeatureStatistics.of(rows(), IDENTITY, "ours")
    other = dataclasses.replace(IDENTITY, **{field: "something else"})
    theirs = FeatureStatistics.of(rows(), other, "theirs")
    sentence = f"features differ in {field}: '.*' for 'ours', 'something else' for 'theirs'"
    with pytest.raises(ValueError, match=sentence):
        ours.merge(theirs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_counted_and_refused(value):
    features = rows(10, 4)
    features[3, 1:3] = value
    features[8, 0] = value
    sentence = "features of 'x': 3 of 40 values, in 2 of 10 rows, are NaN or infinite"
    with pytest.raises(ValueError, match=sentence):
        FeatureStatistics.of(features, IDENTITY, "x")


def test_opposite_infinities_do_not_hide_each_other():
    with pytest.raises(ValueError, match="2 of 4 values"):
        FeatureStatistics.of(np.array([[np.inf, -np.inf], [0.0, 1.0]]), IDENTITY, "x")


def test_bad_shapes_and_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"int64 of shape \(2, 3\); must be float of \(N, D\)"):
        FeatureStatistics.of(np.zeros((2, 3), np.int64), IDENTITY, "x")
    with pytest.raises(ValueError, match=r"shape \(2, 3\); must be float of \(N, 4\)"):
        FeatureStatistics(IDENTITY, 4, "x").update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="'x' has 1 samples: a covariance needs 2"):
        _ = FeatureStatistics.of(np.zeros((1, 3)), IDENTITY, "x").covariance


def test_files_without_a_record_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match="do not exist"):
        FeatureStatistics.load(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="holds no readable (statistics|arrays)"):
        FeatureStatistics.load(path)
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match="does not record network, layer, weights and protocol"):
        FeatureStatistics.load(path)
    FeatureStatistics.of(rows(), IDENTITY, "x").save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="holds no readable (statistics|arrays)"):
        FeatureStatistics.load(path)
    with pytest.raises(ValueError, match="stored as .npz"):
        FeatureStatistics(IDENTITY, 2, "x").save(tmp_path / "x.json")
