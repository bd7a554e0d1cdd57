"""Measures of clips against skimage-like closed forms, and on exact edits."""

import numpy as np
import pytest

from contextdiff_jax.data.scenes_clips import make_clip
from contextdiff_jax.evaluation.clips import flicker, masked_psnr, outside, scene_scores, warp_error

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


def test_a_warp_error_is_what_the_flow_does_not_explain():
    """Everything moves a pixel to the right and half a one down, on ramps; then two grey levels."""
    rows, columns = np.indices((6, 5))
    ramp = (80 + 4 * rows + 10 * columns)[..., None].repeat(3, -1)
    moving = np.stack([ramp, ramp - 12, ramp - 24]).astype(np.uint8)
    flow = np.broadcast_to([-1.0, -0.5], (2, 6, 5, 2))
    known = np.zeros((2, 6, 5), bool)
    known[:, 1:, 1:] = True  # the rest comes from outside
    assert warp_error(moving, flow, known) == pytest.approx(0)
    moving[1:, 1:, 1:] += 2  # a step, and then none
    assert warp_error(moving, flow, known) == pytest.approx(np.sqrt(4 / 2), rel=0.35)
    with pytest.raises(ValueError, match="a flow of shape"):
        warp_error(moving, flow[:1], known)
    with pytest.raises(ValueError, match="1 frame: a warp error needs at least 2"):
        warp_error(moving[:1], flow[:0], known[:0])


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("side", [16, 32])
def test_rendered_clips_move_along_their_flow(side, number):
    clip = make_clip("test", number)
    flow, known = clip.flow(side)
    frames, inside = clip.render(side), known & flow.any(-1)
    assert warp_error(frames, flow, known) < 0.3  # of rounding
    assert inside.any(axis=(1, 2)).all() and known.mean() > 0.85
    still = np.repeat(frames[:1], len(frames), axis=0)
    assert warp_error(still, np.zeros_like(flow), known) == 0
    assert warp_error(still, flow, known) > 3
    assert warp_error(frames, np.zeros_like(flow), np.ones_like(known)) > 10


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
