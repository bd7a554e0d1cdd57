"""Files that a list made by strangers names: inside their folder, regular, of a sane size."""

import os
import pathlib
import stat
from errno import EILSEQ, EINVAL, ELOOP, ENAMETOOLONG

from etils import epath

from contextdiff_jax.system.buckets import in_bucket

MISSING = "missing"
OUTSIDE = "it leads out of the folder"
NO_NAME = "no file can have its name"
NOT_REGULAR = "no regular file"
TOO_LARGE = "file too large"
_OF_NAMES = (EILSEQ, EINVAL, ELOOP, ENAMETOOLONG)


class NotReadable(Exception):
    """A name's file is not read; `reason` is one of the phrases above."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def resolved(folder: epath.PathLike) -> str:
    """Returns the folder's path without links, for `read_listed`; a bucket's as it is."""
    path = os.fspath(folder)
    return path if in_bucket(path) else os.path.realpath(path)


def read_listed(folder: str, name: str, most_bytes: int | None = None) -> bytes:
    """Returns the content of the file `name` of a resolved folder, at most `most_bytes`.

    Names are relative, without "..". Links are followed while they stay inside the folder; what
    they lead to outside is not read. Nothing but a regular file is opened, so that no pipe or
    device can block. In a bucket, which has none of these, only the name is checked.

    Raises NotReadable for the name's faults, OSError for the storage's (rights, a failing disk).
    """
    parts = _relative(name)
    try:
        if in_bucket(folder):
            return epath.Path(f"{folder}/{name}").read_bytes()
        return _read_regular(_inside(folder, parts), most_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotReadable(MISSING) from error
    except IsADirectoryError as error:
        raise NotReadable(NOT_REGULAR) from error
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        raise NotReadable(NO_NAME) from error


def _relative(name: str) -> pathlib.PurePosixPath:
    """Returns a name that is one and stays inside by its letters alone."""
    try:
        if b"\0" in name.encode():
            raise NotReadable(NO_NAME)
    except UnicodeEncodeError as error:  # half a character
        raise NotReadable(NO_NAME) from error
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise NotReadable(OUTSIDE)
    return path


def _inside(folder: str, name: pathlib.PurePosixPath) -> str:
    """Returns the file's path, or raises NotReadable where a link in it leads outside."""
    path = folder
    for part in name.parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            path = os.path.realpath(os.path.join(folder, name), strict=True)
            if os.path.commonpath([folder, path]) != folder:
                raise NotReadable(OUTSIDE)
            break
    return path


def _read_regular(path: str, most_bytes: int | None) -> bytes:
    # Looked at first: to open a device may already do something. Then without waiting, and looked
    # at again, in case it was replaced in between.
    _check_regular(os.stat(path), most_bytes)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        _check_regular(os.fstat(file.fileno()), most_bytes)
        return file.readall()


def _check_regular(found: os.stat_result, most_bytes: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotReadable(NOT_REGULAR)
    if most_bytes is not None and found.st_size > most_bytes:
        raise NotReadable(TOO_LARGE)
