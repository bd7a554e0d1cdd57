"""Training a pipeline: its runs in order, each resumed or skipped, then export and samples."""

import json
from typing import Any

import jax
from absl import logging
from etils import epath

from contextdiff_jax.config import Config, RunConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.encoders.weights import save_clip_folder
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.pipeline import build, validation
from contextdiff_jax.pipeline.cascade import draw_samples
from contextdiff_jax.pipeline.export import export_pipeline
from contextdiff_jax.training.checkpoints import newest_metadata
from contextdiff_jax.training.loop import Trainer, check_batch_size


def train_pipeline(config: Config, workdir: epath.Path, only: str | None = None) -> None:
    """Trains the pipeline's runs in order, skipping finished ones, then exports and samples."""
    if only is not None and only not in config.pipeline:
        raise ValueError(f"--run={only}: must be one of {', '.join(config.pipeline)}")
    for name in [only] if only else config.pipeline:
        train_run(config, name, workdir)
    if only is None and build.diffusion_runs(config) and config.samples.prompts:
        export_pipeline(config, workdir, workdir / "export")
        draw_samples(workdir / "export", config.samples, workdir / "samples")


def train_run(config: Config, name: str, workdir: epath.Path) -> None:
    """Trains one run to its last step in workdir/name, from its newest checkpoint if it has one."""
    run, directory = config.runs[name], workdir / name
    saved = newest_metadata(directory / "checkpoints")
    if _is_finished(run, saved, directory):
        logging.info("run %s is finished already, at step %d", name, run.steps)
        return
    mesh = make_mesh(config.mesh)
    check_batch_size(run.batch_size, run.optimizer.accumulation, mesh)
    logging.info("run %s: %s to step %d", name, run.task, run.steps)
    report = SkipReport()
    source = open_source(run.data, report)
    probe(source, report=report)
    contrastive = run.task == "contrastive"
    if contrastive:
        task = build.build_contrastive_task(config, run, source, directory)
        tokenize = task.tokenize
    else:
        task = build.build_diffusion_task(config, run, build.locate_in(workdir))
        task = build.with_preview(task, run, source, config.seed)
        tokenize = task.conditioning.tokenize
    metadata = build.checkpoint_metadata(config, name, task, source)
    if saved is not None:
        validation.check_same_run(saved, metadata, name)
    trainer = Trainer(task, build.loop_settings(config, run), directory, mesh, metadata)

    def open_batches(position: int):
        return build.make_batches(
            source,
            run.data,
            run.batch_size,
            seed=config.seed,
            tokenize=tokenize,
            start_position=position,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            report=report,
        )

    try:
        state = trainer.train(open_batches)
    finally:
        _write_report(report, directory / "data_report.json")
        trainer.checkpoints.close()
    if contrastive:
        save_clip_folder(directory / build.ENCODER_FOLDER, task.clip.config, state.ema["clip"])
        build.copy_tokenizer(run, directory)


def _write_report(report: SkipReport, path: epath.Path) -> None:
    for line in report.summary():
        logging.info("data: %s", line)
    try:
        path.write_text(json.dumps(report.to_json(), indent=2))
    except OSError as error:  # a full disk: what ended the run is the message to see
        logging.error("%s could not be written: %s", path, error)


def _is_finished(run: RunConfig, saved: dict[str, Any] | None, directory: epath.Path) -> bool:
    """Whether the last step is saved and, for a contrastive run, its encoder written."""
    encoder = directory / build.ENCODER_FOLDER / "tokenizer"
    if saved is None or (run.task == "contrastive" and not encoder.exists()):
        return False
    return saved["step"] >= run.steps
