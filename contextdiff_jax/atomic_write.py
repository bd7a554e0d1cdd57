"""Files that appear whole or not at all, whoever reads or writes beside."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

REMAINS = "*.tmp"
"""Pattern of what killed writers leave beside the files they were writing."""


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is one of a bucket (gs://, s3://), not of this machine."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def written_whole(path: epath.Path) -> Iterator[epath.Path]:
    """Gives the path of a local file to write; when the block ends well, it stands at `path`.

    `path` may lie in a bucket: it then receives the finished file in one upload. Nothing appears
    there when the block raises. Writers of one path do not disturb each other, the last stays.
    """
    bucket = in_bucket(path)
    folder = epath.Path(tempfile.gettempdir()) if bucket else path.parent
    unfinished = folder / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield unfinished
        if bucket:
            unfinished.copy(path, overwrite=True)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
