"""Submissions to LOVEU-TGVE-2023: edits stay whole, and nothing of an earlier one is left."""

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data.tgve import KINDS, TgveVideo
from contextdiff_jax.generation.tgve_submission import write_submission
from contextdiff_jax.spaces.clips import write_frames


def submit(folder, count, height, width):
    """Edits that are red at the left and right ends, blue elsewhere; returns a frame's folder."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = 200
    for end in (frames[:, :, :8], frames[:, :, -8:]):
        end[:] = (200, 0, 0)
    places = [folder / f"{number:02d}" for number in range(4)]
    for place in places:
        write_frames(place / "frames", frames)
    video = TgveVideo("DAVIS_480p", "stunt", "a", dict.fromkeys(KINDS, "b"), folder)
    write_submission(str(folder / "mine"), video, places, (48, 80))
    return folder / "mine/DAVIS_480p/stunt/style"


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, (48, 48)), (32, 64, (40, 80)), (24, 40, (48, 80))]
)
def test_an_edit_is_written_whole_whatever_its_proportions(height, width, size, tmp_path):
    frame = np.asarray(Image.open(submit(tmp_path, 1, height, width) / "00000.jpg")).astype(int)
    assert frame.shape == (*size, 3)
    for column, red in ((2, True), (-3, True), (size[1] // 2, False)):
        assert ((frame[:, column, 0] > frame[:, column, 2]) == red).all()


def test_frames_of_a_longer_submission_do_not_stay(tmp_path):
    target = submit(tmp_path, 3, 32, 32)
    (target / "notes.jpg").write_text("")
    for place in tmp_path.glob("0?/frames/002.png"):
        place.unlink()
    submit(tmp_path, 2, 32, 32)
    assert sorted(path.name for path in target.iterdir()) == ["00000.jpg", "00001.jpg", "notes.jpg"]
