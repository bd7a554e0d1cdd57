"""Indices of tar shards, made once and kept in files: a directory of them is read in seconds.

An index file, and the shard that it is of, may have been put there by a stranger.
"""

import hashlib
import io
import json
import os
import stat

import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.shard_index import (
    ARRAYS,
    CAPTION_LARGE,
    IMAGE_LARGE,
    MOST_BYTES,
    IndexOptions,
    ShardIndex,
    fits,
    scan_shard,
    without_samples,
)
from contextdiff_jax.data.tar_index import BLOCK, Window
from contextdiff_jax.system import buckets
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.buckets import in_bucket
from contextdiff_jax.system.printable import printable

NOT_A_FILE = "a folder, pipe or device, not a file"
_VERSION = 1  # of the index files
_STEM = 40  # characters of the shard's name in the index's, which may not exceed 255 bytes
_PROBES = 4  # samples of a stored index that are compared with the shard when it is opened


def index_shard(
    path: epath.Path, options: IndexOptions, cache: epath.Path | None, anew: bool = False
) -> ShardIndex:
    """Returns the shard's index, from the cache if it has one for this very file.

    anew: the shard is scanned, and the cache's index replaced. What is named like a shard and is
    no file is a damaged one, so is one that cannot be listed. Raises OSError if the shard cannot be
    opened or read.
    """
    length, modified, is_file = _length_time_and_kind(path)
    if not is_file:  # a pipe would be waited for
        return without_samples(NOT_A_FILE, path.stem)
    stored = None
    if cache is not None:
        identity = (_VERSION, os.fspath(path), length, modified, options)
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        stored = cache / f"{path.stem[:_STEM]}-{digest}.npz"
        index = None if anew else _stored(stored, path, length)
        if index is not None:
            return index
    with path.open("rb") as file:
        try:
            index = scan_shard(Window(file, length), path.stem, options)
        except Exception as error:  # a stranger's file: one of them must not end the run
            if isinstance(error, (OSError, MemoryError)) or buckets.of_bucket(error):
                raise
            logging.debug("shard %s", printable(path), exc_info=True)
            return without_samples(f"cannot be listed ({type(error).__name__})", path.stem)
    if stored is not None:
        try:
            _save(index, stored)
        except (OSError, ValueError) as error:  # the samples can be read all the same
            logging.warning("the index of shard %s cannot be saved: %s", printable(path), error)
    return index


def _length_time_and_kind(path: epath.Path) -> tuple[int, int, bool]:
    """Returns size, time of change, and whether it is a file."""
    # epath would look up the names of a local file's owner and group, which need not have any.
    if in_bucket(path):
        found = path.stat()
        return found.length, found.mtime, not found.is_directory
    local = os.stat(path)
    return local.st_size, int(local.st_mtime), stat.S_ISREG(local.st_mode)


def _save(index: ShardIndex, path: epath.Path) -> None:
    """Writes the index in one go: another process never sees half of it."""
    report = np.frombuffer(json.dumps(index.report.to_json()).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, report=report, **{name: getattr(index, name) for name in ARRAYS})
    with written_whole(path) as unfinished:
        unfinished.write_bytes(buffer.getvalue())


def _stored(stored: epath.Path, path: epath.Path, length: int) -> ShardIndex | None:
    """Returns the cache's index where there is one, it can be read, and the shard is still so."""
    with buckets.explained(stored, "be read"):
        content = stored.read_bytes() if stored.is_file() else None
    if content is None:
        return None
    try:
        index = _load(content, length)
    except Exception as error:  # it may lie beside a stranger's shards; scanning makes it anew
        logging.warning(
            "index %s cannot be read (%s): the shard is scanned again",
            printable(stored),
            printable(error),
        )
        return None
    # A bucket's time of change cannot be set.
    if in_bucket(path) or _still_fits(index, path):
        return index
    logging.warning(
        "shard %s was replaced by another of the same size and time: it is scanned again",
        printable(path),
    )
    return None


def _load(content: bytes, length: int) -> ShardIndex:
    """Reads an index file; raises an error of some type where it cannot be one of this shard."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        # A sample takes 4 blocks at least and 32 bytes here; beside them stands the report.
        if sum(info.file_size for info in stored.zip.infolist()) > length // 64 + (1 << 20):
            raise ValueError("it is larger than an index of this shard")
        report = SkipReport.from_json(json.loads(stored["report"].tobytes()))
        index = ShardIndex(*(stored[name] for name in ARRAYS), report)
    _check_bounds(index, length)
    return index


def _check_bounds(index: ShardIndex, length: int) -> None:
    """Raises ValueError where an entry lies outside the shard, or is no sample's."""
    arrays = [getattr(index, name) for name in ARRAYS]
    if any(array.dtype.kind not in "iu" or array.shape != (len(index),) for array in arrays):
        raise ValueError("its arrays are not those of an index")
    if any(array.size and max(-int(array.min()), int(array.max())) > length for array in arrays):
        raise ValueError("it has entries outside the shard")
    block, image, gap, text = (array.astype(np.int64) for array in arrays)
    sound = (block > 0) & (image > 0) & (block + gap > 0) & (text > 0)
    sound &= (block * BLOCK + image <= length) & ((block + gap) * BLOCK + text <= length)
    sound &= (image <= MOST_BYTES[IMAGE_LARGE]) & (text <= MOST_BYTES[CAPTION_LARGE])
    if not sound.all():
        raise ValueError("it has entries outside the shard")


def _still_fits(index: ShardIndex, path: epath.Path) -> bool:
    """Whether a few of the index's samples begin where it says."""
    places = np.unique(np.linspace(0, len(index) - 1, min(_PROBES, len(index))).astype(int))
    with path.open("rb") as file:

        def block_before(number: int) -> bytes:
            file.seek((number - 1) * BLOCK)
            return file.read(BLOCK)

        for row in places.tolist():
            block, gap = int(index.image_block[row]), int(index.text_gap[row])
            sizes = int(index.image_size[row]), int(index.text_size[row])
            if not fits(block_before(block), block_before(block + gap), *sizes):
                return False
    return True
