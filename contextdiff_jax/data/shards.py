"""img2dataset tar shards, read in place: random access through an (offset, size) index.

Tar members are stored, not compressed, so a sample is one range of bytes. Nothing is unpacked,
and the shards may lie on any storage that etils.epath opens (a local disk, gs://, s3://).
"""

import bisect
import collections
import itertools
import os
import re
import threading
from collections.abc import Sequence
from concurrent import futures

import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import (
    DamagedSample,
    DataError,
    Example,
    SkipReport,
    sample_at_fault,
)
from contextdiff_jax.data.index_cache import index_shard
from contextdiff_jax.data.json_object import parse_object
from contextdiff_jax.data.shard_index import ARRAYS, IndexOptions, ShardIndex, fits, split_name
from contextdiff_jax.data.tar_index import BLOCK, own_name
from contextdiff_jax.system import buckets
from contextdiff_jax.system.buckets import in_bucket
from contextdiff_jax.system.printable import printable

CAPTION_JSON = "no usable caption: json unreadable"
SHARD_MISSING = "missing"
_INDEX_FOLDER = ".contextdiff_index"
_OPEN_FILES = 256
_SCANNERS = 16  # threads; scanning waits for storage more than for Python
_NEAR = 1 << 20  # bytes between image and caption that cost less to read than a second reading
_RENEWING = threading.Lock()
_MOST_SHARDS = 10**6
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardSource:
    """Samples of many tar shards, in the order of the shards' names and then of their members.

    Raises DataError if `config.path` names no shard or no usable sample is left. What the index
    leaves out is counted in `report`, damaged shards by name: among it images of more than 512 MiB
    and captions of more than 4 MiB. The same key in two shards is two samples.
    """

    def __init__(self, config: DataConfig, report: SkipReport):
        self.name = f"shards {config.path}"
        self._config = config
        with buckets.explained(config.path, "be read"):
            self._paths = find_shards(config.path, report)
        self._options = IndexOptions(
            text_type="json" if config.caption_fields else "txt",
            min_original_side=config.min_original_side,
        )
        self._cache = _cache(config, self._paths[0].parent)
        self._shards = index_shards(self._paths, self._options, self._cache)
        self._odd: set[int] = set()  # shards whose members' own headers say other than the index
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
        with sample_at_fault(key):
            captions, repaired = self._captions(text, key)
            picture, notes = decode.decode_sample(image, key, config)
            return Example(picture, captions, key, notes + repaired)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, or raises DamagedSample."""
        key, _, text = self._read(index)
        with sample_at_fault(key):
            return self._captions(text, key)[0]

    def _captions(self, text: bytes, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        fields = self._config.caption_fields
        if not fields:
            return decode.decode_captions(text, key)
        row = parse_object(text)
        if row is None:
            raise DamagedSample(key, CAPTION_JSON)
        return decode.decode_captions(decode.caption_values(row, fields), key)

    def _read(self, index: int) -> tuple[str, bytes, bytes]:
        """Returns key, image bytes and caption bytes."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        file, stem = self._files_and_stems[number]
        while True:
            shard = self._shards[number]
            row = index - self._ends[number] + len(shard)
            headers, image, text = self._members(file, shard, row)
            if fits(*headers, len(image), len(text)) or number in self._odd:
                return f"{stem}/{split_name(own_name(headers[0]))[0]}", image, text
            self._renew(number, shard)

    def _members(
        self, file: str, shard: ShardIndex, row: int
    ) -> tuple[tuple[bytes, bytes], bytes, bytes]:
        """Returns the headers of image and caption, and their data: one range, as neighbours."""
        image_size, text_size = int(shard.image_size[row]), int(shard.text_size[row])
        image_at = int(shard.image_block[row]) * BLOCK
        text_at = image_at + int(shard.text_gap[row]) * BLOCK
        start = min(image_at, text_at) - BLOCK
        length = max(image_at + image_size, text_at + text_size) - start
        if length > image_size + text_size + _NEAR:
            image = self._files.read(file, image_at - BLOCK, BLOCK + image_size)
            text = self._files.read(file, text_at - BLOCK, BLOCK + text_size)
            return (image[:BLOCK], text[:BLOCK]), image[BLOCK:], text[BLOCK:]
        data = self._files.read(file, start, length)
        image_at, text_at = image_at - start, text_at - start
        headers = data[image_at - BLOCK : image_at], data[text_at - BLOCK : text_at]
        image = data[image_at : image_at + image_size]
        return headers, image, data[text_at : text_at + text_size]

    def _renew(self, number: int, seen: ShardIndex) -> None:
        """Scans a shard again whose sample does not fit its index entry.

        Raises DataError where it has become another number of samples, which every place in the
        order of all depends on.
        """
        path = self._paths[number]
        with _RENEWING:
            if self._shards[number] is not seen:
                return  # another thread has
            self._files.forget(os.fspath(path))
            (new,) = index_shards([path], self._options, self._cache, anew=True)
            if len(new) != len(seen):
                raise DataError(
                    f"shard {printable(path)} was replaced while in use: its index has "
                    f"{len(seen)} samples, it now has {len(new)}; start the same command again"
                )
            if all(np.array_equal(getattr(new, name), getattr(seen, name)) for name in ARRAYS):
                self._odd.add(number)  # by a pax header, a member's size or name is another
                return
            logging.warning("shard %s was replaced: it is indexed again", printable(path))
            self._shards[number] = new


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
    paths: Sequence[epath.Path],
    options: IndexOptions,
    cache: epath.Path | None,
    anew: bool = False,
) -> list[ShardIndex]:
    """Returns the shards' indices, in order; a progress bar shows on a terminal.

    anew: whatever the cache has, which is replaced.

    A shard that cannot be reached is a DataError, not a damaged shard: leaving it out would give
    this process other samples than those that can reach it.
    """

    def index(path: epath.Path) -> ShardIndex:
        try:
            with buckets.explained(path, "be read"):
                return index_shard(path, options, cache, anew)
        except buckets.Unavailable:
            raise
        except OSError as error:
            raise DataError(f"shard {printable(path)} cannot be read: {error}") from error

    with futures.ThreadPoolExecutor(_SCANNERS) as pool:
        indices = pool.map(index, paths)
        return list(tqdm(indices, "indexing shards", len(paths), disable=None, unit="shard"))


def _cache(config: DataConfig, folder: epath.Path) -> epath.Path | None:
    """Returns where indices are kept: config.cache_dir, or beside the shards if they may."""
    if config.cache_dir:
        cache = epath.Path(config.cache_dir)
        with buckets.explained(cache, "be written to (data.cache_dir)"):
            cache.mkdir(parents=True, exist_ok=True)
        return cache
    cache = folder / _INDEX_FOLDER
    try:
        # A folder closed to its owner is meant to stay as it is, even where root could write.
        if not in_bucket(folder) and not os.stat(folder).st_mode & 0o222:
            raise PermissionError(f"{folder} is read-only")
        with buckets.explained(cache, "be written to"):
            cache.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a bucket that may only be read
        logging.warning(
            "the shard index cannot be saved (%s); set data.cache_dir to keep it", printable(error)
        )
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
            with buckets.explained(path, "be read"), epath.Path(path).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        else:
            # pread has no position to share, so threads may use one descriptor together.
            file = self._open(path)
            data = os.pread(file.number, size, offset)
        if len(data) != size:
            raise DataError(
                f"{printable(path)} is shorter than its index says: it changed while in use"
            )
        return data

    def forget(self, path: str) -> None:
        """Opens the file anew at its next reading: another may stand there."""
        with self._lock:
            self._files.pop(path, None)

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
