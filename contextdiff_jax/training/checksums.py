"""Checksums of a folder: recorded when its files are whole, compared before anything is read.

    FOLDER/checksums.json    of each file below: its size, and the checksum of every 64 MiB of it

The checksum is XXH3 with 64 bits (xxhash): as fast as memory is read, and of any damage it misses
one in 10^19. It finds accidents, not intent: who can change a file can change its checksum too.
checksums.json names its algorithm; without a name it is CRC-32 (zlib's), of earlier versions.

A folder below that has a checksums.json of its own speaks for itself: of it the folder above
records that file alone.
"""

import concurrent.futures
import errno
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

import xxhash
from etils import epath

from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.buckets import in_bucket

NAME = "checksums.json"
_CHUNK = 64 << 20  # bytes: what one number stands for, and what a thread reads at a time
_BLOCK = 1 << 20  # smaller reads from a disk cost more, larger blocks leave the cache unsummed
_THREADS = 8
_DIFFERS = "differs from when it was saved"

_sound: set[tuple] = set()  # chunks this process has compared: (path, stamp, number, checksum)


class _Sum(Protocol):
    """A checksum that grows with what it is given; `update` lets other threads run."""

    def update(self, data: memoryview, /) -> None: ...

    def intdigest(self) -> int: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def intdigest(self) -> int:
        return self._value


_ALGORITHMS: dict[str, Callable[[], _Sum]] = {"xxh3_64": xxhash.xxh3_64, "crc32": _Crc32}
_ALGORITHM = "xxh3_64"  # of what is recorded now
_UNNAMED = "crc32"  # of what was recorded before there were names


def recorded(folder: epath.Path) -> bool:
    """Whether the folder has checksums."""
    return (folder / NAME).exists()


def record(folder: epath.Path, names: Iterable[str] | None = None) -> None:
    """Writes the checksums of a folder's files: those of `names`, or all below."""
    names = sorted(files_below(folder) if names is None else names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        values = threads.map(lambda name: _of_file(folder / name, _ALGORITHM), names)
        files = dict(zip(names, values, strict=True))
    _write(folder, files)


def add(folder: epath.Path, names: Collection[str]) -> None:
    """Adds the checksums of files that were not there yet when `record` wrote the others."""
    algorithm, files = _read(folder)
    added = {name: _of_file(folder / name, algorithm) for name in names}
    _write(folder, files | added, algorithm)


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
    Raises OSError where a file cannot be read for another reason than damage, and ValueError for an
    algorithm that this version does not know.
    """
    try:
        algorithm, files = _read(folder)
        if may_be_unlisted is not None:
            unlisted = set(files_below(folder)) - set(files) - set(may_be_unlisted)
            if unlisted:
                return f"{min(unlisted)}: was not there when the others were saved"
        chunks = list(_chunks(folder, files, algorithm))[index::count]
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


class _Damaged(Exception):
    """What is wrong with a folder."""


class _Chunk(NamedTuple):
    """A part of a file, and what it should be."""

    path: epath.Path
    name: str
    stamp: tuple
    offset: int
    algorithm: str
    value: int


def _of_file(path: epath.Path, algorithm: str) -> list[int]:
    """Returns [size, checksum of each chunk]."""
    size, *_ = _stamp(path)
    return [size, *(_of_chunk(path, offset, algorithm) for offset in range(0, size, _CHUNK))]


def _of_chunk(path: epath.Path, offset: int, algorithm: str) -> int:
    total = _ALGORITHMS[algorithm]()
    block = memoryview(bytearray(_BLOCK))
    left = _CHUNK
    with path.open("rb") as file:
        file.seek(offset)
        while count := file.readinto(block[:left]):
            total.update(block[:count])
            left -= count
    return total.intdigest()


def _text(files: dict[str, list[int]], algorithm: str) -> str:
    """Returns the content of checksums.json: one text for one set of checksums, with its own.

    Its own is CRC-32 whatever the algorithm, so that damage differs from an unknown algorithm.
    """
    named = {"files": files, "algorithm": algorithm}
    if algorithm == _UNNAMED:
        del named["algorithm"]
    body = json.dumps(named if "algorithm" in named else files, sort_keys=True)
    return json.dumps({**named, "of_files": zlib.crc32(body.encode())}, sort_keys=True)


def _write(folder: epath.Path, files: dict[str, list[int]], algorithm: str = _ALGORITHM) -> None:
    with written_whole(folder / NAME) as file:
        file.write_text(_text(files, algorithm))


def _read(folder: epath.Path) -> tuple[str, dict[str, list[int]]]:
    """Returns the algorithm, and what is recorded.

    Raises _Damaged unless it is, to the bit, what `_write` writes.
    """
    try:
        text = (folder / NAME).read_text()
        content = json.loads(text)
        algorithm, files = content.get("algorithm", _UNNAMED), content["files"]
        sound = _text(files, algorithm) == text
    except FileNotFoundError as error:
        raise _Damaged(f"{NAME}: is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False  # no JSON any more
    if not sound:
        raise _Damaged(f"{NAME}: {_DIFFERS}")
    if algorithm not in _ALGORITHMS:
        raise ValueError(
            f"algorithm = {algorithm!r} in {folder / NAME}: this version knows "
            f"{', '.join(_ALGORITHMS)}"
        )
    return algorithm, files


def _chunks(folder: epath.Path, files: dict[str, list[int]], algorithm: str) -> Iterator[_Chunk]:
    """Yields every chunk that is recorded. Raises _Damaged for a wrong size."""
    for name, (size, *values) in files.items():
        path = folder / name
        try:
            stamp = _stamp(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _Damaged(f"{name}: is missing") from error
        if stamp[0] != size:
            raise _Damaged(f"{name}: has {stamp[0]} bytes of {size}")
        for number, value in enumerate(values):
            yield _Chunk(path, name, stamp, number * _CHUNK, algorithm, value)


def _stamp(path: epath.Path) -> tuple:
    """Returns the size of a file, and what changes when it is written."""
    if in_bucket(path):
        stat = path.stat()
        return stat.length, stat.mtime
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _compare(chunk: _Chunk) -> str | None:
    path, name, stamp, offset, algorithm, value = chunk
    key = (str(path), stamp, offset, algorithm, value)
    if key in _sound:
        return None
    try:
        found = _of_chunk(path, offset, algorithm)
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
