"""Checksums of a folder: recorded when its files are whole, compared before anything is read.

    FOLDER/checksums.json    of each file below: its size, and the CRC-32 of every 64 MiB of it

CRC-32 (zlib's, as in gzip and PNG) finds every single flipped bit, every burst of up to 32 bits,
and of any other damage to 64 MiB all but one in 4 billion. It finds accidents, not intent: who
can change a file can change its checksum too.

A folder below that has a checksums.json of its own speaks for itself: of it the folder above
records that file alone.
"""

import concurrent.futures
import errno
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator

from etils import epath

from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.buckets import in_bucket

NAME = "checksums.json"
_CHUNK = 64 << 20  # bytes: what one number stands for, and what a thread reads at a time
_BLOCK = 1 << 20
_THREADS = 8
_DIFFERS = "differs from when it was saved"

_sound: set[tuple] = set()  # chunks this process has compared: (path, stamp, number, checksum)


def recorded(folder: epath.Path) -> bool:
    """Whether the folder has checksums."""
    return (folder / NAME).exists()


def record(folder: epath.Path, names: Iterable[str] | None = None) -> None:
    """Writes the checksums of a folder's files: those of `names`, or all below."""
    names = sorted(files_below(folder) if names is None else names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        files = dict(zip(names, threads.map(lambda n: _of_file(folder / n), names), strict=True))
    _write(folder, files)


def add(folder: epath.Path, names: Collection[str]) -> None:
    """Adds the checksums of files that were not there yet when `record` wrote the others."""
    _write(folder, _read(folder) | {name: _of_file(folder / name) for name in names})


def damage(
    folder: epath.Path,
    *,
    may_be_unlisted: Collection[str] | None = (),
    index: int = 0,
    count: int = 1,
) -> str | None:
    """Returns what is wrong with a folder that has checksums, as "FILE: ...", or None.

    may_be_unlisted: files without a checksum that are no damage; None: any, the listed ones count.
    index, count: compares contents of every count-th chunk alone, from the index-th on; names and
    sizes of all.

    What this process has found sound is not read again while size and time of change stay.
    Raises OSError where a file cannot be read for another reason than damage.
    """
    try:
        files = _read(folder)
        if may_be_unlisted is not None:
            unlisted = set(files_below(folder)) - set(files) - set(may_be_unlisted)
            if unlisted:
                return f"{min(unlisted)}: was not there when the others were saved"
        chunks = list(_chunks(folder, files))[index::count]
    except _Damaged as found:
        return str(found)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(_compare, chunks)), None)


def forget() -> None:
    """Makes `damage` read everything again, as a new process would."""
    _sound.clear()


def files_below(folder: epath.Path) -> Iterator[str]:
    """Yields the names of the files in and below a folder, relative to it, but its checksums."""
    for item in folder.iterdir():
        if not item.is_dir():
            if not item.name.startswith(NAME):  # also remains of a killed `_write`
                yield item.name
        elif recorded(item):
            yield f"{item.name}/{NAME}"
        else:
            yield from (f"{item.name}/{name}" for name in files_below(item))


class _Damaged(ValueError):
    """What is wrong with a folder."""


def _of_file(path: epath.Path) -> list[int]:
    """Returns [size, CRC-32 of each chunk]."""
    size, *_ = _stamp(path)
    return [size, *(_of_chunk(path, offset) for offset in range(0, size, _CHUNK))]


def _of_chunk(path: epath.Path, offset: int) -> int:
    value = 0
    with path.open("rb") as file:
        file.seek(offset)
        for start in range(0, _CHUNK, _BLOCK):
            block = file.read(min(_BLOCK, _CHUNK - start))
            if not block:
                break
            value = zlib.crc32(block, value)
    return value


def _text(files: dict[str, list[int]]) -> str:
    """Returns the content of checksums.json: one text for one set of checksums, with its own."""
    body = json.dumps(files, sort_keys=True)
    return json.dumps({"files": files, "of_files": zlib.crc32(body.encode())}, sort_keys=True)


def _write(folder: epath.Path, files: dict[str, list[int]]) -> None:
    with written_whole(folder / NAME) as file:
        file.write_text(_text(files))


def _read(folder: epath.Path) -> dict[str, list[int]]:
    """Returns what is recorded. Raises _Damaged unless it is, to the bit, what `_write` writes."""
    try:
        text = (folder / NAME).read_text()
        files = json.loads(text)["files"]
        if _text(files) == text:
            return files
    except FileNotFoundError as error:
        raise _Damaged(f"{NAME}: is missing") from error
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # no JSON any more
    raise _Damaged(f"{NAME}: {_DIFFERS}")


def _chunks(
    folder: epath.Path, files: dict[str, list[int]]
) -> Iterator[tuple[epath.Path, str, tuple, int, int]]:
    """Yields (path, name, stamp, offset, checksum). Raises _Damaged for a wrong size."""
    for name, (size, *values) in files.items():
        path = folder / name
        try:
            stamp = _stamp(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _Damaged(f"{name}: is missing") from error
        if stamp[0] != size:
            raise _Damaged(f"{name}: has {stamp[0]} bytes of {size}")
        for number, value in enumerate(values):
            yield path, name, stamp, number * _CHUNK, value


def _stamp(path: epath.Path) -> tuple:
    """Returns the size of a file, and what changes when it is written."""
    if in_bucket(path):
        stat = path.stat()
        return stat.length, stat.mtime
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _compare(chunk: tuple[epath.Path, str, tuple, int, int]) -> str | None:
    path, name, stamp, offset, value = chunk
    key = (str(path), stamp, offset, value)
    if key in _sound:
        return None
    try:
        found = _of_chunk(path, offset)
    except FileNotFoundError:
        return f"{name}: is missing"
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EISDIR):  # a worn disk; a folder in a file's place
            raise
        return f"{name}: cannot be read ({error})"
    if found != value:
        return f"{name}: {_DIFFERS}"
    _sound.add(key)
    return None
