"""Precision and recall in cases one can count. Packages: test_metric_agreement.py."""

import numpy as np
import pytest

from contextdiff_jax.evaluation import precision_recall as module
from contextdiff_jax.evaluation.precision_recall import precision_recall


def points(*values):
    return np.array(values, np.float32)[:, None]


def test_balls_on_a_line():
    """Real balls of radius 1 around 0..3; generated balls of radius 0.5 around 3, 3.5, and 10's."""
    real, generated = points(0, 1, 2, 3), points(2.6, 3.1, 10)
    result = precision_recall(real, generated, k=1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(1 / 4 + 0)  # 3, but 2 lies outside of 2.6 +- 0.5
    assert result.density == pytest.approx((2 + 1) / 3)
    assert result.coverage == pytest.approx(2 / 4)
    assert (result.real_count, result.generated_count, result.k) == (4, 3, 1)


def test_the_boundary_counts_or_not():
    real, generated = points(0, 1), points(2, 9)
    assert precision_recall(real, generated, k=1, boundary="open").precision == 0.0
    assert precision_recall(real, generated, k=1, boundary="closed").precision == 0.5


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    real, generated = generator.normal(size=(57, 8)), generator.normal(size=(43, 8)) * 0.9
    whole = precision_recall(real, generated)
    monkeypatch.setattr(module, "_BLOCK", 10)
    assert precision_recall(real, generated) == whole


def test_bad_input_is_refused():
    features = np.zeros((4, 2))
    with pytest.raises(ValueError, match="k = 4: must be at least 1 and below 4, .* real"):
        precision_recall(features, np.zeros((9, 2)), k=4)
    with pytest.raises(ValueError, match="boundary = 'half': must be one of open, closed"):
        precision_recall(features, features, boundary="half")
    with pytest.raises(ValueError, match=r"generated features .* must be float of \(N, 2\)"):
        precision_recall(features, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="real features: 8 of 8 values"):
        precision_recall(features * np.nan, features)
