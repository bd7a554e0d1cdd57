"""Features of many images, kept in files as they come: resumable, none computed twice.

FOLDER/manifest.json  what the features are of, and which
FOLDER/NNNNNN.npz     those of images NNNNNN .. NNNNNN + CHUNK - 1, whole or not there
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.data.example import SkipReport, Source
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs import manifest
from contextdiff_jax.system.array_files import read_arrays
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import ProgressLog

CHUNK = 256  # images per file

Read = Callable[[range], np.ndarray]
"""Returns the images of these places that can be used, (n, H, W, 3) uint8."""

Extract = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Returns named features, each (n, D) float32, of images (n, H, W, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """The finished features of a folder, in the order of their images."""

    folder: epath.Path
    images: int

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """Yields features (n, D) file by file; memory does not grow with the number of images."""
        for start in range(0, self.images, CHUNK):
            content = read_arrays(self.folder / _name(start), (name,))
            if name in content:  # else none of these images could be used
                yield content[name]

    def all(self, name: str) -> np.ndarray:
        """Returns all of them, (N, D)."""
        return np.concatenate(list(self.parts(name)))


def extract_features(
    folder: epath.PathLike,
    record: Mapping[str, Any],
    images: int,
    read: Read,
    extract: Extract,
    watch: Watch,
) -> FeatureFiles:
    """Computes what is missing of the features of `images` images; the same call resumes.

    record: what decides about them, as JSON holds it. All processes must call it; each takes its
    part of the missing files.

    Raises ValueError where the folder holds features of something else, naming the difference;
    Interrupted once the watch was triggered.
    """
    folder = epath.Path(folder)
    manifest.begin(folder, {**record, "images": images}, "features")
    there = {path.name for path in folder.iterdir()}
    missing = [start for start in range(0, images, CHUNK) if _name(start) not in there]
    distributed.wait_for_all(f"{folder} is looked through")
    _extract_missing(
        folder,
        [range(start, min(start + CHUNK, images)) for start in missing],
        images,
        *(read, extract, watch),
    )
    distributed.wait_for_all(f"{folder} is finished")
    return FeatureFiles(folder, images)


def _extract_missing(
    folder: epath.Path,
    chunks: Sequence[range],
    images: int,
    read: Read,
    extract: Extract,
    watch: Watch,
) -> None:
    left = sum(map(len, chunks))
    if 0 < left < images:
        logging.info("%s: features of %d of %d images are there", folder, images - left, images)
    progress, vote = ProgressLog(images, images - left, "images"), Vote()
    count = jax.process_count()
    # One chunk per process at a time: all go the same number of rounds, so that they can vote.
    rounds = [chunks[start : start + count] for start in range(0, len(chunks), count)]
    for number, together in enumerate(rounds, 1):
        for places in together[jax.process_index() :][:1]:
            pictures = read(places)
            features = extract(pictures) if len(pictures) else {}
            with written_whole(folder / _name(places.start)) as path, path.open("wb") as file:
                np.savez(file, **features)
        progress(sum(map(len, together)))
        if vote.stop(watch.triggered) and number < len(rounds):
            done = sum(len(places) for part in rounds[:number] for places in part)
            raise Interrupted(images - left + done, "image")


def source_reader(source: Source, side: int, threads: int, report: SkipReport) -> Read:
    """Returns a function that reads a source's pictures in threads; damaged ones are counted."""

    def read(places: range) -> np.ndarray:
        batches = one_pass(source, places, len(places), report, threads)
        found = [example.image for batch in batches for _, example in batch]
        return np.stack(found) if found else np.zeros((0, side, side, 3), np.uint8)

    return read


def _name(start: int) -> str:
    return f"{start:06d}.npz"
