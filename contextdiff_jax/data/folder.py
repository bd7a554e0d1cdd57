"""A folder of image files with a metadata.jsonl (the Hugging Face `imagefolder` convention)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from contextdiff_jax.data import decode
from contextdiff_jax.data.boxes import Boxes, boxes_of_sample, in_square, names_of
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import (
    DamagedSample,
    DataError,
    Example,
    SkipReport,
    sample_at_fault,
)
from contextdiff_jax.data.json_object import parse_object
from contextdiff_jax.data.listed_files import NotReadable, read_listed, resolved
from contextdiff_jax.data.segmentation import MASK_MISSING, MASK_UNUSABLE, NAME, read_mask
from contextdiff_jax.system import buckets
from contextdiff_jax.system.printable import printable

METADATA = "metadata.jsonl"
BAD_LINE = "line is no JSON object"
NO_FILE_NAME = "no file_name in its row"
_NAME_SHOWN = 80  # characters


@dataclasses.dataclass(frozen=True)
class _Row:
    """A usable row: its line, and what it says. boxes: of the whole picture. mask: its file."""

    number: int
    name: str
    captions: tuple[str, ...]
    notes: tuple[str, ...]
    boxes: Boxes | None
    mask: str


def _read_row(number: int, name: str, row: Mapping[str, Any], config: DataConfig) -> _Row:
    """Returns what a row says. Raises DamagedSample."""
    boxes = None
    if config.boxes_field:
        boxes = boxes_of_sample(row.get(config.boxes_field), name)
    values = decode.caption_values(row, config.caption_fields)
    if boxes and not any(values):
        values = [names_of(boxes)]
    mask = row.get(config.mask_field) if config.mask_field else ""
    if not isinstance(mask, str) or (config.mask_field and not mask.strip()):
        raise DamagedSample(name, MASK_MISSING)
    return _Row(number, name, *decode.decode_captions(values, name), boxes, mask)


class FolderSource:
    """One sample per row of metadata.jsonl: `file_name`, captions in a column, boxes in another.

    Rows of another split (column `split`) are not samples. Rows without file name or caption, or
    with boxes that are not usable, are counted in `report`, by their key or line. A file name is
    relative to the folder and stays inside it (no ".."); links are followed while they do, so copy
    a folder of links to elsewhere, such as a snapshot in the Hugging Face cache, with `cp -rL`. A
    name of anything but a regular file inside is a damaged sample. Raises DataError if there is no
    metadata.jsonl, or it is no such file, the split has no rows, or no usable row is left.

    columns: further columns; `values` has what they hold, a tuple for each sample.
    """

    def __init__(self, config: DataConfig, report: SkipReport, columns: Sequence[str] = ()):
        self._config = config
        self.values: list[tuple[Any, ...]] = []
        with buckets.explained(config.path, "be read"):
            self._folder = _find(epath.Path(config.path), config.split)
            self._root = resolved(self._folder)
        self.name = f"folder {self._folder}"
        self._rows: list[_Row] = []
        for number, row in self._rows_of_split(report):
            name = row.get("file_name")
            if not isinstance(name, str) or not name.strip():
                report.skip(NO_FILE_NAME, f"line {number}")
                continue
            try:
                with sample_at_fault(name):
                    self._rows.append(_read_row(number, name, row, config))
                    self.values.append(tuple(row.get(column) for column in columns))
            except DamagedSample as damaged:
                report.skip(damaged.reason, name)
        if not self._rows:
            raise DataError(f"no usable sample in {self.name}: {'; '.join(report.summary())}")
        values = config.resolution**2 * (4 if config.mask_field else 3)
        self._keeps = len(self._rows) * values <= config.keep_mib << 20
        self._kept: dict[int, tuple[Example, tuple[int, int]]] = {}

    def _rows_of_split(self, report: SkipReport) -> list[tuple[int, dict[str, Any]]]:
        """Returns the rows of the split, each with the number of its line."""
        rows = []
        file = self._folder / METADATA
        with buckets.explained(file, "be read"):
            lines = self._metadata().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = parse_object(line)
            if row is None:
                report.damaged_file(BAD_LINE, f"{METADATA} line {number}")
            else:
                rows.append((number, row))
        splits = sorted({str(row["split"]) for _, row in rows if "split" in row})
        split = self._config.split
        if not splits:
            own = self._folder != epath.Path(self._config.path)
            if not own and split != DataConfig.split:
                raise DataError(
                    f"split {split!r}: {self.name} has no such subfolder and no column "
                    f"'split'; must be {DataConfig.split!r}, the whole folder"
                )
            return rows
        if split not in splits:
            raise DataError(
                f"split {split!r} has no rows in {self.name}: must be one of "
                f"{printable(', '.join(splits))}"
            )
        return [(number, row) for number, row in rows if row.get("split") == split]

    def _metadata(self) -> bytes:
        try:
            return read_listed(self._root, METADATA)
        except NotReadable as error:
            raise DataError(
                f"{self._folder / METADATA}: {error.reason}; must be a regular file in its folder"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self.with_size(index)[0]

    def with_size(self, index: int) -> tuple[Example, tuple[int, int]]:
        """Returns a sample, and width and height of its whole picture; raises DamagedSample.

        The arrays of a sample that is kept (DataConfig.keep_mib) cannot be written to.
        """
        if index in self._kept:
            return self._kept[index]
        found = self._decoded(self._rows[index])
        if self._keeps:
            example, _ = self._kept[index] = found
            for array in (example.image, *example.maps.values()):
                array.setflags(write=False)
        return found

    def _decoded(self, row: _Row) -> tuple[Example, tuple[int, int]]:
        data = self._read(row, row.name, decode.IMAGE_UNUSABLE)
        with sample_at_fault(row.name):
            picture, notes = decode.decode_sample(data, row.name, self._config)
            size = decode.upright_size(data)
        example = Example(picture, row.captions, row.name, notes + row.notes)
        return self._laid_out(example, row, size), size

    def _laid_out(self, example: Example, row: _Row, size: tuple[int, int]) -> Example:
        """Returns the example with its boxes and its segmentation map, where the row has some."""
        config, maps, boxes = self._config, {}, None
        mask = self._read(row, row.mask, MASK_UNUSABLE) if row.mask else b""
        with sample_at_fault(row.name):
            if row.boxes is not None:
                boxes = in_square(row.boxes, *size, config.resize_mode)
            if row.mask:
                square = read_mask(mask, row.name, size, config.resolution, config.resize_mode)
                maps = {NAME: square}
        return dataclasses.replace(example, boxes=boxes, maps=maps)

    def _read(self, row: _Row, file: str, unusable: str) -> bytes:
        """Returns the bytes of a file of a row. Raises DamagedSample, `unusable` and why."""
        try:
            with buckets.explained(f"{self._root}/{file}", "be read"):
                return read_listed(self._root, file, decode.most_bytes(self._config.max_pixels))
        except NotReadable as error:
            key = f"{row.name[:_NAME_SHOWN]} (line {row.number})"
            raise DamagedSample(key, f"{unusable}: {error.reason}") from error

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone."""
        return self._rows[index].captions


def _find(folder: epath.Path, split: str) -> epath.Path:
    """Returns the folder that has the metadata: the split's own, or the one given."""
    for candidate in (folder / split, folder):
        if (candidate / METADATA).exists():
            return candidate
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist")
    raise DataError(f"no {METADATA} in {folder} or {folder / split}")
