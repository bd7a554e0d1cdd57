"""LOVEU-TGVE-2023, the benchmark of text-guided video editing: its videos, prompts and folders.

DATASET/LOVEU-TGVE_2023_data.csv                the spreadsheet of prompts, saved as CSV
DATASET/DAVIS_480p/480p_frames/stunt/00000.jpg  a video; likewise youtube_480p and videvo_480p
SUBMISSION/DAVIS_480p/stunt/style/00000.jpg     an edit of it
"""

import csv
import dataclasses
import io
import pathlib
import re
from collections.abc import Mapping

from contextdiff_jax.system.json_files import read_regular
from contextdiff_jax.system.printable import printable
from contextdiff_jax.system.suggestions import nearest

GROUPS = ("DAVIS_480p", "youtube_480p", "videvo_480p")
KINDS = ("style", "object", "background", "multiple")
_TABLE = "LOVEU-TGVE_2023_data"
_FRAMES = "480p_frames"
_NAME, _CAPTION = "Video name", "Our GT caption"
_MOST_BYTES = 2**24
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class TgveVideo:
    """A video of the benchmark. group: its folder. caption: of the source.

    prompts: of its edits, by kind. frames: the folder of the source's frames.
    """

    group: str
    name: str
    caption: str
    prompts: Mapping[str, str]
    frames: pathlib.Path

    def edit(self, submission: pathlib.Path, kind: str) -> pathlib.Path:
        """Returns where a submission has the frames of an edit."""
        return submission / self.group / self.name / kind


def read_tgve(folder: str) -> tuple[TgveVideo, ...]:
    """Returns the videos of the dataset in the order of its table.

    Raises ValueError, naming the file, where the table is missing or no such table, or a video of
    it is in none of the groups.
    """
    root = pathlib.Path(folder)
    table = root / f"{_TABLE}.csv"
    if not table.is_file():
        raise ValueError(
            f"--tgve={folder}: has no {table.name}: save {_TABLE}.xlsx, which the dataset has, as "
            "CSV (UTF-8) beside it"
        )
    videos = [_video(root, table, number, row) for number, row in _rows(table)]
    if not videos:
        raise ValueError(f"{str(table)!r} names no video")
    return tuple(videos)


def named_video(videos: tuple[TgveVideo, ...], name: str) -> TgveVideo:
    """Returns the video of a name. Raises ValueError where there is none."""
    for video in videos:
        if name in (video.name, f"{video.group}/{video.name}"):
            return video
    names = [video.name for video in videos]
    raise ValueError(
        f"--clip={name}: with --tgve, must be one of its {len(names)} videos{nearest(name, names)}"
    )


def _rows(table: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows that name a video, with their numbers; the others head a group."""
    try:
        text = read_regular(table, _MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = [name for name in reader.fieldnames or () if name]
        rows = list(enumerate(reader, 2))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{str(table)!r} is no table: {error}") from error
    wanted = [_NAME, _CAPTION, *(_column(kind, columns) for kind in KINDS)]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{str(table)!r}: has no column {missing[0]!r}: has {printable(', '.join(columns))}"
        )
    named = ((number, {key: (row[key] or "").strip() for key in wanted}) for number, row in rows)
    return [(number, row) for number, row in named if row[_NAME] and any(list(row.values())[1:])]


def _column(kind: str, columns: list[str]) -> str:
    """Returns the column of a kind's prompts: its first word is the kind."""
    found = [name for name in columns if name.lower().startswith(f"{kind} ")]
    return found[0] if found else f"{kind.capitalize()} Change Caption"


def _video(root: pathlib.Path, table: pathlib.Path, number: int, row: dict[str, str]) -> TgveVideo:
    name, caption, *prompts = row.values()
    where = f"{str(table)!r}, row {number}"
    if not _PLAIN.fullmatch(name):
        raise ValueError(f"{where}: {printable(name)!r} is no name of a folder")
    for column, text in list(row.items())[1:]:
        if not text:
            raise ValueError(f"{where}: {name} has no {column!r}")
    for group in GROUPS:
        frames = root / group / _FRAMES / name
        if frames.is_dir():
            return TgveVideo(group, name, caption, dict(zip(KINDS, prompts, strict=True)), frames)
    raise ValueError(f"{where}: {name} is not in {_FRAMES}/ of {', '.join(GROUPS)}")
