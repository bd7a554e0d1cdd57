"""The Inception Score in closed form, and its options. Packages: test_metric_agreement.py."""

import numpy as np
import pytest

from contextdiff_jax.evaluation.inception_score import inception_score


def test_sure_and_even_predictions_score_the_number_of_classes():
    logits = 1e4 * np.tile(np.eye(5, dtype=np.float32), (6, 1))
    score = inception_score(logits, splits=3, shuffle_seed=None)
    assert score.mean == pytest.approx(5.0)
    assert score.std == pytest.approx(0.0, abs=1e-12)


def test_predictions_that_ignore_the_image_score_one():
    logits = np.tile(np.array([1.0, 2.0, 3.0]), (10, 1))
    assert inception_score(logits, splits=2).mean == pytest.approx(1.0)


def test_order_and_parts_are_recorded_and_matter():
    logits = np.random.default_rng(0).normal(size=(25, 4)) * 4
    kept, shuffled = (inception_score(logits, 4, seed) for seed in (None, 2020))
    assert kept.mean != shuffled.mean
    assert shuffled.to_json() | {"mean": 0, "std": 0} == {
        "mean": 0,
        "std": 0,
        "count": 25,
        "splits": 4,
        "shuffle_seed": 2020,
    }


def test_few_images_and_bad_logits_are_refused():
    with pytest.raises(ValueError, match="splits = 10: must be 1 to 4, the number of images"):
        inception_score(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="logits: 1 of 6 values, in 1 of 2 rows"):
        inception_score(np.array([[0, np.nan, 0], [0.0, 0, 0]]), splits=1)
