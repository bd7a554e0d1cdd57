"""Measures of clips against skimage-like closed forms, and on exact edits."""

import numpy as np
import pytest

from contextdiff_jax.data.scenes_clips import make_clip
from contextdiff_jax.evaluation.clips import flicker, masked_psnr, outside, scene_scores

SOURCE = np.random.default_rng(0).integers(40, 200, (4, 6, 5, 3), np.uint8)
MASK = np.zeros((4, 6, 5), bool)
MASK[:, :2] = True


def test_psnr_is_of_the_masked_pixels_alone():
    edited = SOURCE.copy()
    edited[:, :2] += 5  # MSE 25
    edited[:, 2:] = 0
    assert masked_psnr(edited, SOURCE, MASK) == pytest.approx(10 * np.log10(255**2 / 25))
    assert masked_psnr(SOURCE, SOURCE, MASK) == np.inf


def test_flicker_counts_what_the_source_does_not_do():
    steady = SOURCE + np.uint8(7)
    assert flicker(steady, SOURCE, MASK) == 0
    blinking = SOURCE.copy()
    blinking[1::2, :2] += 6  # each change is 6 up or down
    blinking[:, 2:] = 0
    assert flicker(blinking, SOURCE, MASK) == pytest.approx(6)


def test_outside_is_of_the_union_dilated():
    mask = np.zeros((2, 7, 7), bool)
    mask[0, 1, 1] = mask[1, 5, 5] = True
    found = outside(mask, 1)
    assert found.shape == mask.shape and (found[0] == found[1]).all()
    assert found[0].sum() == 49 - 18
    assert outside(mask, 0)[0].sum() == 47


@pytest.mark.parametrize(
    ("edited", "mask", "reason"),
    [
        (SOURCE[:2], MASK, "clips of shapes"),
        (SOURCE, MASK[:2], "the mask has shape"),
        (SOURCE, np.zeros_like(MASK), "the mask is empty"),
    ],
)
def test_what_does_not_fit_is_refused(edited, mask, reason):
    for measure in (masked_psnr, flicker):
        with pytest.raises(ValueError, match=reason):
            measure(edited, SOURCE, mask)


def test_the_exact_edit_is_right_and_the_source_is_not():
    clip = make_clip("test", 0)
    target = clip.edited("both")
    exact = scene_scores(target.render(32), target)
    assert (exact.colour, exact.shape, exact.both) == (1, 1, 1) and exact.centre < 0.3
    source = scene_scores(clip.render(32), target)
    assert (source.colour, source.shape, source.both) == (0, 0, 0) and source.centre < 0.3
    still = np.repeat(target.render(32)[:1], 8, axis=0)
    assert scene_scores(still, target).centre > 2
    nothing = scene_scores(np.full_like(still, 240), target)
    assert (nothing.colour, nothing.centre) == (0, None)
