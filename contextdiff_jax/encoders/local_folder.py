"""Encoder folders in a bucket: safetensors and tokenizers know files of this machine alone."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from etils import epath

# Copies live as long as the process: {(folder, what it holds): copy}.
_COPIES: dict[tuple, tempfile.TemporaryDirectory] = {}


def local_folder(folder: epath.PathLike) -> pathlib.Path:
    """Returns the folder, or of one in a bucket a copy on this machine.

    The copy is made once per process, and again when the files in the bucket have changed.

    Raises FileNotFoundError where a folder in a bucket has no files.
    """
    if not _in_bucket(folder):
        return pathlib.Path(folder)
    files = list(_files(epath.Path(folder)))
    if not files:
        raise FileNotFoundError(f"folder {os.fspath(folder)!r} does not exist")
    stats = [(name, (stat := path.stat()).length, stat.mtime) for name, path in files]
    key = (os.fspath(folder), *stats)
    if key not in _COPIES:
        copy = tempfile.TemporaryDirectory(prefix="contextdiff_jax_")
        for name, path in files:
            target = epath.Path(copy.name) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.copy(target)
        _COPIES[key] = copy
    return pathlib.Path(_COPIES[key].name)


@contextlib.contextmanager
def filled_folder(folder: epath.PathLike) -> Iterator[pathlib.Path]:
    """Gives a local folder to write files to; those for a bucket are uploaded when all is well."""
    if not _in_bucket(folder):
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="contextdiff_jax_") as temporary:
        yield pathlib.Path(temporary)
        for name, path in _files(epath.Path(temporary)):
            target = epath.Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.copy(target, overwrite=True)


def _in_bucket(folder: epath.PathLike) -> bool:
    return "://" in os.fspath(folder)


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yields the files of a folder and its sub-folders, by their relative names, sorted."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            yield from _files(path, f"{name}/")
        else:
            yield name, path
