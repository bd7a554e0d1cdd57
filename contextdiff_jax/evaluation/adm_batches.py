"""The .npz files of ADM's evaluator (Dhariwal & Nichol 2021, guided-diffusion/evaluations).

A batch of samples holds pictures, arr_0 (N, H, W, 3) uint8, and perhaps classes, arr_1. A reference
batch also holds moments of the features of a whole data set: mu, sigma of the pooled ones, mu_s,
sigma_s of the spatial ones; its pictures serve for precision and recall.
"""

import dataclasses
import zipfile
from collections.abc import Iterable

import numpy as np
from etils import epath

from contextdiff_jax.evaluation.frechet import Moments
from contextdiff_jax.system.array_files import read_arrays
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.finite import all_finite

_PICTURES, _CLASSES = "arr_0", "arr_1"
_POOLED, _SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
_MOST_BYTES = 16 * 2**30  # of one array: 10,000 pictures of 512 pixels are 7.9e9
_LARGEST = 1e9  # of any moment: Inception's features are below 1000, and products stay finite


@dataclasses.dataclass(frozen=True)
class Batch:
    """pictures: (N, H, W, 3) uint8. pooled, spatial: moments of a whole data set, or None."""

    pictures: np.ndarray
    pooled: Moments | None
    spatial: Moments | None


def read_batch(path: epath.PathLike) -> Batch:
    """Reads a batch.

    Raises FileNotFoundError, or ValueError naming the file and the array that is missing or of
    another kind.
    """
    arrays = read_arrays(path, (_PICTURES, *_POOLED, *_SPATIAL), _MOST_BYTES)
    where = f"{str(path)!r} is no batch of ADM's evaluator"
    if _PICTURES not in arrays:
        raise ValueError(f"{where}: {_PICTURES}, its pictures, is missing")
    pictures = np.ascontiguousarray(arrays[_PICTURES])  # a file may have Fortran's order
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise ValueError(
            f"{where}: {_PICTURES} is {pictures.dtype} of {pictures.shape}; must be uint8 of "
            "(N, H, W, 3)"
        )
    if 0 in pictures.shape:
        raise ValueError(f"{where}: {_PICTURES} holds no picture")
    there = [key for key in (*_POOLED, *_SPATIAL) if key in arrays]
    if not there:
        return Batch(pictures, None, None)
    missing = [key for key in (*_POOLED, *_SPATIAL) if key not in arrays]
    if missing:
        raise ValueError(f"{where}: it has {there[0]}, but not {missing[0]}")
    moments = [_moments(arrays, keys, where) for keys in (_POOLED, _SPATIAL)]
    return Batch(pictures, *moments)


def _moments(arrays: dict[str, np.ndarray], keys: tuple[str, str], where: str) -> Moments:
    mean, covariance = (arrays[key] for key in keys)
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise ValueError(
            f"{where}: {keys[0]} has shape {mean.shape}, {keys[1]} {covariance.shape}; must be "
            "(D,), (D, D)"
        )
    for key in keys:
        if arrays[key].dtype.kind != "f" or not all_finite(arrays[key]):
            raise ValueError(f"{where}: {key} must hold finite floats")
        if np.abs(arrays[key]).max(initial=0) > _LARGEST:
            raise ValueError(f"{where}: {key} must hold numbers of at most {_LARGEST:g}")
    found = Moments(mean.astype(np.float64), covariance.astype(np.float64))
    if np.diag(found.covariance).min(initial=0) < 0 or not np.allclose(
        found.covariance, found.covariance.T
    ):
        raise ValueError(f"{where}: {keys[1]} must be symmetric, with variances of at least 0")
    return found


def write_batch(
    path: epath.PathLike,
    parts: Iterable[np.ndarray],
    shape: tuple[int, ...],
    classes: np.ndarray | None = None,
) -> None:
    """Writes pictures as a batch of samples, whole or not at all; memory holds a part at a time.

    parts: uint8 (n, H, W, 3) each. shape: of all together. classes: int (N,), None for none.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        written_whole(epath.Path(path)) as unfinished,
        zipfile.ZipFile(unfinished, "w", allowZip64=True) as archive,
    ):
        with archive.open(f"{_PICTURES}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, np.uint8).data)
        if classes is not None:
            with archive.open(f"{_CLASSES}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(classes, np.int64))
