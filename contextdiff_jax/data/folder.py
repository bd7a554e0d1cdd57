"""A folder of image files with a metadata.jsonl (the Hugging Face `imagefolder` convention)."""

import json
from typing import Any

from etils import epath

from contextdiff_jax import buckets
from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError, Example, SkipReport

METADATA = "metadata.jsonl"
BAD_LINE = "line is no JSON object"
NO_FILE_NAME = "no file_name in its row"


class FolderSource:
    """One sample per row of metadata.jsonl: `file_name`, and captions in a column.

    Rows of another split (column `split`) are not samples. Rows without file name or caption
    are counted in `report`, by their key or line. Raises DataError if there is no metadata.jsonl,
    the split has no rows, or no usable row is left.
    """

    def __init__(self, config: DataConfig, report: SkipReport):
        self._config = config
        with buckets.named(config.path, "be read"):
            self._folder = _find(epath.Path(config.path), config.split)
        self.name = f"folder {self._folder}"
        self._rows: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for number, row in self._rows_of_split(report):
            name = row.get("file_name")
            if not isinstance(name, str) or not name.strip():
                report.skip(NO_FILE_NAME, f"line {number}")
                continue
            try:
                values = decode.caption_values(row, config.caption_fields)
                self._rows.append((name, *decode.decode_captions(values, name)))
            except DamagedSample as damaged:
                report.skip(damaged.reason, name)
        if not self._rows:
            raise DataError(f"no usable sample in {self.name}: {'; '.join(report.summary())}")

    def _rows_of_split(self, report: SkipReport) -> list[tuple[int, dict[str, Any]]]:
        """Returns the rows of the split, each with the number of its line."""
        rows = []
        file = self._folder / METADATA
        with buckets.named(file, "be read"):
            lines = file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                report.damaged_file(BAD_LINE, f"{METADATA} line {number}")
        splits = sorted({str(row["split"]) for _, row in rows if "split" in row})
        split = self._config.split
        if not splits:
            own = self._folder != epath.Path(self._config.path)
            if not own and split != DataConfig.split:
                raise DataError(
                    f"split {split!r}: {self.name} has no such subfolder, and its rows no column "
                    f"'split'; must be {DataConfig.split!r}, which is all of it"
                )
            return rows
        if split not in splits:
            raise DataError(
                f"split {split!r} has no rows in {self.name}: must be one of {', '.join(splits)}"
            )
        return [(number, row) for number, row in rows if row.get("split") == split]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        config = self._config
        name, captions, repaired = self._rows[index]
        with buckets.named(self._folder / name, "be read"):
            data = self._bytes(name)
        picture, notes = decode.decode_image(
            data, name, config.resolution, config.resize_mode, config.min_side
        )
        return Example(picture, captions, name, notes + repaired)

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError as error:
            raise DamagedSample(name, decode.IMAGE_MISSING) from error

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone."""
        return self._rows[index][1]


def _find(folder: epath.Path, split: str) -> epath.Path:
    """Returns the folder that has the metadata: the split's own, or the one given."""
    for candidate in (folder / split, folder):
        if (candidate / METADATA).exists():
            return candidate
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist")
    raise DataError(f"no {METADATA} in {folder} or {folder / split}")
