"""CLIP scores and consistency of frames against plain loops, by scipy's cosine distance."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cosine as cosine_distance

from contextdiff_jax.evaluation.similarity import (
    clip_score,
    cosines,
    fatezero_frame_accuracy,
    fatezero_temporal_consistency,
    frame_consistency,
    text_alignment,
    with_hessel_prefix,
)


def cosine(first, second):
    return 1.0 - cosine_distance(first, second)


@pytest.fixture
def embeddings():
    """Five images and texts of every length and sign of cosine; float32, as networks give them."""
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 5, 9)) * generator.uniform(0.1, 30, (2, 5, 1))
    return images.astype(np.float32), texts.astype(np.float32)


def test_scores_by_their_definitions(embeddings):
    images, texts = embeddings
    expected = [cosine(i.astype(float), t.astype(float)) for i, t in zip(*embeddings, strict=True)]
    assert min(expected) < 0 < max(expected)
    np.testing.assert_allclose(cosines(images, texts), expected, rtol=1e-12)
    score = clip_score(images, texts)
    assert score.mean_cosine == pytest.approx(np.mean(expected))
    assert score.hessel == pytest.approx(np.mean([2.5 * max(c, 0.0) for c in expected]))
    assert score.torchmetrics == pytest.approx(max(100 * np.mean(expected), 0.0))
    assert clip_score(images, -texts).torchmetrics == max(-100 * np.mean(expected), 0.0)


def test_frames_are_compared_in_all_pairs(embeddings):
    frames = embeddings[0].astype(float)
    pairs = [cosine(a, b) for a, b in itertools.combinations(frames, 2)]
    assert frame_consistency(frames) == pytest.approx(2 / (5 * 4) * sum(pairs))
    consecutive = [cosine(a, b) for a, b in itertools.pairwise(frames)]
    assert fatezero_temporal_consistency(frames) == pytest.approx(np.mean(consecutive))
    assert frame_consistency(frames) != pytest.approx(fatezero_temporal_consistency(frames))


def test_frames_against_prompts(embeddings):
    frames, (target, source, *_) = embeddings
    to_target = [cosine(frame.astype(float), target.astype(float)) for frame in frames]
    to_source = [cosine(frame.astype(float), source.astype(float)) for frame in frames]
    assert text_alignment(frames, target) == pytest.approx(np.mean(to_target))
    accuracy = np.mean(np.array(to_target) > np.array(to_source))
    assert 0 < accuracy < 1
    assert fatezero_frame_accuracy(frames, target, source) == accuracy


def test_hessel_s_prefix():
    assert with_hessel_prefix(["a cat"]) == ["A photo depicts a cat"]


def test_bad_input_is_refused(embeddings):
    images, texts = embeddings
    with pytest.raises(ValueError, match=r"shapes \(5, 9\) and \(4, 9\): must be equal"):
        clip_score(images, texts[:4])
    with pytest.raises(ValueError, match=r"shape \(0, 9\); must be \(N, D\), N at least 1"):
        clip_score(images[:0], texts[:0])
    with pytest.raises(ValueError, match="1 frame: consistency needs at least 2"):
        frame_consistency(images[:1])
    with pytest.raises(ValueError, match=r"text embedding has shape \(2, 9\); must be \(D,\)"):
        text_alignment(images, texts[:2])
    images[2] = 0
    with pytest.raises(ValueError, match="first embeddings: 1 of 5 are zero"):
        clip_score(images, texts)
    images[2] = np.nan
    with pytest.raises(ValueError, match="first embeddings: 9 of 45 values, in 1 of 5 rows"):
        clip_score(images, texts)
