"""Bits per dimension image by image: stored as they come, summed up, compared in pairs."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.system.array_files import read_arrays
from contextdiff_jax.system.atomic_write import written_whole


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """What N images have: arrays (N,), or (N, M) of those not named `prior`, float64.

    index (N,) int64: the images' numbers in their source, rising.
    """

    index: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """All that an image needs (N,), in bits per dimension."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.index)


@dataclasses.dataclass(frozen=True)
class Rows(ImageRows):
    """The bound of N images, float64, in bits per dimension; fields as in BoundTerms."""

    prior: np.ndarray
    terms: np.ndarray
    x0_mse: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The whole bound (N,)."""
        return self.prior + self.terms.sum(axis=1)


def names_of(kind: type[ImageRows]) -> list[str]:
    """Returns the names of the arrays of a kind of rows, `index` first."""
    return [field.name for field in dataclasses.fields(kind)]


def write_rows(folder: epath.PathLike, rows: ImageRows) -> None:
    """Adds images to a folder, in one file that appears whole or not at all."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{rows.index[0]:08d}-{rows.index[-1]:08d}.npz"
    # As they were computed: float64 would only double the size.
    arrays = {
        name: np.asarray(getattr(rows, name), np.float32) for name in names_of(type(rows))[1:]
    }
    with written_whole(folder / name) as unfinished, unfinished.open("wb") as file:
        np.savez(file, index=rows.index, **arrays)


def read_rows(
    folder: epath.PathLike, count: int | None = None, kind: type[ImageRows] = Rows
) -> Any:
    """Returns a folder's images by number, those below `count`, or None where there is none.

    kind: of the rows that were written there.

    Raises ValueError for a file that cannot be read or an image that is there twice.
    """
    files = sorted(epath.Path(folder).glob("*.npz"))
    if not files:
        return None
    names = names_of(kind)
    parts = [_read(file, names) for file in files]
    joined = [np.concatenate([part[name] for part in parts]) for name in names]
    order = np.argsort(joined[0], kind="stable")
    index, *values = (array[order] for array in joined)
    if np.any(np.diff(index) == 0):
        twice = int(index[np.flatnonzero(np.diff(index) == 0)[0]])
        raise ValueError(f"{os.fspath(folder)} holds image {twice} twice: remove one of its files")
    few = slice(None if count is None else int(np.searchsorted(index, count)))
    if not len(index[few]):
        return None
    return kind(index[few].astype(np.int64), *(value[few].astype(np.float64) for value in values))


def _read(file: epath.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(file, names)
        _check_shapes(arrays, names)
    except ValueError as error:
        raise ValueError(f"{os.fspath(file)} cannot be read: {error}; remove it") from error
    return arrays


def _check_shapes(arrays: dict[str, np.ndarray], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    count = arrays["index"].size
    for name, array in arrays.items():
        kind, ndim = ("i", 1) if name == "index" else ("f", 1 if name == "prior" else 2)
        if array.dtype.kind != kind or array.ndim != ndim or len(array) != count:
            raise ValueError(f"{name} is {array.dtype} of {array.shape}, must have {count} rows")


def summary(rows: Rows, times: Sequence[int], snr: np.ndarray) -> dict[str, Any]:
    """Returns means over the images, in bits per dimension, with standard errors over them.

    times: the N times of the terms, falling to the last that is not 0. snr: alpha_bar / (1 -
    alpha_bar) there: the squared error of eps' is snr times that of x0, for any bias.
    """
    error = rows.x0_mse.mean(axis=0)
    mean, spread = mean_and_error(rows.total)
    prior, decoder = rows.prior.mean(), rows.terms[:, -1].mean()
    return {
        "bits_per_dim": mean,
        "standard_error": spread,
        "prior": float(prior),
        "kl": float(rows.terms[:, :-1].sum(axis=1).mean()),
        "decoder": float(decoder),
        "images": len(rows),
        "per_timestep": {
            "t": [int(t) for t in times],
            "bits_per_dim": rows.terms.mean(axis=0).tolist(),
            "standard_error": [mean_and_error(column)[1] for column in rows.terms.T],
            "x0_mse": error.tolist(),
            "eps_mse": (snr * error).tolist(),
        },
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """Returns the mean and its standard error; None for that of a single value."""
    if len(values) < 2:
        return float(np.mean(values)), None
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def shown_error(values: Mapping[str, Any], more: str = "") -> str:
    """Returns what follows the mean in a sentence; "" for a single image."""
    error = values["standard_error"]
    return "" if error is None else f" (standard error {error:.4f}{more})"


def paired_difference(ours: ImageRows, theirs: ImageRows) -> dict[str, Any]:
    """Returns our mean total minus theirs over the images both have, with its standard error.

    With the same seed both saw the same noise, so the pairs vary far less than either alone.
    Raises ValueError where they have no image in common.
    """
    common, mine, other = np.intersect1d(ours.index, theirs.index, return_indices=True)
    if not len(common):
        raise ValueError("the two evaluations have no image in common: there is nothing to compare")
    mean, error = mean_and_error(ours.total[mine] - theirs.total[other])
    return {"difference": mean, "standard_error": error, "images": len(common)}
