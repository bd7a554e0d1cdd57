"""Arrays in .npz files that strangers may have made: read within bounds, or refused by name."""

import math
import os
from collections.abc import Iterable

import numpy as np
from etils import epath

from contextdiff_jax.system.buckets import in_bucket

_MOST_BYTES = 4 * 2**30  # of one array


def read_arrays(
    path: epath.PathLike, names: Iterable[str] | None = None, most: int = _MOST_BYTES
) -> dict[str, np.ndarray]:
    """Returns arrays of an .npz file: those of `names` that it has, or all.

    Raises FileNotFoundError where there is no file, and ValueError, naming it, where it is no
    regular file, damaged, holds Python objects, or claims more than `most` bytes for one array.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{os.fspath(path)!r} does not exist")
    if not in_bucket(path) and not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)!r} is no regular file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            wanted = content.files if names is None else [n for n in names if n in content.files]
            for name in wanted:
                _check_claim(content, name, most)
            return {name: content[name] for name in wanted}
    except Exception as error:  # zipfile, zlib and numpy raise what came first
        cause = str(error) or type(error).__name__
        raise ValueError(f"{os.fspath(path)!r} holds no readable arrays: {cause}") from error


def _check_claim(content: np.lib.npyio.NpzFile, name: str, most: int) -> None:
    """Raises ValueError for an array of a size that would be reserved before any of it is read."""
    with content.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if math.prod(shape) * dtype.itemsize > most:
        raise ValueError(f"{name} claims to be {dtype} of {shape}, more than {most:,} bytes")
