"""Edits in the layout that LOVEU-TGVE-2023 is submitted in, see data/tgve.py."""

import pathlib
import re
from collections.abc import Sequence

from etils import epath
from PIL import Image

from contextdiff_jax.data.clips import fit, read_frames
from contextdiff_jax.data.tgve import KINDS, TgveVideo
from contextdiff_jax.system.atomic_write import cleared, written_whole

_QUALITY = 95  # of JPEG
_FRAME = re.compile(r"\d{5,}\.jpg")


def write_submission(
    submission: str, video: TgveVideo, places: Sequence[epath.Path], size: tuple[int, int]
) -> None:
    """Writes a video's four edits, of the folders that `edit_clip` wrote, as JPEG files.

    size: height and width of the benchmark's own frames. Whole edits are as large as fit into it,
    so those of its middle stay that. Frames of an earlier submission that are beyond an edit's end
    are removed.
    """
    for kind, place in zip(KINDS, places, strict=True):
        target = cleared(video.edit(pathlib.Path(submission), kind))
        frames = read_frames(pathlib.Path(place) / "frames").frames
        height, width = _within(size, frames.shape[1:3])
        for number, pixels in enumerate(frames):
            with written_whole(target / f"{number:05d}.jpg") as unfinished:
                Image.fromarray(fit(pixels, height, width)).save(
                    unfinished, "JPEG", quality=_QUALITY
                )
        for path in target.iterdir():
            if _FRAME.fullmatch(path.name) and int(path.stem) >= len(frames):
                path.unlink()


def _within(size: tuple[int, int], own: tuple[int, ...]) -> tuple[int, int]:
    """Returns the largest height and width that fit into a size and have the proportions of own."""
    scale = min(size[0] / own[0], size[1] / own[1])
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))
