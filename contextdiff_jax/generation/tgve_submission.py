"""Edits in the layout that LOVEU-TGVE-2023 is submitted in, see data/tgve.py."""

import pathlib
from collections.abc import Sequence

from etils import epath
from PIL import Image

from contextdiff_jax.data.clips import fit, read_frames
from contextdiff_jax.data.tgve import KINDS, TgveVideo
from contextdiff_jax.system.atomic_write import written_whole

_QUALITY = 95  # of JPEG


def write_submission(
    submission: str, video: TgveVideo, places: Sequence[epath.Path], size: tuple[int, int]
) -> None:
    """Writes a video's four edits, of the folders that `edit_clip` wrote, as JPEG files.

    size: height and width of the benchmark's own frames.
    """
    for kind, place in zip(KINDS, places, strict=True):
        target = epath.Path(video.edit(pathlib.Path(submission), kind))
        target.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(read_frames(pathlib.Path(place) / "frames").frames):
            with written_whole(target / f"{number:05d}.jpg") as unfinished:
                Image.fromarray(fit(pixels, *size)).save(unfinished, "JPEG", quality=_QUALITY)
