"""What relation whitening knows of the data: the mean picture, and how much each mode varies.

Fitted once, when a run begins, to up to 4096 pictures spread over its data, and kept in
WORKDIR/RUN/whitening.npz. A run that goes on reads it there, if its data are still those. The same
numbers lie beside the weights in checkpoints and exports.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath
from scipy import fft

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, SkipReport, Source
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system.array_files import read_arrays
from contextdiff_jax.system.atomic_write import written_whole

NAME = "whitening.npz"
FITTED = 4096  # pictures
_AT_A_TIME = 256  # at most, and fewer of large pictures
_VALUES_AT_A_TIME = 2**23  # 64 MiB of float64; some copies of them are made
_KNOWN_BY = 8  # pictures that tell these data from others


class Moments(NamedTuple):
    """mean: of the pictures in [-1, 1]. std: of their modes, see `relations`; (H, W, C) float32."""

    mean: np.ndarray
    std: np.ndarray


def moments(source: Source, data: DataConfig, folder: epath.Path | None, where: str) -> Moments:
    """Returns what is in the run's folder, or fits it and leaves it there.

    where: the run's key, for messages. Raises ValueError where the folder's are of other data.
    """
    known_by = _fingerprint(source)
    file = None if folder is None else folder / NAME
    if distributed.from_main(file is not None and file.exists()):
        found, fitted_to = _read(file)
        if fitted_to != known_by or found.mean.shape != found.std.shape:
            raise ValueError(
                f"{file} is of other data than {where}.data: must be fitted to the data that the "
                "run trains on; use another --workdir, or restore the old data"
            )
        return found
    at_a_time = max(1, min(_AT_A_TIME, _VALUES_AT_A_TIME // (3 * data.resolution**2)))
    found = fit(source, flip=data.flip, threads=data.reading_threads, at_a_time=at_a_time)
    if file is not None and distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part, part.open("wb") as opened:
            np.savez(opened, mean=found.mean, std=found.std, fitted_to=known_by)
    return found


def fit(
    source: Source, *, flip: bool = False, threads: int = 1, at_a_time: int = _AT_A_TIME
) -> Moments:
    """Returns the moments of pictures spread over the data; flip: with their mirror images.

    at_a_time: how many pictures the memory holds.
    Raises ValueError where fewer than two pictures are sound.
    """
    count = min(len(source), FITTED)
    places = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))
    report, number = SkipReport(), 0
    total = square = 0.0
    for numbered in one_pass(source, places.tolist(), at_a_time, report, threads):
        pictures = np.stack([example.image for _, example in numbered]) / 127.5 - 1
        if flip:
            pictures = np.concatenate([pictures, pictures[:, :, ::-1]])
        modes = fft.dctn(pictures, type=2, norm="ortho", axes=(1, 2, 3))
        total, square = total + modes.sum(0), square + np.square(modes).sum(0)
        number += len(pictures)
    if number < 2:
        raise ValueError(
            f"relation 'whitening' finds {number} sound pictures in {source.name}: must be 2 or "
            "more to fit it to"
        )
    logging.info("whitening is fitted to %d pictures of %s", number, source.name)
    mean = total / number
    std = np.sqrt(np.maximum(square / number - np.square(mean), 0))
    picture = fft.idctn(mean, type=2, norm="ortho")
    return Moments(picture.astype(np.float32), std.astype(np.float32))


def _fingerprint(source: Source) -> str:
    """Returns what changes with the data: their number, and some of their pictures."""
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    for place in np.linspace(0, len(source) - 1, _KNOWN_BY).astype(int):
        try:
            digest.update(source[int(place)].image.tobytes())
        except DamagedSample as damaged:
            digest.update(damaged.reason.encode())
    return digest.hexdigest()[:16]


def _read(file: epath.Path) -> tuple[Moments, str]:
    """Returns the file's moments, and what they were fitted to."""
    try:
        content = read_arrays(file)
        found = Moments(*(content[name].astype(np.float32) for name in Moments._fields))
        return found, str(content["fitted_to"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}): delete it, and it is fitted again"
        ) from error
