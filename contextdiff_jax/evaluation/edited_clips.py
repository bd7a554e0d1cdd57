"""Edited clips that are to be measured: what `edit` wrote, or a submission to LOVEU-TGVE-2023."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from contextdiff_jax.arguments import existing_folder
from contextdiff_jax.data.clips import MOST_FRAMES, count_frames, read_frames
from contextdiff_jax.data.tgve import KINDS, TgveVideo
from contextdiff_jax.data.video_files import VIDEO_SUFFIXES
from contextdiff_jax.generation.video_editing import EDIT_FILE
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.scalars import shown

SOURCE = "source"
_MANIFEST = "manifest.json"  # what a call of `edit` begins with, see runs/manifest.py


@dataclasses.dataclass(frozen=True)
class EditedClip:
    """An edit of a clip. label: of who made it. clip: the source's name. kind: of edit, or "".

    frames, source: folders of the edit's frames, and of the clip's.
    """

    label: str
    clip: str
    kind: str
    source_prompt: str
    prompt: str
    frames: pathlib.Path
    source: pathlib.Path

    @property
    def asked(self) -> tuple[str, str, str, str]:
        """What was to be done: equal for those that made the same edit."""
        return self.clip, self.kind, self.source_prompt, self.prompt

    def as_source(self) -> "EditedClip":
        """Returns the clip itself, measured as if it were the edit."""
        return dataclasses.replace(self, label=SOURCE, frames=self.source)


def find_edits(label: str, folder: str, videos: Sequence[TgveVideo]) -> list[EditedClip]:
    """Returns the edits of a folder; videos: of the benchmark, where it is a submission to that.

    Raises ValueError where there are none, or one that is there is damaged.
    """
    if label == SOURCE:
        raise ValueError(f"--edits={label}={folder}: the label must not be {SOURCE!r}")
    if pathlib.PurePath(label).parts != (label,) or label == "..":
        raise ValueError(f"--edits={label}={folder}: the label must be the name of a folder")
    existing_folder(folder, "edits")
    root = pathlib.Path(folder)
    found = _submitted(label, root, videos) if videos else _written(label, root)
    if not found:
        holds = "<group>/<video>/<edit>/00000.jpg" if videos else f"NN/{EDIT_FILE} of `edit`"
        raise ValueError(f"--edits={label}={folder}: holds no edits: must have {holds}")
    there: dict[tuple[str, ...], EditedClip] = {}
    for each in found:
        other = there.setdefault(each.asked, each)
        if other is not each:
            raise ValueError(
                f"--edits={label}={folder}: {str(other.frames)!r} and {str(each.frames)!r} are of "
                "the same clip and prompt: a label may have one, give them two labels"
            )
        own, source = count_frames(each.frames), count_frames(each.source)
        if source > MOST_FRAMES:
            raise ValueError(
                f"{str(each.source)!r} has {source} frames: must be at most {MOST_FRAMES}"
            )
        if own < 2 or own > source:
            raise ValueError(
                f"{str(each.frames)!r} has {own} frames: must be 2 to {source}, as its source has"
            )
    return found


def _submitted(label: str, root: pathlib.Path, videos: Sequence[TgveVideo]) -> list[EditedClip]:
    return [
        EditedClip(label, video.name, kind, video.caption, video.prompts[kind], place, video.frames)
        for video in videos
        for kind in KINDS
        if (place := video.edit(root, kind)).is_dir()
    ]


def _written(label: str, root: pathlib.Path) -> list[EditedClip]:
    """Returns the edits of one call of `edit`, or of the calls whose outputs lie in the folder."""
    calls = [root] if (root / _MANIFEST).is_file() else sorted(root.glob(f"*/{_MANIFEST}"))
    calls = [each if each == root else each.parent for each in calls]
    found = []
    for call in calls:
        for record in sorted(call.glob(f"*/{EDIT_FILE}")):
            clip, source, prompt = _read_record(record)
            frames = record.parent / "frames"
            found.append(
                EditedClip(label, clip, "", source, prompt, frames, call / "source" / "frames")
            )
    return found


def _read_record(path: pathlib.Path) -> tuple[str, str, str]:
    """Returns the clip's name, its prompt and the edit's."""
    record = read_object(path)
    for key in ("clip", "source_prompt", "prompt"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"{str(path)!r}: {key} = {shown(record.get(key))}: must be a text")
    clip = pathlib.PurePath(record["clip"])
    name = clip.stem if clip.suffix.lower() in VIDEO_SUFFIXES else clip.name
    if name in ("", ".."):
        raise ValueError(f"{str(path)!r}: clip = {shown(record['clip'])}: must be a clip's path")
    return name, record["source_prompt"], record["prompt"]


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of an edit and of its source, uint8 (F, H, W, 3), at the edit's size.

    source: None where the edit has fewer frames, which are then not known to be the same.
    """

    edited: np.ndarray
    source: np.ndarray | None
    fps: float

    @property
    def digest(self) -> str:
        """What tells the edited frames from others."""
        return hashlib.sha256(np.ascontiguousarray(self.edited)).hexdigest()[:16]


def read_edit(edit: EditedClip) -> Frames:
    """Returns the frames of an edit. Raises ClipError where one is damaged."""
    edited = read_frames(edit.frames)
    source = read_frames(edit.source, edited.frames.shape[1:3])
    same = len(source.frames) == len(edited.frames)
    return Frames(edited.frames, source.frames if same else None, source.fps)


def check_masks(masks: str, edits: Sequence[EditedClip]) -> None:
    """Raises ValueError where a folder has masks for none of the clips, or not one a frame."""
    if not masks:
        return
    there = [edit for edit in edits if _masks_of(masks, edit).is_dir()]
    if not there:
        names = ", ".join(dict.fromkeys(edit.clip for edit in edits))
        raise ValueError(f"--masks={masks}: has no folder of a clip: must have some of {names}")
    for edit in there:
        found, frames = count_frames(_masks_of(masks, edit)), count_frames(edit.frames)
        if found != frames:
            raise ValueError(
                f"{str(_masks_of(masks, edit))!r} has {found} masks: must be {frames}, one for "
                f"each frame of {str(edit.frames)!r}"
            )


def read_mask(masks: str, edit: EditedClip, frames: np.ndarray) -> np.ndarray | None:
    """Returns where an edit may change, bool (F, H, W), of MASKS/CLIP; None where that is missing.

    masks: "" or a folder that was checked.
    """
    if not masks or not _masks_of(masks, edit).is_dir():
        return None
    return read_frames(_masks_of(masks, edit), frames.shape[1:3]).frames.max(-1) > 127


def _masks_of(masks: str, edit: EditedClip) -> pathlib.Path:
    return pathlib.Path(masks) / edit.clip


def same_edits(edits: Sequence[EditedClip]) -> Mapping[tuple, list[EditedClip]]:
    """Returns the edits by what was asked, the source first among them."""
    grouped: dict[tuple, list[EditedClip]] = {}
    for edit in edits:
        grouped.setdefault(edit.asked, [edit.as_source()]).append(edit)
    return grouped
