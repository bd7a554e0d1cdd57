"""Rendered clips: a pure function, captions that are true, edits that change what they say."""

import numpy as np
import pytest

from contextdiff_jax.data.scenes_clips import DIRECTIONS, make_clip
from contextdiff_jax.evaluation import scenes_checker

CLIPS = [make_clip("train", index) for index in range(24)]


def seen(frame, clip):
    """What the checker reads as the moving shape."""
    found = scenes_checker.read(frame)
    return next(s for s in found if (s.colour, s.shape) == (clip.moving.colour, clip.moving.shape))


def test_a_clip_is_a_pure_function_of_split_and_number():
    assert make_clip("test", 3) == make_clip("test", 3) != make_clip("train", 3)
    with pytest.raises(ValueError, match="split = 'val': must be one of"):
        make_clip("val", 0)


def test_captions_say_half_the_directions_and_which_way_it_goes():
    assert 6 < sum(clip.bare for clip in CLIPS) < 18
    assert {clip.direction for clip in CLIPS} == set(DIRECTIONS)
    assert any(clip.other for clip in CLIPS)
    for clip in CLIPS[:6]:
        frames = clip.render(48)
        first, last = (seen(frames[number], clip) for number in (0, -1))
        right, down = DIRECTIONS[clip.direction]
        assert (last.x - first.x) * right + (last.y - first.y) * down > 0.25
        assert abs((last.x - first.x) * down) + abs((last.y - first.y) * right) < 0.02
        assert clip.caption.startswith(f"a {clip.moving.colour} {clip.moving.shape}")
        assert clip.bare == ("moving" not in clip.caption)


@pytest.mark.parametrize("edit", ["colour", "shape", "both", "identity"])
def test_an_edit_changes_what_it_says_inside_the_mask_alone(edit):
    clip = next(clip for clip in CLIPS if clip.other)
    other = clip.edited(edit)
    assert (other.moving.colour != clip.moving.colour) == (edit in ("colour", "both"))
    assert (other.moving.shape != clip.moving.shape) == (edit in ("shape", "both"))
    before, after, mask = clip.render(32), other.render(32), clip.mask(32)
    np.testing.assert_array_equal(before[~mask], after[~mask])
    assert (before != after).any() == (edit != "identity")
    found = seen(after[3], other)
    assert (found.x, found.y) == pytest.approx(clip.centre(3), abs=0.02)
