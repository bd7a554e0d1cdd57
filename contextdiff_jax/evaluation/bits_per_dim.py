"""Bits per dimension of held-out images under a stage of an export: resumable, each image once.

Of the paper's process they are the exact discrete bound (`bound_measure`), of a flow those of the
density by its ODE (`ode_measure`).

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
from contextdiff_jax.evaluation.bound_measure import BoundMeasure
from contextdiff_jax.evaluation.bound_rows import ImageRows, names_of, read_rows, write_rows
from contextdiff_jax.evaluation.bound_terms import BoundTerms, visited_times
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.ode_likelihood import OdeTerms
from contextdiff_jax.evaluation.ode_measure import PROBES, STEPS, OdeMeasure
from contextdiff_jax.evaluation.results import Result
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated
from contextdiff_jax.runs import manifest
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import ProgressLog

# Of the data's settings, what changes no image and no caption, or is not read here. The path is in
# the source's name.
_NOT_READ = {"path", "shuffle", "flip", "limit", "threads", "cache_dir", "tfds_dir", "embeddings"}
# Settings -> the kind of process they are of, the least and the most; of num_terms the most is T.
_OF_KIND = {
    "num_terms": ("vp", 2, None),
    "ode_steps": ("flow", 2, 10_000),
    "probes": ("flow", 1, 1000),
}


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """What the numbers depend on beside the network and the data, and how they are computed.

    count: the first so many samples of the data; 0 takes all. seed: of all noise.
    num_terms: times of the bound, see `visited_times`; 0 takes all T, the bound trained for.
    clip: of the bound, too: limit x0_hat to [-1, 1].
    ode_steps, probes: of a flow, see `ode_terms`; 0 takes 40 steps and 2 probes.
    batch_size: images at a time; changes nothing beyond rounding.
    """

    count: int = 0
    seed: int = 0
    num_terms: int = 0
    clip: bool = True
    ode_steps: int = 0
    probes: int = 0
    batch_size: int = 64


def bits_per_dim(
    stage: Stage,
    data: DataConfig,
    folder: epath.PathLike,
    settings: LikelihoodSettings,
    watch: Watch,
    open_data: Callable[[DataConfig, SkipReport], Source] = open_source,
) -> Result:
    """Evaluates the data's images, each with its first caption.

    data: held-out data at the stage's resolution; shuffling, mirroring and stored embeddings are
    not read. A super-resolution stage is given each image's own clean low-resolution version.
    The same call goes on where it was stopped, and one with a larger count adds to what is there.
    All processes must call it.

    Raises ValueError for settings or data that do not fit, where the folder holds the terms of
    something else, or where a term is not finite; Interrupted once the watch was triggered.
    """
    folder, report = epath.Path(folder), SkipReport()
    source = _checked(open_data(data, report), stage, data, settings)
    measure = _measure_of(stage, settings)
    described = _describe(stage, data, source, settings, measure)
    manifest.begin(folder, described, "terms")
    finished = read_rows(folder, settings.count or len(source), measure.rows)
    distributed.wait_for_all(f"{folder} is looked through")
    done = frozenset() if finished is None else frozenset(finished.index.tolist())
    _evaluate_missing(
        stage, source, folder, settings, measure, done, report, data.reading_threads, watch
    )
    distributed.wait_for_all(f"{folder} is finished")
    rows = read_rows(folder, settings.count or len(source), measure.rows)
    if rows is None:
        raise ValueError(f"no usable sample in {source.name}: {'; '.join(report.summary())}")
    described["data"]["samples"] = settings.count or len(source)
    result = measure.result(rows, described)
    return dataclasses.replace(
        result,
        values=result.values | {"skipped": report.counts()},
        warnings=(*_skipped(report, described["data"]["samples"]), *result.warnings),
    )


def _skipped(report: SkipReport, samples: int) -> list[str]:
    if not report.total:
        return []
    reasons = "; ".join(f"{count} x {reason}" for reason, count in report.counts().items())
    return [f"{report.total} of {samples} samples could not be used: {reasons}"]


def _checked(
    source: Source, stage: Stage, data: DataConfig, settings: LikelihoodSettings
) -> Source:
    if data.resolution != stage.task.resolution:
        raise ValueError(
            f"data.resolution = {data.resolution}: must be {stage.task.resolution}, that of stage "
            f"{stage.name!r}"
        )
    if stage.task.space.bounds is None:
        raise ValueError(
            f"stage {stage.name!r} draws latents, which are no 8-bit values: bits_per_dim "
            "measures stages in pixels"
        )
    for key, least in (("count", 0), ("batch_size", 1)):
        if getattr(settings, key) < least:
            raise ValueError(f"{key} = {getattr(settings, key)}: must be at least {least}")
    if settings.count > len(source):
        raise ValueError(f"count = {settings.count}: {source.name} has {len(source)} samples")
    probe(source)
    return source


def _measure_of(stage: Stage, settings: LikelihoodSettings) -> BoundMeasure | OdeMeasure:
    """Raises ValueError for a setting of the other kind of process, or one out of its range."""
    schedule, flow = stage.task.schedule, stage.task.flow
    _check_kind("vp" if flow is None else "flow", stage.name, settings)
    if flow is None:
        return BoundMeasure(schedule, visited_times(schedule, settings.num_terms), settings.clip)
    steps, probes = settings.ode_steps or STEPS, settings.probes or PROBES
    return OdeMeasure(schedule, flow.config.relation, steps, probes, flow.config.mean.guidance)


def _check_kind(kind: str, stage: str, settings: LikelihoodSettings) -> None:
    for key, (whose, least, most) in _OF_KIND.items():
        value = getattr(settings, key)
        if value and whose != kind:
            raise ValueError(
                f"{key} = {value}: must be 0 for stage {stage!r} of kind {kind!r}, kind "
                f"{whose!r} alone reads it"
            )
        if value and most and not least <= value <= most:
            raise ValueError(f"{key} = {value}: must be 0 for the default, or in {least}..{most}")


def _describe(
    stage: Stage,
    data: DataConfig,
    source: Source,
    settings: LikelihoodSettings,
    measure: BoundMeasure | OdeMeasure,
) -> dict[str, Any]:
    """Returns all that decides about the numbers."""
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
            **measure.protocol(),
            "steps": stage.task.schedule.num_steps,
            "schedule": stage.task.schedule.name,
            "prediction": stage.task.config.prediction,
            "seed": settings.seed,
            **stage.task.protocol(),
        },
    }


def _evaluate_missing(
    stage: Stage,
    source: Source,
    folder: epath.Path,
    settings: LikelihoodSettings,
    measure: BoundMeasure | OdeMeasure,
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
    logging.info("%d images, %d at a time, %s each", count - len(done), size, measure.cost)
    program = _program(stage, measure)
    progress, vote, evaluated = ProgressLog(count, len(done), "images"), Vote(), len(done)
    for numbered in one_pass(source, missing, size, report, threads):
        rows = _evaluate(stage, measure, program, numbered, size, settings.seed)
        if distributed.is_main():
            write_rows(folder, rows)
        evaluated += len(rows)
        progress(len(rows))
        if vote.stop(watch.triggered) and evaluated < count:
            raise Interrupted(evaluated, "image")


def _program(stage: Stage, measure: BoundMeasure | OdeMeasure) -> Any:
    """The compiled evaluation of one batch: (params, frozen, batch, keys) -> terms."""
    task = stage.task

    def evaluate(params, frozen, batch, keys) -> BoundTerms | OdeTerms:
        networks = task.networks(params, frozen, {**batch, **task.of_target(batch)})
        x0 = task.space.encode(batch["image"])
        return measure.terms(*networks, x0, keys)

    return jit_on_mesh(evaluate, stage.mesh, out_shardings=replicated(stage.mesh))


def _evaluate(
    stage: Stage,
    measure: BoundMeasure | OdeMeasure,
    program: Any,
    numbered: list[tuple[int, Example]],
    size: int,
    seed: int,
) -> ImageRows:
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
    found = {name: getattr(made, name)[: len(numbered)] for name in names_of(measure.rows)[1:]}
    for terms in found.values():
        bad = ~np.isfinite(terms.reshape(len(numbered), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{measure.what} of sample {index[int(np.argmax(bad))]} is not finite: the weights "
                f"of stage {stage.name!r} do not work"
            )
    return measure.rows(index[: len(numbered)], **found)


def plan_bits_per_dim(evaluation: Evaluation) -> Callable[[], Result]:
    """The exact discrete bound of held-out images, term by term; of a flow the ODE's density."""
    settings, data = evaluation.settings, evaluation.data()
    if data.endless and not settings.count:
        raise ValueError("--what=bits_per_dim: scenes are endless, give --count")
    evaluation.open_data(data)
    kind = evaluation.config.runs[evaluation.stage].task.diffusion.kind
    asked = LikelihoodSettings(
        count=settings.count or 0,
        seed=settings.seed,
        num_terms=settings.terms,
        ode_steps=settings.ode_steps,
        probes=settings.probes,
        batch_size=settings.batch_size,
    )
    _check_kind(kind, evaluation.stage, asked)

    def work() -> Result:
        folder = evaluation.output / "bits_per_dim"
        stage = evaluation.cascade.stages[-1]
        result = bits_per_dim(stage, data, folder, asked, evaluation.watch, evaluation.open_data)
        figures = [bound_plot.draw(table, evaluation.output) for table in result.tables]
        return dataclasses.replace(
            result,
            protocol={"export": settings.export, **result.protocol},
            figures=(*result.figures, *figures),
            warnings=(*result.warnings, *evaluation.data_warnings(data)),
        )

    return work
