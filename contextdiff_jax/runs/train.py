"""Training a pipeline: its runs in order, each resumed or skipped, then export and samples."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from contextdiff_jax.config import Config, RunConfig, SamplesConfig
from contextdiff_jax.data.example import SkipReport, Source
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.runs import build, device_memory, resumption, validation
from contextdiff_jax.runs.embeddings import open_embeddings
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.start import check_start, start
from contextdiff_jax.runs.stored_latents import with_latents
from contextdiff_jax.runs.weights import whole_ema
from contextdiff_jax.system import notices
from contextdiff_jax.training.checkpoints import newest_metadata
from contextdiff_jax.training.loop import Trainer, check_batch_size
from contextdiff_jax.training.task import Task

Draw = Callable[[epath.Path, SamplesConfig, epath.Path], None]


def train_pipeline(
    config: Config, workdir: epath.Path, draw: Draw, only: str | None = None
) -> None:
    """Trains the pipeline's runs in order, skipping finished ones, then exports what draws.

    draw: draws the config's samples, where it has prompts for some, from an export into a folder.
    """
    exports = only is None and bool(build.diffusion_runs(config))
    draws = exports and bool(config.samples.prompts)
    if draws:
        for name in build.diffusion_runs(config):  # drawing encodes prompts, whatever was stored
            read = config.runs[name].task.encoders(config.use_adapter)
            validation.check_encoders(config, read)
    names = [only] if only else config.pipeline
    for before, name in enumerate(names):  # all of them now: a later one's turn may be in weeks
        if not _saved(config, name, workdir)[1]:
            _check_batch(config, name)
            _check_start(config, name, workdir, names[:before])
    for name in names:
        train_run(config, name, workdir)
    if exports:
        notices.doing("exporting and drawing samples" if draws else "exporting")
        export_pipeline(config, workdir, workdir / "export")
        logging.info("sample and evaluate read --export=%s", workdir / "export")
    if draws:
        draw(workdir / "export", config.samples, workdir / "samples")


def train_run(config: Config, name: str, workdir: epath.Path) -> None:
    """Trains one run to its last step in workdir/name, from its newest checkpoint if it has one."""
    run, directory = config.runs[name], workdir / name
    saved, finished = _saved(config, name, workdir)
    if finished:
        resumption.check_finished_run(saved, dataclasses.asdict(config), name)
        logging.info("run %s is finished already, at step %d", name, run.steps)
        return
    mesh = _check_batch(config, name)
    notices.doing(f"opening the data of run {name}")
    logging.info("run %s: %s to step %d", name, run.task.kind, run.steps)
    report = SkipReport()
    source = run.task.usable(open_source(run.data, report))
    distributed.check_same(len(source), f"finds {{}} samples in {source.name}")
    probe(source, report=report)
    notices.doing(f"loading the tokenizer and encoders of run {name}")
    task, texts = _build_task(config, name, source, workdir)
    source = with_latents(run, source, task)
    metadata = build.checkpoint_metadata(config, name, task, source, texts.get("embeddings"))
    metadata["history"] = []
    if saved is not None:
        changed = resumption.check_same_run(saved, metadata, name)
        metadata["history"] = [*saved.get("history", []), *changed]
        resumption.warn_of_new_length(saved, metadata, name)
    begun = start(config, name, task, workdir, saved)
    metadata |= begun.record
    if distributed.is_main():
        run.task.go_on(directory)
    notices.doing(f"starting and compiling run {name}")
    with device_memory.explained(config, name, mesh):
        settings = build.loop_settings(config, run)
        trainer = Trainer(begun.task, settings, directory, mesh, metadata, begun.weights)
    del begun  # its weights are on the devices, or will be

    index, count = distributed.batch_part(mesh)

    def open_batches(position: int):
        return build.make_batches(
            source,
            run.data,
            run.batch_size,
            seed=config.seed,
            start_position=position,
            process_index=index,
            process_count=count,
            report=report,
            **texts,
        )

    try:
        with device_memory.explained(config, name, mesh):
            trainer.train(open_batches)
    finally:
        notices.doing(f"ending run {name}")
        _write_report(report, directory / _report_name())
        trainer.checkpoints.close()
    if not distributed.from_main(run.task.is_finished(directory)):
        # From the checkpoint: the state itself may lie on devices of other processes.
        weights, _ = whole_ema(directory)
        if distributed.is_main():
            run.task.finish(task, weights, directory)
    distributed.wait_for_all(f"end of run {name}")


def _build_task(
    config: Config, name: str, source: Source, workdir: epath.Path
) -> tuple[Task, dict[str, Any]]:
    """Returns the task, and by which argument make_batches gives it its captions."""
    run, locate = config.runs[name], build.locate_in(workdir)
    embeddings = open_embeddings(config, run, source, locate)
    encoders = build.LoadedEncoders(config, locate, embeddings)
    task = build.build_task(config, name, encoders, source, workdir / name)
    task = build.with_preview(task, run, source, config.seed, embeddings)
    return task, {"tokenize": task.collate} if embeddings is None else {"embeddings": embeddings}


def _report_name() -> str:
    """Each process reports what it read itself; process 0 under the plain name."""
    index = jax.process_index()
    return f"data_report.{index}.json" if index else "data_report.json"


def _write_report(report: SkipReport, path: epath.Path) -> None:
    for line in report.summary():
        logging.info("data: %s", line)
    try:
        path.write_text(json.dumps(report.to_json(), indent=2))
    except OSError as error:  # a full disk: what ended the run is the message to see
        logging.error("%s could not be written: %s", path, error)


def _check_batch(config: Config, name: str) -> Mesh:
    """Returns the mesh; raises ValueError unless it fits the devices and the run's batch it."""
    run, mesh = config.runs[name], make_mesh(config.mesh)
    try:
        check_batch_size(run.batch_size, run.optimizer.accumulation, mesh)
    except ValueError as error:
        raise ValueError(f"runs.{name}.{error}") from error
    return mesh


def _check_start(config: Config, name: str, workdir: epath.Path, before: Sequence[str]) -> None:
    """Raises ValueError where a run that is not begun yet cannot start as its config says."""
    run, path = config.runs[name], config.runs[name].start_from.path
    if not (path or run.trainable) or _saved(config, name, workdir)[0] is not None:
        return
    source = path.removeprefix(build.RUN_PREFIX)
    if source != path and source not in before and not _saved(config, source, workdir)[1]:
        raise ValueError(
            f"config.runs.{name}.start_from.path = {path!r}: run {source!r} is not finished in "
            f"{workdir}; train it first"
        )
    check_start(config, name)


def _saved(config: Config, name: str, workdir: epath.Path) -> tuple[dict[str, Any] | None, bool]:
    """Returns the metadata of a run's newest checkpoint, and whether it is finished."""
    run, directory = config.runs[name], workdir / name
    saved = newest_metadata(directory / "checkpoints")
    return saved, distributed.from_main(_is_finished(run, saved, directory))


def _is_finished(run: RunConfig, saved: dict[str, Any] | None, directory: epath.Path) -> bool:
    """Whether the last step is saved, and what the task writes then is there."""
    return saved is not None and saved["step"] >= run.steps and run.task.is_finished(directory)
