"""Pictures turned into noise under their own requests, and drawn again from it.

Deterministic DDIM leads from a picture to the noise that it maps back to, the nearer the more steps
it has (sampling/inversion.py). Both ways are without guidance and threshold, which have no inverse.
From the same noise an edit is drawn under another request, by the sampler as it is. All of it is
the first stage's: the others draw from what it drew.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from contextdiff_jax.conditions.requests import Request
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.generation.sampler_flags import overridden, parse_overrides
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding
from contextdiff_jax.runs.description import Export
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.inversion import invert
from contextdiff_jax.spaces.pictures import to_uint8


@dataclasses.dataclass(frozen=True)
class Inverted:
    """What became of N pictures; all (N, H, W, 3).

    given: uint8. redrawn: in [-1, 1], under their own requests. edited: in [-1, 1], under others;
    None where none were asked for.
    """

    given: np.ndarray
    redrawn: np.ndarray
    edited: np.ndarray | None

    def errors(self) -> np.ndarray:
        """Returns how far each picture came back from itself, RMS in grey levels (N,)."""
        difference = to_uint8(self.redrawn).astype(np.float64) - self.given
        return np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3)))

    def rows(self) -> np.ndarray:
        """Returns each picture as it was given, redrawn and edited, one after the other."""
        parts = [self.given / 127.5 - 1.0, self.redrawn]
        parts += [] if self.edited is None else [self.edited]
        return np.stack(parts, axis=1).reshape(-1, *self.given.shape[1:])


def check_invertible(export: Export, settings: Sequence[str]) -> str:
    """Returns the stage that inverts pictures, the first.

    settings: of --sampler. Raises ValueError where it draws nothing from noise alone, or its
    sampler has no inverse.
    """
    stages = list(export.stages)
    first = stages[0]
    task = export.config.runs[first].task
    if task.enlarges:
        raise ValueError(
            f"stage {first!r} cannot invert pictures: it enlarges those of a stage before it"
        )
    changes = parse_overrides(settings, stages)[first]
    sampler = overridden(task.sampler, changes, f"sampler of {first}")
    if sampler.name not in ("ddim", "euler") or sampler.eta:
        raise ValueError(
            f"stage {first!r} cannot invert pictures by sampler {sampler.name} with eta "
            f"{sampler.eta:g}: must be ddim with eta 0 or euler, give --sampler={first}.name=ddim "
            f"--sampler={first}.eta=0"
        )
    return first


def invert_pictures(
    cascade: Cascade,
    pictures: np.ndarray,
    requests: Sequence[Request],
    edits: Sequence[Request] = (),
    batch_size: int | None = None,
) -> Inverted:
    """Inverts pictures (N, H, W, 3) uint8 by the first stage, and draws them again.

    requests: of the pictures. edits: other requests for the same noise, N or none. A batch is one
    compiled program.
    """
    stage, count = cascade.stages[0], len(pictures)
    batch_size = cascade.samples.batch_size if batch_size is None else batch_size
    size = cascade.whole_batch(batch_size, count)
    program, sharding = _program(stage), batch_sharding(stage.mesh)
    drawn = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # the last one fills up
        batches = [
            stage.task.collate_requests([wanted[row] for row in rows], warn=True)
            for wanted in (requests, edits)
            if wanted
        ]
        inputs = distributed.place((pictures[rows], batches), sharding)
        images = program(stage.params, stage.frozen, *inputs)
        drawn.append([distributed.to_host(part) for part in images])
    redrawn, *edited = (np.concatenate(parts)[:count] for parts in zip(*drawn, strict=True))
    return Inverted(pictures, redrawn, *edited or [None])


def _program(stage: Stage) -> Any:
    """Returns the compiled run: (params, frozen, pictures, batches) -> what each batch draws.

    The first of the batches is of the pictures' own requests.
    """
    task, exact = stage.task, _exact(stage.sampler)
    times = exact.timesteps(task.schedule)

    def run(params, frozen, pictures, batches):
        process, denoise = task.networks(params, frozen, batches[0])
        space = task.space_in(frozen)
        noise = invert(process, denoise, space.encode(pictures), times)

        def draw(networks, sampler):
            process, denoise = networks
            x0 = loop.sample(process, denoise, None, space.shape, sampler, x_init=noise)
            return space.decode(x0)

        redrawn = draw((process, denoise), exact)
        edits = [draw(task.networks(params, frozen, b), stage.sampler) for b in batches[1:]]
        return [redrawn, *edits]

    return jit_on_mesh(run, stage.mesh)


def _exact(sampler: SamplerConfig) -> SamplerConfig:
    """Returns the sampler without what has no inverse."""
    return dataclasses.replace(
        sampler,
        guidance_scale=1.0,
        guidance_low=None,
        guidance_high=None,
        threshold="none",
        max_threshold=None,
    )
