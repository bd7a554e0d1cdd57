"""Files that appear whole or not at all, whoever reads or writes beside."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

_REMAINS = "*.tmp"  # of what killed writers leave beside the files they were writing


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is one of a bucket (gs://, s3://), not of this machine."""
    return "://" in os.fspath(path)


def cleared(folder: epath.PathLike) -> epath.Path:
    """Makes the folder, rid of what killed writers left in it; no other may be writing there."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for remains in folder.glob(_REMAINS):
        remains.unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def written_whole(path: epath.Path) -> Iterator[epath.Path]:
    """Gives the path of a local file to write; when the block ends well, it stands at `path`.

    `path` may lie in a bucket: it then receives the finished file in one upload. Nothing appears
    there when the block raises. Writers of one path do not disturb each other, the last stays.
    An upload that fails raises what buckets.named does.
    """
    from contextdiff_jax import buckets  # which imports this module

    bucket = in_bucket(path)
    folder = epath.Path(tempfile.gettempdir()) if bucket else path.parent
    unfinished = folder / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield unfinished
        if bucket:
            with buckets.named(path, "be written"):
                unfinished.copy(path, overwrite=True)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
