"""Files and folders that flags name, checked before any long work."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from contextdiff_jax.data.decode import decode_image
from contextdiff_jax.data.example import DamagedSample
from contextdiff_jax.system import buckets
from contextdiff_jax.system.suggestions import nearest_path


def existing_file(path: epath.PathLike, flag: str) -> epath.Path:
    """Returns `path`, or raises ValueError naming the flag where no file is there."""
    file = epath.Path(path)
    with buckets.explained(file, f"be read (--{flag})"):
        if file.is_dir():
            raise ValueError(f"--{flag}={path}: is a folder, must be a file")
        if not file.exists():
            raise ValueError(f"--{flag}={path}: no such file{nearest_path(path)}")
        return file


def existing(path: epath.PathLike, flag: str) -> epath.Path:
    """Returns `path`, a folder or a file, or raises ValueError naming the flag."""
    if epath.Path(path).is_dir():
        return existing_folder(path, flag)
    return existing_file(path, flag)


def existing_folder(path: epath.PathLike, flag: str) -> epath.Path:
    """Returns `path`, or raises ValueError naming the flag where no folder is there."""
    folder = epath.Path(path)
    with buckets.explained(folder, f"be read (--{flag})"):
        if folder.is_dir():
            return folder
        if folder.exists():
            raise ValueError(f"--{flag}={path}: is a file, must be a folder")
        raise ValueError(f"--{flag}={path}: no such folder{nearest_path(path)}")


def read_lines(path: epath.PathLike, flag: str) -> list[str]:
    r"""Returns the lines of a UTF-8 text file, blank ones too.

    A line ends at \n alone, or at \r\n: other characters that Python takes for line ends (form
    feeds, U+2028) are part of it. A byte order mark is dropped.

    Raises ValueError naming the flag where there is no such file, or it is not UTF-8.
    """
    file = existing_file(path, flag)
    try:
        with buckets.explained(file, f"be read (--{flag})"):
            text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"--{flag}={path}: line {line} is no UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"--{flag}={path}: cannot be read: {error.strerror or error}") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_images(files: Sequence[str], side: int, flag: str) -> np.ndarray:
    """Returns pictures (N, side, side, 3) uint8 of image files, cut to their central square.

    Raises ValueError naming the flag and the first that is not there or is no picture.
    """
    pictures = []
    for name in files:
        data = existing_file(name, flag).read_bytes()
        try:
            pictures.append(decode_image(data, name, side)[0])
        except DamagedSample as damaged:
            raise ValueError(f"--{flag}={name}: {damaged.reason}") from damaged
    return np.stack(pictures)
