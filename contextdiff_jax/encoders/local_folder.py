"""Encoder folders in a bucket: safetensors and tokenizers know files of this machine alone."""

import contextlib
import getpass
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from contextdiff_jax.system.buckets import in_bucket


def local_folder(folder: epath.PathLike) -> pathlib.Path:
    """Returns the folder, or of one in a bucket a copy on this machine.

    The copy is kept in the machine's folder for temporary files, for later processes too, and made
    again when the files in the bucket have changed.

    Raises FileNotFoundError where a folder in a bucket has no files.
    """
    if not in_bucket(folder):
        return pathlib.Path(folder)
    files = list(_files(epath.Path(folder)))
    if not files:
        raise FileNotFoundError(f"folder {os.fspath(folder)!r} does not exist")
    stats = [(name, (stat := path.stat()).length, stat.mtime) for name, path in files]
    digest = hashlib.sha256(repr((os.fspath(folder), stats)).encode()).hexdigest()[:16]
    copies = pathlib.Path(tempfile.gettempdir()) / f"contextdiff_jax_{getpass.getuser()}"
    copies.mkdir(exist_ok=True)
    copy = copies / digest
    if not copy.exists():
        _copy_whole(files, copy)
    return copy


def _copy_whole(files: list[tuple[str, epath.Path]], copy: pathlib.Path) -> None:
    """Copies files to a folder that appears when all are there."""
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=copy.parent))
    try:
        for name, path in files:
            target = epath.Path(unfinished / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.copy(target)
        with contextlib.suppress(FileExistsError):
            unfinished.rename(copy)
    except OSError:
        if not copy.exists():  # else another process of this machine was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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
