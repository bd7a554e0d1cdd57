"""Encoding every picture of a run's data once, by its first stage: shards of latents."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.config import Config, ConfigError
from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.latents import MIRRORED, PLAIN, LatentMetadata, pack, preparation
from contextdiff_jax.runs import build
from contextdiff_jax.runs.prepare import Advance, Job, ShardWorker
from contextdiff_jax.spaces.latents import LatentSpace


def check_latent_run(config: Config, name: str) -> None:
    """Raises ConfigError unless run `name` of the pipeline trains in latents."""
    runs = [each for each in config.pipeline if config.runs[each].task.in_latents]
    if name not in runs:
        raise ConfigError(
            f"--run={name}: must be one of {', '.join(runs) or '(none)'}, the runs that train in "
            "latents"
        )


class LatentWorker(ShardWorker):
    """Encodes pictures, and mirrored ones where the run mirrors, on all local devices."""

    metadata: LatentMetadata

    def __init__(self, job: Job):
        super().__init__(job)
        run, config = job.config.runs[job.run], job.config
        encoders = build.LoadedEncoders(config, build.locate_in(job.workdir))
        stage = encoders.first_stage(run.task.first_stage.path)
        # The stage's own latents are stored: what normalizes them may change.
        space = LatentSpace(stage.module, run.data.resolution)
        mesh = Mesh(np.asarray(jax.local_devices(), dtype=object), ("data",))
        self._batch_size = -(-job.batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        params = {"stage": stage.params}
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._program = jax.jit(lambda params, images: space.bind(params).moments(images))
        shape = (1, *space.image_shape)
        image = jax.ShapeDtypeStruct(shape, np.uint8)
        _, log_variance = jax.eval_shape(self._program, params, image)
        self._dtype, self._mirrors = shards.DTYPES[job.dtype], run.data.flip
        self.metadata = LatentMetadata(
            source=self.source.name,
            samples=len(self.source),
            shard_size=job.shard_size,
            dtype=job.dtype,
            compute_dtype=str(build.compute_dtype(config)),
            stage=stage.identity,
            shape=space.shape,
            gaussian=log_variance is not None,
            mirrored=self._mirrors,
            preparation=preparation(run.data),
        )

    def new_tally(self) -> dict[str, Any]:
        """Returns how many positions there were, and sums of each channel and of its squares."""
        zeros = [0.0] * self.metadata.shape[-1]
        return {"count": 0, "total": zeros, "squares": list(zeros)}

    def add_tally(self, total: dict[str, Any], more: dict[str, Any]) -> None:
        """Adds a shard's sums to the total."""
        total["count"] += more["count"]
        for key in ("total", "squares"):
            total[key] = np.add(total[key], more[key]).tolist()

    def records(
        self, samples: range, report: SkipReport, tally: dict[str, Any], advance: Advance
    ) -> Iterator[bytes]:
        """Yields the samples' records, empty ones of damaged samples, which are counted."""
        for begin in range(0, len(samples), self._batch_size):
            part = samples[begin : begin + self._batch_size]
            images = self.read(part, lambda index: self.source[index].image, report)
            sound = [image for image in images if image is not None]
            encoded = iter(self._encoded(sound, tally) if sound else ())
            for image in images:
                yield pack({} if image is None else next(encoded))
            advance(len(part))

    def _encoded(self, images: list[np.ndarray], tally: dict[str, Any]) -> list[dict]:
        """Returns the entries of pictures, at most a batch of them; adds them to the tally."""
        sets = {PLAIN: np.stack(images)}
        if self._mirrors:
            sets[MIRRORED] = sets[PLAIN][:, :, ::-1]
        found: list[dict] = [{} for _ in images]
        for key, pictures in sets.items():
            filled = np.resize(np.arange(len(images)), self._batch_size)
            batch = jax.device_put(pictures[filled], self._rows)
            arrays = [np.asarray(a) for a in self._program(self._params, batch) if a is not None]
            self._count(arrays[0][: len(images)], tally)
            arrays = [array.astype(self._dtype) for array in arrays]
            for place, entries in enumerate(found):
                entries[key] = [array[place] for array in arrays]
        return found

    def _count(self, means: np.ndarray, tally: dict[str, Any]) -> None:
        flat = means.astype(np.float64).reshape(-1, means.shape[-1])
        more = {"total": flat.sum(0), "squares": np.square(flat).sum(0), "count": len(flat)}
        self.add_tally(tally, more)

    def summary(self, tally: dict[str, Any]) -> tuple[LatentMetadata, dict[str, Any]]:
        """Returns the finished metadata, with mean and deviation of each channel, also logged."""
        count = max(tally["count"], 1)
        mean = np.asarray(tally["total"]) / count
        std = np.sqrt(np.maximum(np.asarray(tally["squares"]) / count - mean**2, 0))
        known = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
        shown = {k: ",".join(f"{value:.4g}" for value in values) for k, values in known.items()}
        where = f"--config.runs.{self.job.run}.task.first_stage"
        logging.info(
            "channels of the latents: %s.mean='(%s)' %s.std='(%s)' normalize them",
            *(where, shown["mean"], where, shown["std"]),
        )
        return dataclasses.replace(self.metadata, finished=True, **known), {}
