"""img2dataset tar shards, read in place: random access through an (offset, size) index.

Tar members are stored, not compressed, so a sample is one range of bytes. Nothing is unpacked,
and the shards may lie on any storage that etils.epath opens (a local disk, gs://, s3://).
"""

import bisect
import collections
import itertools
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent import futures

from absl import logging
from etils import epath
from tqdm import tqdm

from contextdiff_jax import buckets
from contextdiff_jax.atomic_write import in_bucket
from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError, Example, SkipReport
from contextdiff_jax.data.shard_index import IndexOptions, ShardIndex, index_shard, split_name
from contextdiff_jax.data.tar_index import BLOCK, member_name

CAPTION_JSON = "no usable caption: json unreadable"
SHARD_MISSING = "missing"
_INDEX_FOLDER = ".contextdiff_index"
_OPEN_FILES = 256
_SCANNERS = 16  # threads; scanning waits for storage more than for Python
_MOST_SHARDS = 10**6
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardSource:
    """Samples of many tar shards, in the order of the shards' names and then of their members.

    Raises DataError if `config.path` names no shard or no usable sample is left. What the index
    leaves out is counted in `report`, damaged shards by name. The same key in two shards is two
    samples.
    """

    def __init__(self, config: DataConfig, report: SkipReport):
        self.name = f"shards {config.path}"
        self._config = config
        with buckets.named(config.path, "be read"):
            self._paths = find_shards(config.path, report)
        options = IndexOptions(
            text_type="json" if config.caption_fields else "txt",
            min_original_side=config.min_original_side,
        )
        self._shards = index_shards(self._paths, options, _cache(config, self._paths[0].parent))
        for shard in self._shards:
            report.merge(shard.report)
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))
        if not len(self):
            raise DataError(f"no usable sample in {self.name}: {'; '.join(report.summary())}")
        self._files = _OpenFiles()
        # Made once: from path objects they would cost as much as the read itself.
        self._files_and_stems = [(os.fspath(path), path.stem) for path in self._paths]

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def index_bytes(self) -> int:
        """Memory the index takes."""
        return sum(shard.nbytes for shard in self._shards)

    def __getitem__(self, index: int) -> Example:
        config = self._config
        key, image, text = self._read(index)
        captions, repaired = self._captions(text, key)
        picture, notes = decode.decode_image(
            image, key, config.resolution, config.resize_mode, config.min_side
        )
        return Example(picture, captions, key, notes + repaired)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, or raises DamagedSample."""
        key, _, text = self._read(index)
        return self._captions(text, key)[0]

    def _captions(self, text: bytes, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        fields = self._config.caption_fields
        if not fields:
            return decode.decode_captions(text, key)
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DamagedSample(key, CAPTION_JSON) from error
        if not isinstance(row, dict):
            raise DamagedSample(key, CAPTION_JSON)
        return decode.decode_captions(decode.caption_values(row, fields), key)

    def _read(self, index: int) -> tuple[str, bytes, bytes]:
        """Returns key, image bytes and caption bytes, read as one range: they are neighbours."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        row = index - self._ends[number] + len(shard)
        block, image_size = int(shard.image_block[row]), int(shard.image_size[row])
        image_at = block * BLOCK
        text_at = (block + int(shard.text_gap[row])) * BLOCK
        text_end = text_at + int(shard.text_size[row])
        start = min(image_at - BLOCK, text_at)  # the header before the image has the key
        end = max(image_at + image_size, text_end)
        file, stem = self._files_and_stems[number]
        data = self._files.read(file, start, end - start)
        header = data[image_at - BLOCK - start : image_at - start]
        key = f"{stem}/{split_name(member_name(header))[0]}"
        image = data[image_at - start : image_at - start + image_size]
        return key, image, data[text_at - start : text_end - start]


