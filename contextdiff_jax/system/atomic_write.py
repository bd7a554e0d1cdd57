"""Files that appear whole or not at all, whoever reads or writes beside."""

import contextlib
import pathlib
import re
import tempfile
import time
import uuid
from collections.abc import Iterator

from etils import epath

from contextdiff_jax.system import buckets

_REMAINS = "*.tmp"  # of what killed writers leave beside the files they were writing
_PROBE = ".writable."
_OURS = re.compile(rf".+\.[0-9a-f]{{32}}\.tmp|{re.escape(_PROBE)}[0-9a-f]{{32}}")
_DEAD_S = 24 * 3600  # no file of ours is written for so long


def cleared(folder: epath.PathLike) -> epath.Path:
    """Makes the folder, rid of what killed writers left in it; no other may be writing there."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for remains in folder.glob(_REMAINS):
        remains.unlink(missing_ok=True)
    return folder


def sweep(folder: epath.PathLike) -> None:
    """Removes what killed writers left in a folder where others may be writing.

    That is files with names only this module gives, a day old. A bucket has none.
    """
    if buckets.in_bucket(folder):
        return
    with contextlib.suppress(OSError):  # where it may not be listed
        for path in pathlib.Path(folder).iterdir():
            if _OURS.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _DEAD_S:
                path.unlink(missing_ok=True)


def probe(folder: epath.PathLike) -> None:
    """Writes a file to the folder and removes it, or raises what the file system says."""
    # Of many machines that write here at once, each its own file: process numbers may be equal.
    path = epath.Path(folder) / f"{_PROBE}{uuid.uuid4().hex}"
    path.write_text("")
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def written_whole(path: epath.Path) -> Iterator[epath.Path]:
    """Gives the path of a local file to write; when the block ends well, it stands at `path`.

    `path` may lie in a bucket: it then receives the finished file in one upload. Nothing appears
    there when the block raises. Writers of one path do not disturb each other, the last stays.
    An upload that fails raises what buckets.explained does.
    """
    bucket = buckets.in_bucket(path)
    folder = epath.Path(tempfile.gettempdir()) if bucket else path.parent
    unfinished = folder / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield unfinished
        if bucket:
            with buckets.explained(path, "be written"):
                unfinished.copy(path, overwrite=True)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
