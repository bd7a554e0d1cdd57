"""Index of one img2dataset tar shard: where each usable sample's image and caption lie.

A sample is a run of members with the same key, the name up to its first dot (the WebDataset
convention). The index holds four numbers per sample in the narrowest integers that fit the
shard, 10 bytes together at LAION's sizes (4 GB for 400 M samples); keys are read from the tar when
they are needed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from contextdiff_jax.data import decode, tar_index
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.json_object import parse_object
from contextdiff_jax.data.tar_index import BLOCK, Member, Window, own_name, own_size

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
DUPLICATE = "duplicate key in its shard"
CUT_OFF = "cut off by the end of a damaged shard"
ORIGINAL_SMALL = "original image smaller than min_original_side"
ORIGINAL_UNKNOWN = "original image size not in its json"
NO_SAMPLES = "no samples in it"
IMAGE_LARGE = "no usable image: file larger than 512 MiB"
CAPTION_LARGE = "no usable caption: file larger than 4 MiB"
MOST_BYTES = {IMAGE_LARGE: 1 << 29, CAPTION_LARGE: 1 << 22}


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """What decides which samples an index lists.

    text_type: extension of the member that holds the caption, "txt" or "json".
    min_original_side: 0, or the smallest original_width and original_height in the json.
    """

    text_type: str = "txt"
    min_original_side: int = 0


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Usable samples of one shard, and the report on the others.

    image_block: offset of the image data in blocks of 512 bytes. text_gap: blocks from there to
    the caption's data (negative if it comes first). image_size, text_size: bytes.
    """

    image_block: np.ndarray
    image_size: np.ndarray
    text_gap: np.ndarray
    text_size: np.ndarray
    report: SkipReport

    def __len__(self) -> int:
        return len(self.image_block)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)


ARRAYS = ("image_block", "image_size", "text_gap", "text_size")


def without_samples(reason: str, shard: str) -> ShardIndex:
    """Returns the index of a damaged shard of which nothing is used."""
    report = SkipReport()
    report.damaged_file(reason, shard)
    return _index([], report)


def _index(rows: Sequence[tuple[int, int, int, int]], report: SkipReport) -> ShardIndex:
    """rows: block and size of the image, then of the caption."""
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    arrays = (columns[0], columns[1], columns[2] - columns[0], columns[3])
    return ShardIndex(*(_narrow(array) for array in arrays), report)


def scan_shard(window: Window, shard: str, options: IndexOptions) -> ShardIndex:
    """Reads the headers of a shard; samples without a usable part are counted by reason."""
    report = SkipReport()
    listing = tar_index.list_members(window)
    if listing.damage:
        report.damaged_file(listing.damage, shard)
    elif not listing.members:
        report.damaged_file(NO_SAMPLES, shard)
    samples = group_by_key(listing.members)
    cut_key = split_name(samples[-1][1][0].name)[0] if samples and listing.damage else None
    for key in {split_name(name)[0] for name in listing.partial} - {cut_key}:
        report.skip(CUT_OFF, f"{shard}/{key}")
    rows, seen = [], set()
    for key, members in samples:
        parts = {split_name(member.name)[1]: member for member in members}
        image = next((parts[kind] for kind in IMAGE_TYPES if kind in parts), None)
        text = parts.get(options.text_type)
        reason = DUPLICATE if key in seen else _problem(image, text)
        if reason in (decode.IMAGE_MISSING, decode.CAPTION_MISSING) and key == cut_key:
            reason = CUT_OFF
        if reason is None and options.min_original_side:
            reason = _too_small(window, parts.get("json"), options.min_original_side)
        seen.add(key)
        if reason is None:
            rows.append((image.offset // BLOCK, image.size, text.offset // BLOCK, text.size))
        else:
            report.skip(reason, f"{shard}/{key}")
    return _index(rows, report)


def split_name(name: str) -> tuple[str, str]:
    """Returns key and extension: "a/b.c.jpg" is ("a/b", "c.jpg")."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def fits(image_header: bytes, text_header: bytes, image_size: int, text_size: int) -> bool:
    """Whether two headers are of one sample's members with these sizes."""
    return (
        own_size(image_header) == image_size
        and own_size(text_header) == text_size
        and split_name(own_name(image_header))[0] == split_name(own_name(text_header))[0]
    )


def group_by_key(members: Sequence[Member]) -> list[tuple[str, list[Member]]]:
    """Groups neighbours of one key; an extension that comes again begins another sample."""
    groups: list[tuple[str, list[Member]]] = []
    extensions: set[str] = set()
    for member in members:
        key, extension = split_name(member.name)
        if not groups or groups[-1][0] != key or extension in extensions:
            groups.append((key, []))
            extensions = set()
        groups[-1][1].append(member)
        extensions.add(extension)
    return groups


def _problem(image: Member | None, text: Member | None) -> str | None:
    if image is None:
        return decode.IMAGE_MISSING
    if image.size == 0:
        return decode.IMAGE_EMPTY
    if image.size > MOST_BYTES[IMAGE_LARGE]:
        return IMAGE_LARGE
    if text is None:
        return decode.CAPTION_MISSING
    if text.size > MOST_BYTES[CAPTION_LARGE]:
        return CAPTION_LARGE
    return decode.CAPTION_BLANK if text.size == 0 else None


def _too_small(window: Window, member: Member | None, least: int) -> str | None:
    if member is None or member.size > MOST_BYTES[CAPTION_LARGE]:
        return ORIGINAL_UNKNOWN
    row = parse_object(window.read(member.offset, member.size))
    if row is None:
        return ORIGINAL_UNKNOWN
    try:
        sides = (int(row["original_width"]), int(row["original_height"]))
    except (ValueError, KeyError, TypeError, OverflowError):  # OverflowError: 1e999
        return ORIGINAL_UNKNOWN
    return ORIGINAL_SMALL if min(sides) < least else None


def _narrow(values: np.ndarray) -> np.ndarray:
    if not values.size:
        return values.astype(np.uint8)
    low, high = np.min_scalar_type(values.min()), np.min_scalar_type(values.max())
    return values.astype(np.result_type(low, high))
