"""The Frechet distance against closed forms, at every rank. Packages: test_metric_agreement.py."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.evaluation.frechet import frechet_distance, trace_of_root
from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics

IDENTITY = FeatureIdentity("clip", "image_embedding", "sha256:00", "clip")


def statistics(features, source="drawn"):
    return FeatureStatistics.of(features, IDENTITY, source)


def test_gaussians_with_common_axes():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over the axes."""
    generator = np.random.default_rng(0)
    axes, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    first, second = generator.uniform(0.1, 2.0, (2, 6))
    means = generator.normal(size=(2, 6))
    sets = [
        FeatureStatistics.from_moments(mean, axes * s**2 @ axes.T, 100, IDENTITY, "exact")
        for mean, s in zip(means, (first, second), strict=True)
    ]
    result = frechet_distance(*sets)
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((first - second) ** 2)
    assert result.distance == pytest.approx(expected, rel=1e-12)
    assert result.mean_term == pytest.approx(np.sum((means[0] - means[1]) ** 2), rel=1e-12)
    assert not result.rank_deficient and result.note == ""


@pytest.mark.parametrize(("count", "other"), [(5, 9), (40, 9), (5, 400), (40, 40)])
def test_fewer_samples_than_features(count, other):
    """With centred rows X, Y: tr (S1 S2)^(1/2) is the nuclear norm of X Y^T, scaled."""
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(count, 40)), generator.normal(size=(other, 40)) + 0.5
    centred = [x - x.mean(0) for x in (first, second)]
    singular = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False)
    root = singular.sum() / np.sqrt((count - 1) * (other - 1))
    traces = sum(np.sum(x * x) / (len(x) - 1) for x in centred)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + traces - 2 * root
    result = frechet_distance(statistics(first, "few"), statistics(second, "others"))
    assert result.distance == pytest.approx(expected, rel=1e-6)
    assert result.rank_deficient
    assert ("'few' has" in result.note, "'others' has" in result.note) == (
        count <= 40,
        other <= 40,
    )


def test_a_set_is_at_no_distance_from_itself():
    features = np.random.default_rng(2).normal(size=(30, 50))
    same = statistics(features)
    assert 0.0 <= frechet_distance(same, same).distance < 1e-6


def test_the_root_of_singular_products_is_real():
    constant = np.zeros((4, 4))
    assert trace_of_root(constant, np.eye(4)) == 0.0
    flat = np.diag([1.0, 0.0, 4.0, 0.0])
    assert trace_of_root(flat, np.eye(4)) == pytest.approx(3.0)


def test_the_result_records_both_sets():
    features = np.random.default_rng(3).normal(size=(20, 3))
    record = frechet_distance(statistics(features, "ours"), statistics(features, "real")).to_json()
    assert record["first"] == {
        "source": "ours",
        "count": 20,
        "dimension": 3,
        **dataclasses.asdict(IDENTITY),
    }
    assert record["second"]["source"] == "real"


def test_mismatched_sets_and_single_samples_are_refused():
    features = np.random.default_rng(4).normal(size=(20, 3))
    ours = statistics(features)
    resized = dataclasses.replace(IDENTITY, protocol="clean-fid")
    with pytest.raises(ValueError, match="features differ in protocol: 'clip' .* 'clean-fid'"):
        frechet_distance(ours, FeatureStatistics.of(features, resized, "other"))
    with pytest.raises(ValueError, match="features differ in dimension: 3 .* 2"):
        frechet_distance(ours, statistics(features[:, :2]))
    with pytest.raises(ValueError, match="'one' has 1 samples"):
        frechet_distance(ours, statistics(features[:1], "one"))