def find_shards(pattern: str, report: SkipReport) -> list[epath.Path]:
    """Returns the tar files of a folder, a wildcard or a {00000..00127} range, sorted.

    Files of a range that are not there are counted in `report`; none at all is a DataError.
    """
    span = _RANGE.search(pattern)
    if span:
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if last - first >= _MOST_SHARDS:
            raise DataError(f"{span[0]} in {pattern!r}: must be at most {_MOST_SHARDS} shards")
        names = [
            epath.Path(pattern[: span.start()] + f"{number:0{width}d}" + pattern[span.end() :])
            for number in range(first, last + 1)
        ]
        paths = _present(names, report)
    elif wildcard := re.search(r"[^/]*[*?]", pattern):
        folder = pattern[: wildcard.start()] or "."
        paths = sorted(epath.Path(folder).glob(pattern[wildcard.start() :]))
    elif pattern.endswith(".tar"):
        paths = [epath.Path(pattern)] if epath.Path(pattern).exists() else []
    else:
        paths = sorted(epath.Path(pattern).glob("*.tar"))
    if not paths:
        raise DataError(f"no tar shard at {pattern!r}: must be a folder, *.tar or {{0..9}}.tar")
    return paths


def _present(names: Sequence[epath.Path], report: SkipReport) -> list[epath.Path]:
    with futures.ThreadPoolExecutor(_SCANNERS) as pool:
        there = list(pool.map(lambda path: path.exists(), names))
    for path, exists in zip(names, there, strict=True):
        if not exists:
            report.damaged_file(SHARD_MISSING, path.stem)
    return [path for path, exists in zip(names, there, strict=True) if exists]


def index_shards(
    paths: Sequence[epath.Path], options: IndexOptions, cache: epath.Path | None
) -> list[ShardIndex]:
    """Returns the shards' indices, in order; a progress bar shows on a terminal.

    A shard that cannot be reached is a DataError, not a damaged shard: leaving it out would give
    this process other samples than those that can reach it.
    """

    def index(path: epath.Path) -> ShardIndex:
        try:
            with buckets.named(path, "be read"):
                return index_shard(path, options, cache)
        except buckets.Unavailable:
            raise
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error}") from error

    with futures.ThreadPoolExecutor(_SCANNERS) as pool:
        indices = pool.map(index, paths)
        return list(tqdm(indices, "indexing shards", len(paths), disable=None, unit="shard"))


def _cache(config: DataConfig, folder: epath.Path) -> epath.Path | None:
    """Returns where indices are kept: config.cache_dir, or beside the shards if they may."""
    if config.cache_dir:
        cache = epath.Path(config.cache_dir)
        with buckets.named(cache, "be written to (data.cache_dir)"):
            cache.mkdir(parents=True, exist_ok=True)
        return cache
    cache = folder / _INDEX_FOLDER
    try:
        # A folder closed to its owner is meant to stay as it is, even where root could write.
        if not in_bucket(folder) and not os.stat(folder).st_mode & 0o222:
            raise PermissionError(f"{folder} is read-only")
        with buckets.named(cache, "be written to"):
            cache.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a bucket that may only be read
        logging.warning("the shard index is not kept (%s); set data.cache_dir to keep it", error)
        return None
    return cache


class _OpenFiles:
    """Reads ranges of files. Local ones stay open, the least recently used are dropped first."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, _Descriptor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return _OpenFiles, ()  # another process opens its own

    def read(self, path: str, offset: int, size: int) -> bytes:
        if in_bucket(path):
            with buckets.named(path, "be read"), epath.Path(path).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        else:
            # pread has no position to share, so threads may use one descriptor together.
            file = self._open(path)
            data = os.pread(file.number, size, offset)
        if len(data) != size:
            raise DataError(f"{path} is shorter than its index says: it changed while in use")
        return data

    def _open(self, path: str) -> "_Descriptor":
        with self._lock:
            file = self._files.pop(path, None) or _Descriptor(path)
            self._files[path] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file


class _Descriptor:
    """An open file that closes when its last user drops it, so never under a reader."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)
