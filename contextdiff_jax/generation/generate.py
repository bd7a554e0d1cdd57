"""Pictures for many requests, one each: resumable, exactly as many, in memory that does not grow.

    FOLDER/manifest.json       what the pictures are of: export, samplers, seed, requests
    FOLDER/requests.jsonl      the requests, in order
    FOLDER/STAGE/NNNNNN.png    the picture of request NNNNNN, lossless, one folder per stage

A picture is there whole or not at all, under its request's number, so that nothing counts twice.
The same call goes on where it was stopped, and ends in the pictures of an undisturbed run.
"""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.conditions.requests import Request, check_requests
from contextdiff_jax.data.decode import open_image
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.generation.request_files import lines_of
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs import manifest
from contextdiff_jax.spaces.pictures import to_uint8, write_png
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import ProgressLog

_WRITERS = 4  # threads; PNG's compression lets go of Python's lock


@dataclasses.dataclass(frozen=True)
class Noise:
    """What a picture depends on beside its request and the networks.

    seed: of all noise. augmentation: level in [0, 1] of the low-resolution condition, 0 is clean.
    batch_size: pictures drawn at a time; it does not change them beyond rounding.
    """

    seed: int = 0
    augmentation: float = 0.0
    batch_size: int = 64


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The finished pictures of a folder: one per request and stage."""

    folder: epath.Path
    requests: tuple[Request, ...]
    stages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.requests)

    def digest(self) -> str:
        """Returns what tells these pictures from others, of their manifest."""
        return _digest((self.folder / "manifest.json").read_text())

    def path(self, stage: str, place: int) -> epath.Path:
        """Returns the file of a picture."""
        return self.folder / stage / _name(place)

    def read(self, stage: str, places: Sequence[int]) -> np.ndarray:
        """Returns pictures (len(places), H, W, 3) uint8."""
        return np.stack([_read_png(self.path(stage, place)) for place in places])


def describe(cascade: Cascade) -> dict[str, Any]:
    """Returns, by stage, what decides about its pictures; every weight is read for it."""
    return {stage.name: stage.identity() | {"network": _network(stage)} for stage in cascade.stages}


def _network(stage: Stage) -> str:
    return _digest(stage.task.described())


def generate(
    cascade: Cascade,
    networks: Mapping[str, Any],
    requests: Sequence[Request],
    folder: epath.PathLike,
    noise: Noise,
    watch: Watch,
) -> Pictures:
    """Draws what is missing of one picture per request, through every stage; the same resumes.

    networks: what `describe` returned of the cascade. All processes must call it.

    Raises ValueError where a request is not allowed, where the folder holds pictures of something
    else, naming the difference, or where a picture is not finite; Interrupted once the watch was
    triggered.
    """
    check_requests(requests, cascade.conditions)
    folder = epath.Path(folder)
    names = tuple(stage.name for stage in cascade.stages)
    manifest.begin(
        folder,
        _manifest(cascade, networks, requests, noise),
        "pictures",
        subfolders=names,
        texts={"requests.jsonl": lines_of(requests)},
    )
    done = _finished(folder / names[-1], len(requests))
    distributed.wait_for_all(f"{folder} is looked through")
    if len(done) < len(requests):
        _draw_missing(cascade, requests, folder, noise, done, watch)
    return Pictures(folder, tuple(requests), names)


def _draw_missing(
    cascade: Cascade,
    requests: Sequence[Request],
    folder: epath.Path,
    noise: Noise,
    done: frozenset[int],
    watch: Watch,
) -> None:
    if done:
        logging.info("%s: %d of %d pictures are there", folder, len(done), len(requests))
    progress = ProgressLog(len(requests), len(done), "pictures")
    vote, drawn = Vote(), len(done)
    parts = cascade.stream(requests, **dataclasses.asdict(noise), done=done)
    with concurrent.futures.ThreadPoolExecutor(_WRITERS) as writers:
        for places, images in parts:
            _check_finite(images, places)
            if distributed.is_main():
                # The last stage's picture comes last: it says that the others are there.
                for stage, part in images.items():
                    paths = [folder / stage / _name(place) for place in places]
                    list(writers.map(write_png, paths, to_uint8(part)))
            new = sum(place not in done for place in places)
            drawn += new
            progress(new)
            if vote.stop(watch.triggered) and drawn < len(requests):
                raise Interrupted(drawn, "picture")
    distributed.wait_for_all(f"{folder} is finished")


def _manifest(
    cascade: Cascade, networks: Mapping[str, Any], requests: Sequence[Request], noise: Noise
) -> dict[str, Any]:
    stages = {
        stage.name: {
            "network": dict(networks[stage.name]),
            "sampler": dataclasses.asdict(stage.sampler),
            "dtype": jnp.dtype(stage.task.denoiser.dtype).name,
        }
        for stage in cascade.stages
    }
    return {
        "requests": {"count": len(requests), "sha256": _digest(lines_of(requests))},
        "seed": noise.seed,
        "augmentation": noise.augmentation,
        "stages": stages,
    }


def _finished(folder: epath.Path, count: int) -> frozenset[int]:
    there = {path.name for path in folder.iterdir()}
    return frozenset(place for place in range(count) if _name(place) in there)


def _check_finite(images: Mapping[str, np.ndarray], places: range) -> None:
    """Raises ValueError for a picture that holds NaN or infinity, which would turn into pixels."""
    for stage, part in images.items():
        bad = ~np.isfinite(part).all(axis=(1, 2, 3))
        if bad.any():
            raise ValueError(
                f"picture {places[int(np.argmax(bad))]} of stage {stage!r} is not finite (NaN or "
                "infinity): the export's weights or the sampler's settings do not work"
            )


def _read_png(path: epath.Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.asarray(open_image(file, ("PNG",)).convert("RGB"))


def _name(place: int) -> str:
    return f"{place:06d}.png"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
