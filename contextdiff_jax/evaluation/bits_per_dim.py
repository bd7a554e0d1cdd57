"""Bits per dimension of held-out images under a stage of an export: resumable, each image once.

    FOLDER/manifest.json   the weights, the data and the protocol that the numbers belong to
    FOLDER/*.npz           the terms of finished images, read by evaluation.bound_rows

An image's number depends on its place in the data and the seed, not on batch size or devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Example, SkipReport, Source
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation import bound_plot
from contextdiff_jax.evaluation.bound_rows import (
    Rows,
    read_rows,
    summary,
    write_rows,
)
from contextdiff_jax.evaluation.bound_terms import BoundTerms, bound_terms, visited_times
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.generation import manifest
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import ProgressLog

# Of the data's settings, what changes no image and no caption, or is not read here. The path is in
# the source's name.
_NOT_READ = {"path", "shuffle", "flip", "limit", "threads", "cache_dir", "tfds_dir", "embeddings"}


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """What the numbers depend on beside the network and the data, and how they are computed.

    count: the first so many samples of the data; 0 takes all. seed: of all noise.
    num_terms: times of the bound, see `visited_times`; 0 takes all T, the bound trained for.
    clip: limit x0_hat to [-1, 1]. batch_size: images at a time; changes nothing beyond rounding.
    """

    count: int = 0
    seed: int = 0
    num_terms: int = 0
    clip: bool = True
    batch_size: int = 64


def bits_per_dim(
    stage: Stage,
    data: DataConfig,
    folder: epath.PathLike,
    settings: LikelihoodSettings,
    watch: Watch,
    open_data: Callable[[DataConfig, SkipReport], Source] = open_source,
) -> Result:
    """Evaluates the exact discrete bound of the data's images, each with its first caption.

    data: held-out data at the stage's resolution; shuffling, mirroring and stored embeddings are
    not read. A super-resolution stage is given each image's own clean low-resolution version.
    The same call goes on where it was stopped, and one with a larger count adds to what is there.
    All processes must call it.

    Raises ValueError for settings or data that do not fit, where the folder holds the terms of
    something else, or where a term is not finite; Interrupted once the watch was triggered.
    """
    folder, report = epath.Path(folder), SkipReport()
    source = _checked(open_data(data, report), stage, data, settings)
    times = visited_times(stage.task.schedule, settings.num_terms)
    described = _describe(stage, data, source, settings, len(times) - 1)
    manifest.begin(folder, described, "terms")
    finished = read_rows(folder, settings.count or len(source))
    distributed.wait_for_all(f"{folder} is looked through")
    done = frozenset() if finished is None else frozenset(finished.index.tolist())
    _evaluate_missing(
        stage, source, folder, settings, times, done, report, data.reading_threads, watch
    )
    distributed.wait_for_all(f"{folder} is finished")
    rows = read_rows(folder, settings.count or len(source))
    if rows is None:
        raise ValueError(f"no usable sample in {source.name}: {'; '.join(report.summary())}")
    described["data"]["samples"] = settings.count or len(source)
    return _result(stage, rows, times, described, report)


def _checked(
    source: Source, stage: Stage, data: DataConfig, settings: LikelihoodSettings
) -> Source:
    if stage.task.flow is not None:
        raise ValueError(
            f"stage {stage.name!r} has no bits per dimension: the bound is of diffusion.kind 'vp', "
            "must not be 'flow'"
        )
    if data.resolution != stage.task.resolution:
        raise ValueError(
            f"data.resolution = {data.resolution}: must be {stage.task.resolution}, that of stage "
            f"{stage.name!r}"
        )
    if stage.task.space.bounds is None:
        raise ValueError(
            f"stage {stage.name!r} draws latents, which have no discrete bound: bits_per_dim "
            "measures stages in pixels"
        )
    for key, least in (("count", 0), ("batch_size", 1)):
        if getattr(settings, key) < least:
            raise ValueError(f"{key} = {getattr(settings, key)}: must be at least {least}")
    if settings.count > len(source):
        raise ValueError(f"count = {settings.count}: {source.name} has {len(source)} samples")
    probe(source)
    return source


def _describe(
    stage: Stage, data: DataConfig, source: Source, settings: LikelihoodSettings, terms: int
) -> dict[str, Any]:
    """Returns all that decides about the numbers."""
    config = stage.task.config
    return {
        "network": stage.identity(),
        "dtype": jnp.dtype(stage.task.denoiser.dtype).name,
        "stage": stage.name,
        "adapter": stage.task.adapter is not None,
        "data": {
            "name": source.name,
            **{k: v for k, v in dataclasses.asdict(data).items() if k not in _NOT_READ},
        },
        "protocol": {
            "bound": "discrete, 8 bits per channel, L_T with the bias b_T, decoder discretized",
            "unit": "bits per dimension, one noise per image and term",
            "steps": stage.task.schedule.num_steps,
            "schedule": stage.task.schedule.name,
            "terms": terms,
            "prediction": config.prediction,
            "clip": settings.clip,
            "seed": settings.seed,
            **stage.task.protocol(),
        },
    }


def _evaluate_missing(
    stage: Stage,
    source: Source,
    folder: epath.Path,
    settings: LikelihoodSettings,
    times: np.ndarray,
    done: frozenset[int],
    report: SkipReport,
    threads: int,
    watch: Watch,
) -> None:
    count = settings.count or len(source)
    missing = (index for index in range(count) if index not in done)
    if len(done) == count:
        return
    if done:
        logging.info("%s: %d of %d images are there", folder, len(done), count)
    devices = stage.mesh.devices.size
    size = -(-min(settings.batch_size, count - len(done)) // devices) * devices
    logging.info(
        "%d images, %d at a time, at %d times each", count - len(done), size, len(times) - 1
    )
    program = _program(stage, times, settings.clip)
    progress, vote, evaluated = ProgressLog(count, len(done), "images"), Vote(), len(done)
    for numbered in one_pass(source, missing, size, report, threads):
        rows = _evaluate(stage, program, numbered, size, settings.seed)
        if distributed.is_main():
            write_rows(folder, rows)
        evaluated += len(rows)
        progress(len(rows))
        if vote.stop(watch.triggered) and evaluated < count:
            raise Interrupted(evaluated, "image")


def _program(stage: Stage, times: np.ndarray, clip: bool) -> Any:
    """The compiled evaluation of one batch: (params, frozen, batch, keys) -> BoundTerms."""
    task = stage.task

    def evaluate(params, frozen, batch, keys) -> BoundTerms:
        networks = task.networks(params, frozen, {**batch, **task.of_target(batch)})
        x0 = task.space.encode(batch["image"])
        return bound_terms(*networks, x0, keys, times=times, clip=clip)

    return jit_on_mesh(evaluate, stage.mesh, out_shardings=replicated(stage.mesh))


def _evaluate(
    stage: Stage, program: Any, numbered: list[tuple[int, Example]], size: int, seed: int
) -> Rows:
    """Returns the rows of up to `size` images; a smaller batch is filled up with its last one."""
    filled = numbered + numbered[-1:] * (size - len(numbered))
    index = np.array([number for number, _ in filled], np.int64)
    batch = {"image": np.stack([example.image for _, example in filled])}
    batch |= {name: np.stack([each.maps[name] for _, each in filled]) for name in filled[0][1].maps}
    captions = [example.captions[0] for _, example in filled]
    batch |= stage.task.collate(captions)
    sharding = batch_sharding(stage.mesh)
    batch, keys = distributed.place((batch, sample_keys(seed, index)), sharding)
    made = jax.device_get(program(stage.params, stage.frozen, batch, keys))
    real = len(numbered)
    for terms in (made.prior[:, None], made.terms):
        bad = ~np.isfinite(terms[:real]).all(axis=1)
        if bad.any():
            raise ValueError(
                f"the bound of sample {index[int(np.argmax(bad))]} is not finite: the weights of "
                f"stage {stage.name!r} do not work"
            )
    return Rows(index[:real], made.prior[:real], made.terms[:real], made.x0_mse[:real])


def _result(
    stage: Stage, rows: Rows, times: np.ndarray, described: dict[str, Any], report: SkipReport
) -> Result:
    alpha_bar = stage.task.schedule.alpha_bar[times[:-1]]
    values = summary(rows, times[:-1].tolist(), alpha_bar / (1 - alpha_bar))
    error = values["standard_error"]
    spread = "" if error is None else f" (standard error {error:.4f})"
    steps = values.pop("per_timestep")
    warnings = []
    if report.total:
        warnings.append(
            f"{report.total} of {described['data']['samples']} samples could not be used: "
            + "; ".join(f"{count} x {reason}" for reason, count in report.counts().items())
        )
    if described["protocol"]["terms"] < described["protocol"]["steps"]:
        warnings.append(
            f"the bound of {described['protocol']['terms']} of {described['protocol']['steps']} "
            "times: exact, but looser than that of all, and not comparable with it"
        )
    return Result(
        title="Bits per dimension",
        summary=f"{values['bits_per_dim']:.4f} bits/dim{spread}, {len(rows)} images: an upper "
        f"bound of -log2 p; prior {values['prior']:.4f}, KL terms {values['kl']:.4f}, "
        f"decoder {values['decoder']:.4f}.",
        values=values | {"skipped": report.counts()},
        protocol=described,
        tables=(
            Table(
                "terms",
                tuple(steps),
                tuple(zip(*steps.values(), strict=True)),
                "Mean over the images; the term at the last t is L_0, L_T is not in it.",
            ),
        ),
        warnings=tuple(warnings),
    )


def plan_bits_per_dim(evaluation: Evaluation) -> Callable[[], Result]:
    """The exact discrete bound of held-out images, term by term."""
    settings, data = evaluation.settings, evaluation.data()
    if data.source == "scenes" and not (settings.count or data.limit):
        raise ValueError("--what=bits_per_dim: scenes are endless, give --count")
    evaluation.open_data(data)
    asked = LikelihoodSettings(
        count=settings.count or 0,
        seed=settings.seed,
        num_terms=settings.terms,
        batch_size=settings.batch_size,
    )

    def work() -> Result:
        folder = evaluation.output / "bits_per_dim"
        stage = evaluation.cascade.stages[-1]
        result = bits_per_dim(stage, data, folder, asked, evaluation.watch, evaluation.open_data)
        figure = bound_plot.draw(result.tables[0], evaluation.output)
        return dataclasses.replace(
            result,
            protocol={"export": settings.export, **result.protocol},
            figures=(*result.figures, figure),
            warnings=(*result.warnings, *evaluation.data_warnings(data)),
        )

    return work
